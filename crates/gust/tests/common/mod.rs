//! Starts the real program for process tests, and talks to it with nothing but a socket.

#![allow(
    dead_code,
    clippy::allow_attributes,
    reason = "each test program uses its own part"
)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Output, Stdio},
    time::Duration,
};

/// Longest wait for an answer: a failure, not a figure.
const TIMEOUT: Duration = Duration::from_secs(60);

const CREATE: &str = r#"{"FunctionName":"NAME","Runtime":"python3.11","Handler":"app.handler",
    "Role":"arn:aws:iam::000000000000:role/r","Code":{"ZipFile":"ZIP"}}"#;

/// The package of one empty file `app.py`, in base64.
const SMALL_ZIP: &str = "UEsDBBQAAAAAAAAAIQAAAAAAAAAAAAAAAAAGAAAAYXBwLnB5UEsBAhQDFAAAAAAAAAAhAAAAAAAAAAAAAAAAAAYAAAAAAAAAAAAAAKSBAAAAAGFwcC5weVBLBQYAAAAAAQABADQAAAAkAAAAAAA=";

/// The program under test, with nothing of the caller's configuration.
pub fn gust() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gust"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("GUST_")) {
        command.env_remove(name);
    }
    command.env("GUST_CONFIG", "/dev/null").stdin(Stdio::null());
    // The same tests hold for every wall around functions.
    if let Some(isolation) = std::env::var_os("GUST_TEST_ISOLATION") {
        command.env("GUST_ISOLATION", isolation);
    }
    command
}

/// Runs the program to its end.
pub fn run(arguments: &[&str]) -> Output {
    gust().args(arguments).output().expect("start gust")
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The directory with runtime images, or a loud skip.
pub fn runtimes() -> Option<PathBuf> {
    let dir = std::env::var_os("GUST_TEST_RUNTIMES").map(PathBuf::from);
    let found = dir.filter(|dir| dir.join("python3.11.img").is_file());
    if found.is_none() {
        eprintln!("SKIPPED: GUST_TEST_RUNTIMES names no directory with python3.11.img");
    }
    found
}

/// `gust run` with the runtimes of these tests, up to its options, or a loud skip.
pub fn gust_run() -> Option<Command> {
    let runtimes = runtimes()?;
    let kvm = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    if kvm.is_err() {
        eprintln!("SKIPPED: /dev/kvm cannot be opened");
        return None;
    }
    let data_dir = runtimes.parent().expect("the directory lies in a data directory");
    let mut command = gust();
    command.arg("run").arg("--data-dir").arg(data_dir);
    Some(command)
}

/// A running server; killed when dropped.
pub struct Server {
    child: Child,
    pub address: String,
}

impl Server {
    /// Starts a server on a data directory and a free port, and waits until it takes calls.
    pub fn start(data_dir: &Path, arguments: &[&str]) -> Self {
        let mut command = gust();
        command
            .args(["up", "--quiet", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(data_dir)
            .args(arguments)
            .stderr(Stdio::piped());
        Self::start_as(&mut command)
    }

    /// Starts a server by a command, and waits until it takes calls.
    pub fn start_as(command: &mut Command) -> Self {
        let command = command.stdout(Stdio::piped());
        let mut child = command.spawn().expect("start gust up");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("stdout is piped");
        BufReader::new(stdout)
            .read_line(&mut line)
            .expect("read what gust up prints");
        let Some((_, address)) = line.trim().rsplit_once("http://") else {
            let mut stderr = String::new();
            if let Some(mut pipe) = child.stderr.take() {
                pipe.read_to_string(&mut stderr)
                    .expect("read what gust up complains of");
            }
            panic!("gust up did not start: {line:?} {stderr}");
        };
        Self {
            address: address.to_owned(),
            child,
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal to the server.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args(["-s", name, &self.pid().to_string()])
            .status();
        assert!(status.expect("run kill").success());
    }

    /// Waits for the server's end.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("wait for gust up")
    }

    /// Kills the server as a loss of power would: at once.
    pub fn kill(mut self) {
        self.child.kill().expect("kill gust up");
        assert_eq!(self.wait().signal(), Some(9));
    }

    /// Runs a command of the program against this server.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        let endpoint = format!("http://{}", self.address);
        gust()
            .args(arguments)
            .env("GUST_ENDPOINT", endpoint)
            .output()
            .expect("start gust")
    }

    /// Sends a request and receives status and body.
    pub fn request(&self, method: &str, path: &str, body: &[u8]) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).expect("connect to gust up");
        stream.set_read_timeout(Some(TIMEOUT)).expect("set a timeout");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream
            .write_all(head.as_bytes())
            .and_then(|()| stream.write_all(body))
            .expect("send a request");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("receive an answer");
        let answer = text(&answer);
        let status = answer
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .expect("an HTTP status");
        let body = answer
            .split_once("\r\n\r\n")
            .map(|(_, body)| body.to_owned())
            .unwrap_or_default();
        (status, body)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Makes a function that does nothing.
pub fn create(server: &Server, name: &str) -> (u16, String) {
    let body = CREATE.replace("NAME", name).replace("ZIP", SMALL_ZIP);
    server.request("POST", "/2015-03-31/functions", body.as_bytes())
}

/// A directory with one Python function.
pub fn project(source: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("make a directory");
    std::fs::write(dir.path().join("app.py"), source).expect("write a function");
    dir
}

/// A data directory that has the runtimes.
pub fn data_dir(runtimes: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("make a directory");
    std::os::unix::fs::symlink(runtimes, dir.path().join("runtimes")).expect("link the runtimes");
    dir
}
