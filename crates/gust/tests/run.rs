//! `gust run` as its users run it: real programs of a real image in jailed micro-VMs.

mod common;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    process::{Child, Command, Output, Stdio},
};

use common::{gust, gust_run, runtimes, text};

fn sh(script: &str) -> Option<Output> {
    let mut command = gust_run()?;
    Some(
        command
            .args(["provided.al2023", "--", "sh", "-c", script])
            .output()
            .expect("start gust run"),
    )
}

fn python(options: &[&str], script: &str) -> Option<Command> {
    let mut command = gust_run()?;
    command
        .args(options)
        .args(["python3.11", "--", "python3", "-c", script]);
    Some(command)
}

/// Starts a program and waits for its first line, which says that it has come to where the test wants it.
fn started(command: &mut Command) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start gust run");
    let mut stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("read the first line");
    assert_eq!(line, "ready\n");
    (child, stdout)
}

fn send(child: &Child, signal: &str) {
    let status = Command::new("kill")
        .args(["-s", signal, &child.id().to_string()])
        .status();
    assert!(status.expect("run kill").success());
}

#[test]
fn a_program_says_what_it_says_and_ends_as_it_ends() {
    let Some(output) = sh("echo out; echo err >&2; exit 7") else {
        return;
    };
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(
        (text(&output.stdout), text(&output.stderr)),
        ("out\n".into(), "err\n".into())
    );
    let killed = sh("kill -s KILL $$").expect("there is an image");
    assert_eq!(killed.status.code(), Some(137));
}

#[test]
fn programs_that_are_not_there_or_cannot_start_have_codes() {
    let Some(mut command) = gust_run() else { return };
    let output = command.args(["python3.11", "no-such-program"]).output().unwrap();
    assert_eq!(output.status.code(), Some(127));
    assert!(text(&output.stderr).contains("start no-such-program: No such file or directory"));
    let output = gust_run()
        .unwrap()
        .args(["python3.11", "/etc/passwd"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(126));
    assert!(text(&output.stderr).contains("start /etc/passwd: Permission denied"));
}

#[test]
fn a_program_becomes_another() {
    // How scripts of entry points end; each program leaves its memory behind.
    let Some(output) =
        sh("echo first; exec env NAME=second sh -c 'echo \"$NAME in $$\"; exec no-such-program'")
    else {
        return;
    };
    assert_eq!(output.status.code(), Some(127), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "first\nsecond in 1\n");
    let countdown = r#"[ "$1" = 0 ] && echo done && exit 3; exec sh -c "$0" "$0" $(($1 - 1))"#;
    let output = gust_run()
        .expect("there is an image")
        .args(["provided.al2023", "--", "sh", "-c", countdown, countdown, "300"])
        .output()
        .expect("start gust run");
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout), "done\n");
    let script = "\
import os, sys, threading, time
for _ in range(8):
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
reader, writer = os.pipe()
os.set_inheritable(reader, True)
os.write(writer, b'kept')
then = f'import os, threading; print(os.read({reader}, 9), threading.active_count(), os.getpid())'
os.execv(sys.executable, [sys.executable, '-c', then])";
    let Some(mut command) = python(&[], script) else {
        return;
    };
    let output = command.output().expect("start gust run");
    assert_eq!(text(&output.stdout), "b'kept' 1 1\n", "{}", text(&output.stderr));
}

#[test]
fn a_runtime_s_own_program_is_found_by_its_name() {
    let Some(mut command) = gust_run() else { return };
    if !runtimes().is_some_and(|directory| directory.join("nodejs20.x.img").is_file()) {
        eprintln!("NOT TESTED: there is no runtime nodejs20.x");
        return;
    }
    let output = command.args(["nodejs20.x", "--", "node", "-p", "6 * 7"]).output();
    let output = output.expect("start gust run");
    assert_eq!(text(&output.stdout), "42\n", "{}", text(&output.stderr));
}

#[test]
fn wrong_command_lines_are_code_125_and_say_why() {
    for (arguments, reason) in [
        (&["image"][..], "PROGRAM"),
        (&["--memory", "1", "image", "program"], "--memory 1"),
        (&["--timeout", "0", "image", "program"], "--timeout 0"),
        (&["--user", "me", "image", "program"], "--user \"me\""),
        (&["--env", "=x", "image", "program"], "--env \"=x\""),
        (&["--mount", "x", "image", "program"], "--mount \"x\""),
        (&["--workdir", "tmp", "image", "program"], "--workdir \"tmp\""),
        (&["no-such-image", "program"], "no runtime"),
        (&["/dev/null", "program"], "/dev/null"),
    ] {
        let output = gust().arg("run").args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(125), "{arguments:?}");
        let said = text(&output.stderr);
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
}

#[test]
fn the_options_reach_the_program() {
    let script =
        "import os; print(os.environ['A'], os.getcwd(), os.getuid(), os.getgid(), os.uname().nodename)";
    let options = [
        "--env",
        "A=b c",
        "--workdir",
        "/usr",
        "--user",
        "7:8",
        "--hostname",
        "box",
    ];
    let Some(mut command) = python(&options, script) else {
        return;
    };
    let output = command.output().unwrap();
    assert_eq!(
        text(&output.stdout),
        "b c /usr 7 8 box\n",
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn bytes_pass_through_unaltered_both_ways() {
    let Some(mut command) = gust_run() else { return };
    let mut child = command
        .args(["provided.al2023", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let sent: Vec<u8> = (0..3_000_001_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let expected = sent.clone();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || stdin.write_all(&sent));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stdout == expected);
}

#[test]
fn output_comes_while_the_program_runs_and_input_goes_to_it() {
    let script =
        "import sys; print('ready', flush=True); print('got', sys.stdin.readline(), end='', flush=True)";
    let Some(mut command) = python(&[], script) else {
        return;
    };
    let (mut child, mut stdout) = started(&mut command);
    child.stdin.as_mut().unwrap().write_all(b"this\n").unwrap();
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "got this\n");
    // Its input is still open: a program that does not read it ends all the same.
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_reader_that_reads_nothing_stops_the_program_and_one_that_is_gone_ends_it() {
    // What lies between the two ends is bounded, so the counter stands still long before the end.
    let script = "
import os, signal, sys
signal.signal(signal.SIGUSR1, lambda *_: (os.write(2, b'%d\\n' % written), None))
written = 0
print('ready', flush=True)
while True:
    written += os.write(1, bytes(65536))
";
    let Some(mut command) = python(&[], script) else {
        return;
    };
    let (mut child, stdout) = started(&mut command);
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut ask = || {
        send(&child, "USR1");
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        line.trim().parse::<u64>().unwrap()
    };
    // Two answers that agree: it stands. As many as it takes, since nothing says when it does.
    let mut last = ask();
    loop {
        let now = ask();
        if now == last && now > 0 {
            break;
        }
        last = now;
    }
    assert!(last <= 1 << 20, "{last} bytes are held somewhere");
    drop(stdout);
    assert_eq!(
        child.wait().unwrap().code(),
        Some(1),
        "Python ends with BrokenPipeError"
    );
}

#[test]
fn signals_are_the_programs_and_the_second_kills() {
    let script = "
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
print('ready', flush=True)
while True: pass
";
    let Some(mut command) = python(&[], script) else {
        return;
    };
    let (mut child, _stdout) = started(&mut command);
    send(&child, "TERM");
    assert_eq!(child.wait().unwrap().code(), Some(5));

    let deaf = "
import os, signal
signal.signal(signal.SIGINT, lambda *_: os.write(1, b'ready\\n'))
os.write(1, b'ready\\n')
while True: signal.pause()
";
    let (mut child, mut stdout) = started(&mut python(&[], deaf).unwrap());
    send(&child, "INT");
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    send(&child, "INT");
    assert_eq!(child.wait().unwrap().code(), Some(137));
}

#[test]
fn time_and_memory_are_bounded() {
    let Some(mut command) = python(&["--timeout", "0.2"], "while True: pass") else {
        return;
    };
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(124));
    assert!(text(&output.stderr).contains("killed after 0.2 s"));
    let output = python(&["--memory", "64"], "x = bytearray(300 << 20)")
        .unwrap()
        .output()
        .unwrap();
    assert_ne!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("emory"), "{}", text(&output.stderr));
}

#[test]
fn directories_are_taken_in_and_seen_as_they_are() {
    let Some(mut command) = gust_run() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (source, cache) = (dir.path().join("source"), dir.path().join("cache"));
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "one\n").unwrap();
    let mount = format!("{}:/mnt", source.display());
    let arguments = ["--mount", &mount, "provided.al2023", "--", "cat", "/mnt/file"];
    let output = command
        .env("GUST_CACHE", &cache)
        .args(arguments)
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "one\n", "{}", text(&output.stderr));
    fs::write(source.join("file"), "another\n").unwrap();
    let output = gust_run()
        .unwrap()
        .env("GUST_CACHE", &cache)
        .args(arguments)
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "another\n", "{}", text(&output.stderr));
    assert_eq!(fs::read_dir(cache.join("images")).unwrap().count(), 2);
}

#[test]
fn what_a_program_used_is_told() {
    let Some(mut command) = gust_run() else { return };
    let output = command
        .args(["--stats=json", "provided.al2023", "echo", "x"])
        .output()
        .unwrap();
    let stats: serde_json::Value = serde_json::from_slice(&output.stderr).expect("JSON on standard error");
    assert_eq!(stats["system_calls"]["exit_group"], 1);
    assert!(
        stats["exits"].as_u64() > Some(10) && stats["run_ns"].as_u64() > Some(0),
        "{stats}"
    );
}

/// What the README tells its reader to type, as it stands there.
#[test]
fn the_readmes_examples_run() {
    let (Some(_), Some(runtimes)) = (gust_run(), runtimes()) else {
        return;
    };
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let readme = fs::read_to_string(format!("{root}/README.md")).expect("read the README");
    let examples: Vec<&str> = readme
        .lines()
        .filter(|line| line.starts_with("gust run ") || line.contains("| gust run "))
        .collect();
    assert_eq!(examples.len(), 3, "{examples:?}");
    let hello = fs::read_to_string(format!("{root}/examples/hello/app.py")).expect("read the example");
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_gust"));
    let path = std::env::var("PATH").unwrap_or_default();
    let data_dir = runtimes.parent().expect("the directory lies in a data directory");
    for (example, expected) in examples.iter().zip(["3\n", "45\n", &format!("{hello}\n")]) {
        let output = Command::new("sh")
            .args(["-c", example])
            .current_dir(root)
            .env(
                "PATH",
                format!(
                    "{}:{path}",
                    program.parent().expect("it lies somewhere").display()
                ),
            )
            .env("GUST_DATA_DIR", data_dir)
            .output()
            .expect("start a shell");
        assert_eq!(
            text(&output.stdout),
            expected,
            "{example}: {}",
            text(&output.stderr)
        );
    }
}
