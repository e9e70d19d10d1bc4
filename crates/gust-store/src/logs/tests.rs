use proptest::prelude::*;

use super::*;

fn line(unix_ms: u64, message: &str) -> LogLine {
    LogLine {
        unix_ms,
        stream: "2024/01/01/[1]abc".to_owned(),
        message: message.to_owned(),
    }
}

fn open(dir: &Path, segment_bytes: u64) -> Logs {
    Logs::open(
        dir.join("logs"),
        LogsConfig {
            segment_bytes,
            segments: 2,
        },
    )
    .unwrap()
}

fn messages(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|line| line.message.as_str()).collect()
}

#[tokio::test]
async fn the_newest_lines_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let logs = open(dir.path(), 1 << 20);
    let scope = LogScope::new("hello").unwrap();
    assert_eq!(logs.tail(&scope, 10, None).unwrap(), []);
    logs.append(&scope, (0..5).map(|n| line(n, &format!("line {n}"))).collect())
        .await;
    logs.flush().await;
    assert_eq!(
        messages(&logs.tail(&scope, 2, None).unwrap()),
        ["line 3", "line 4"]
    );
    assert_eq!(messages(&logs.tail(&scope, 10, Some(4)).unwrap()), ["line 4"]);
    logs.remove(&scope).await.unwrap();
    assert_eq!(logs.tail(&scope, 10, None).unwrap(), []);
}

#[tokio::test]
async fn a_log_never_grows_past_its_bound() {
    let dir = tempfile::tempdir().unwrap();
    let logs = open(dir.path(), 4096);
    let scope = LogScope::new("chatty").unwrap();
    for n in 0..1000 {
        logs.append(&scope, vec![line(n, &"x".repeat(100))]).await;
    }
    logs.flush().await;
    let bytes: u64 = segment_numbers(&logs.scope_dir(&scope))
        .unwrap()
        .iter()
        .map(|number| {
            segment::path_of(&logs.scope_dir(&scope), *number)
                .metadata()
                .unwrap()
                .len()
        })
        .sum();
    assert!((4096..=2 * (4096 + 200)).contains(&bytes), "{bytes}");
    assert_eq!(logs.tail(&scope, 1, None).unwrap()[0].unix_ms, 999);
}

#[tokio::test]
async fn a_follower_sees_every_line_across_segments() {
    let dir = tempfile::tempdir().unwrap();
    let logs = open(dir.path(), 1 << 20);
    let scope = LogScope::new("followed").unwrap();
    logs.append(&scope, vec![line(0, "before")]).await;
    logs.flush().await;
    let mut follower = logs.follow(&scope).unwrap();
    // Fewer bytes than the two segments that are kept, and more than one.
    let message = "m".repeat(100_000);
    let writing = async {
        for n in 1..=15 {
            logs.append(&scope, vec![line(n, &message)]).await;
        }
    };
    let reading = async {
        let mut seen = Vec::new();
        while seen.len() < 15 {
            seen.extend(
                follower
                    .next()
                    .await
                    .unwrap()
                    .unwrap()
                    .into_iter()
                    .map(|line| line.unix_ms),
            );
        }
        seen
    };
    let ((), seen) = tokio::join!(writing, reading);
    assert_eq!(seen, (1..=15).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_follower_of_no_log_waits_for_its_first_line() {
    let dir = tempfile::tempdir().unwrap();
    let logs = open(dir.path(), 1 << 20);
    let scope = LogScope::new("later").unwrap();
    let mut follower = logs.follow(&scope).unwrap();
    let (lines, ()) = tokio::join!(follower.next(), logs.append(&scope, vec![line(1, "first")]));
    assert_eq!(messages(&lines.unwrap().unwrap()), ["first"]);
}

#[tokio::test]
async fn a_line_that_was_cut_short_is_dropped_and_swallows_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let scope = LogScope::new("torn").unwrap();
    let logs = open(dir.path(), 1 << 20);
    logs.append(&scope, vec![line(1, "whole")]).await;
    logs.flush().await;
    drop(logs);
    let path = segment::path_of(&dir.path().join("logs/torn"), 1);
    let mut text = fs::read(&path).unwrap();
    text.extend_from_slice(b"2\tstream\tcut sho");
    fs::write(&path, text).unwrap();
    let logs = open(dir.path(), 1 << 20);
    logs.append(&scope, vec![line(3, "after")]).await;
    logs.flush().await;
    assert_eq!(
        messages(&logs.tail(&scope, 10, None).unwrap()),
        ["whole", "after"]
    );
}

#[test]
fn names_that_are_no_file_names_are_refused() {
    for name in ["", ".", "..", "a/b", "a\0b", "a b", &"x".repeat(129)] {
        assert_eq!(LogScope::new(name), None, "{name:?}");
    }
}

proptest! {
    #[test]
    fn a_line_comes_back_whole(unix_ms: u64, message in "\\PC*|[\\r\\n\\\\\\t]*") {
        let line = line(unix_ms, &message);
        let mut text = Vec::new();
        line.write_to(&mut text);
        prop_assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1);
        prop_assert_eq!(LogLine::parse(&text[..text.len() - 1]), Some(line));
    }

    #[test]
    fn damaged_text_never_panics(text in proptest::collection::vec(any::<u8>(), 0..64)) {
        drop(LogLine::parse(&text));
    }
}
