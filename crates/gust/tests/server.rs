//! The server as a process: how it starts, refuses to start, stops, and comes back.

mod common;

use std::{fs, net::TcpListener, process::Command};

use common::{Server, create, data_dir, gust, project, run, runtimes, text};

#[test]
fn a_port_in_use_is_told_before_anything_is_touched() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let output = run(&[
        "up",
        "--listen",
        &address,
        "--data-dir",
        data_dir.to_str().unwrap(),
    ]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains(&format!("cannot listen on {address}")) && stderr.contains("hint:"),
        "{stderr}"
    );
    assert!(!data_dir.exists());
}

#[test]
fn two_servers_cannot_share_a_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    let first = Server::start(dir.path(), &[]);
    let second = run(&[
        "up",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        dir.path().to_str().unwrap(),
    ]);
    let stderr = text(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{stderr}");
    assert!(
        stderr.contains(&format!("in use by process {}", first.pid())),
        "{stderr}"
    );
    assert!(
        stderr.contains(&dir.path().display().to_string()) && stderr.contains("--data-dir"),
        "{stderr}"
    );
    assert_eq!(
        first.request("GET", "/_gust/v1/health", b"").0,
        200,
        "the first one is none the worse"
    );
    first.kill();
    // The lock ends with its owner.
    Server::start(dir.path(), &[]);
}

#[test]
fn a_directory_that_cannot_be_written_is_told() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let beneath = file.path().join("data");
    let output = run(&[
        "up",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        beneath.to_str().unwrap(),
    ]);
    let stderr = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(&beneath.display().to_string()), "{stderr}");
}

#[test]
fn signals_stop_it_cleanly() {
    for signal in ["TERM", "INT"] {
        let dir = tempfile::tempdir().unwrap();
        let mut server = Server::start(dir.path(), &[]);
        server.signal(signal);
        assert_eq!(server.wait().code(), Some(0), "SIG{signal}");
    }
}

#[test]
fn bad_configurations_are_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("gust.toml");
    for (content, arguments, expected) in [
        ("lisen = '127.0.0.1:0'", &[][..], "lisen"),
        ("listen = 5", &[], "listen"),
        ("", &["--account-id", "12"], "twelve digits"),
        ("", &["--require-auth"], "no access key"),
        ("", &["--access-keys", "secretwithoutid"], "ID:SECRET"),
        ("", &["--log", "=="], "log filter"),
    ] {
        fs::write(&file, content).unwrap();
        let output = gust()
            .args(["up", "--config"])
            .arg(&file)
            .args(arguments)
            .output()
            .unwrap();
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(
            stderr.contains(expected) && !stderr.contains("secretwithoutid"),
            "{stderr}"
        );
    }
    let missing = gust()
        .args(["up", "--config", "/nonexistent/gust.toml"])
        .output()
        .unwrap();
    assert!(text(&missing.stderr).contains("/nonexistent/gust.toml"));
}

#[test]
fn what_was_acknowledged_is_there_after_kill_9() {
    let Some(runtimes) = runtimes() else { return };
    let dir = data_dir(&runtimes);
    let server = Server::start(dir.path(), &[]);
    for number in 0..10 {
        let (status, body) = create(&server, &format!("kept-{number}"));
        assert_eq!(status, 201, "{body}");
    }
    let tags = br#"{"Tags":{"a":"b"}}"#;
    let arn = "arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Afunction%3Akept-3";
    assert_eq!(
        server.request("POST", &format!("/2017-03-31/tags/{arn}"), tags).0,
        204
    );
    assert_eq!(
        server.request("DELETE", "/2015-03-31/functions/kept-4", b"").0,
        204
    );
    server.kill();

    let server = Server::start(dir.path(), &[]);
    let (_, listed) = server.request("GET", "/2015-03-31/functions", b"");
    for number in (0..10).filter(|number| *number != 4) {
        assert!(listed.contains(&format!("\"kept-{number}\"")), "{listed}");
    }
    assert!(!listed.contains("\"kept-4\""), "{listed}");
    assert!(
        server
            .request("GET", &format!("/2017-03-31/tags/{arn}"), b"")
            .1
            .contains(r#""a":"b""#)
    );
}

#[test]
fn running_calls_end_before_the_server_does() {
    let Some(runtimes) = runtimes() else { return };
    let dir = data_dir(&runtimes);
    let mut server = Server::start(dir.path(), &[]);
    let source = "import time\ndef handler(event, context):\n    print('began')\n    time.sleep(1)\n    return 'whole'\n";
    let code = project(source);
    let deployed = server.cli(&[
        "deploy",
        code.path().to_str().unwrap(),
        "--name",
        "slow",
        "--timeout",
        "10",
    ]);
    assert!(deployed.status.success(), "{}", text(&deployed.stderr));
    // The log tells that the call runs: only then is the signal sent.
    let mut follow = gust()
        .args([
            "logs",
            "slow",
            "-f",
            "-n",
            "0",
            "--endpoint",
            &format!("http://{}", server.address),
        ])
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(follow.stdout.take().unwrap()));
    let endpoint = format!("http://{}", server.address);
    let call = std::thread::spawn(move || {
        gust()
            .args(["invoke", "slow", "--endpoint", &endpoint])
            .output()
            .unwrap()
    });
    let seen = lines
        .map(Result::unwrap)
        .find(|line| line.ends_with("began") || line.contains("END RequestId"));
    assert!(
        seen.is_some_and(|line| line.ends_with("began")),
        "the call did not begin"
    );
    server.signal("TERM");
    let answer = call.join().unwrap();
    assert_eq!(
        text(&answer.stdout).trim(),
        "\"whole\"",
        "{}",
        text(&answer.stderr)
    );
    assert_eq!(server.wait().code(), Some(0));
    follow.wait().unwrap();
}

/// A small file system of its own, unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(mib: u32) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let size = format!("size={mib}m");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "tmpfs"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self(dir)),
            Ok(_) | Err(_) => {
                eprintln!("SKIPPED: a small file system cannot be mounted here (root is needed)");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(self.0.path()).status());
    }
}

#[test]
fn a_full_disk_refuses_and_leaves_nothing_behind() {
    let Some(runtimes) = runtimes() else { return };
    let Some(disk) = SmallDisk::mount(16) else { return };
    let dir = disk.0.path();
    std::os::unix::fs::symlink(&runtimes, dir.join("runtimes")).unwrap();
    let server = Server::start(dir, &[]);
    let (status, body) = create(&server, "before");
    assert_eq!(status, 201, "{body}");
    // What a neighbour takes of the disk.
    let filler = dir.join("filler");
    let mut size = 12 << 20;
    while size > 4096 {
        let mut content = fs::read(&filler).unwrap_or_default();
        content.resize(content.len() + size, 7);
        if fs::write(&filler, &content).is_err() {
            content.truncate(content.len() - size);
            fs::write(&filler, &content).unwrap();
            size /= 2;
        }
    }
    let big = project("x = 1\n");
    let noise: Vec<u8> = (0..2_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    fs::write(big.path().join("noise"), noise).unwrap();
    let refused = server.cli(&[
        "deploy",
        big.path().to_str().unwrap(),
        "--name",
        "big",
        "--handler",
        "app.x",
    ]);
    let stderr = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("no space left"), "{stderr}");
    assert_eq!(
        fs::read_dir(dir.join("blobs/tmp")).unwrap().count(),
        0,
        "nothing half written stays"
    );
    let (_, listed) = server.request("GET", "/2015-03-31/functions", b"");
    assert!(
        listed.contains("\"before\"") && !listed.contains("\"big\""),
        "{listed}"
    );

    fs::remove_file(&filler).unwrap();
    let (status, body) = create(&server, "after");
    assert_eq!(status, 201, "the disk has room again: {body}");
    server.kill();
    let server = Server::start(dir, &[]);
    let (_, listed) = server.request("GET", "/2015-03-31/functions", b"");
    assert!(
        listed.contains("\"before\"") && listed.contains("\"after\""),
        "{listed}"
    );
}
