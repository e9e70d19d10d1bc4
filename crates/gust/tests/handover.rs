//! `gust up --take-over` as processes: when it is refused, and what the running server does when whoever takes over does
//! not serve. That calls go on meanwhile is tested in tests/aws/test_cluster.py.

mod common;

use std::{
    fs::File,
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::Path,
    thread,
};

use common::{Server, create, data_dir, run, runtimes, text};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendFlags,
    SocketAddrUnix, SocketType, connect, recvmsg, sendmsg, socket,
};

/// Reads the store.
const FUNCTIONS: &str = "/2015-03-31/functions";

fn take_over(data_dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut all = vec!["up", "--take-over", "--data-dir", data_dir.to_str().unwrap()];
    all.extend(arguments);
    let output = run(&all);
    (output.status.code(), text(&output.stderr))
}

fn serves(server: &Server) -> bool {
    server.request("GET", FUNCTIONS, b"").0 == 200
}

/// A real server takes over from `old`, which ends well.
fn is_taken_over(data_dir: &Path, mut old: Server, arguments: &[&str]) -> Server {
    let new = Server::start(data_dir, &[&["--take-over"], arguments].concat());
    assert_eq!(new.address, old.address);
    assert_eq!(old.wait().code(), Some(0));
    assert!(serves(&new));
    new
}

#[test]
fn one_that_takes_over_from_nobody_starts() {
    let dir = tempfile::tempdir().unwrap();
    let beneath = dir.path().join("data");
    let server = Server::start(&beneath, &["--take-over"]);
    assert!(serves(&server));
    server.kill();
    // Its socket is there still, and nobody behind it.
    assert!(serves(&Server::start(&beneath, &["--take-over"])));
}

#[test]
fn another_address_is_refused_and_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let old = Server::start(dir.path(), &["--cluster-listen", "127.0.0.1:0"]);
    let (code, stderr) = take_over(dir.path(), &["--listen", "127.0.0.1:1"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stderr.contains(&format!("listens at {}", old.address)) && stderr.contains("--listen"),
        "{stderr}"
    );
    // Nodes could not link to it any more.
    let (code, stderr) = take_over(dir.path(), &["--listen", &old.address]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stderr.contains("nodes link to the running server") && stderr.contains("add --cluster-listen"),
        "{stderr}"
    );
    let arguments = ["--listen", &old.address, "--cluster-listen", "127.0.0.1:1"];
    let (code, stderr) = take_over(dir.path(), &arguments);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("take over with --cluster-listen"), "{stderr}");
    assert!(serves(&old));
    is_taken_over(dir.path(), old, &["--cluster-listen", "127.0.0.1:0"]);
}

#[test]
fn a_port_for_nodes_can_come_with_the_new_server() {
    let dir = tempfile::tempdir().unwrap();
    let old = Server::start(dir.path(), &[]);
    is_taken_over(dir.path(), old, &["--cluster-listen", "127.0.0.1:0"]);
}

#[test]
fn whoever_has_the_data_directory_and_does_not_answer_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let lock = File::create(dir.path().join("lock")).unwrap();
    lock.lock().unwrap();
    let (code, stderr) = take_over(dir.path(), &["--listen", "127.0.0.1:0"]);
    assert_eq!(code, Some(1), "{stderr}");
    assert!(
        stderr.contains("does not answer") && stderr.contains("without --take-over"),
        "{stderr}"
    );
}

#[test]
fn a_server_that_does_not_answer_in_time_is_told_and_serves_when_it_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let old = Server::start(dir.path(), &[]);
    old.signal("STOP");
    let (code, stderr) = take_over(dir.path(), &["--listen", "127.0.0.1:0"]);
    old.signal("CONT");
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("has not answered within 10 s"), "{stderr}");
    assert!(serves(&old));
    is_taken_over(dir.path(), old, &[]);
}

/// A process that says that it takes over, as far as a test wants.
struct Successor(OwnedFd);

impl Successor {
    fn new(data_dir: &Path) -> Self {
        let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        let path = data_dir.join("handover.sock");
        connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        Self(socket)
    }

    fn says(&self, message: &str) {
        let text = format!("{message}\n");
        let mut nothing = SendAncillaryBuffer::default();
        let slices = [IoSlice::new(text.as_bytes())];
        sendmsg(&self.0, &slices, &mut nothing, SendFlags::NOSIGNAL).unwrap();
    }

    /// What the server says, with how many sockets.
    fn hears(&self) -> (String, usize) {
        let mut bytes = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(&self.0, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        let sockets = control.drain().map(|message| match message {
            RecvAncillaryMessage::ScmRights(sockets) => sockets.count(),
            _ => 0,
        });
        (text(&bytes[..received.bytes]), sockets.sum())
    }

    /// Gets the sockets.
    fn prepares(&self) {
        self.says(r#"{"Hello":{"version":1,"pid":1}}"#);
        let (said, sockets) = self.hears();
        assert!(said.contains("Listeners"), "{said}");
        assert_eq!(sockets, 1);
    }

    /// Gets the store.
    fn takes_the_store(&self) {
        self.prepares();
        self.says(r#""Ready""#);
        let (said, _) = self.hears();
        assert!(said.contains("Store"), "{said}");
    }
}

#[test]
fn a_successor_that_ends_before_it_is_ready_harms_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let old = Server::start(dir.path(), &[]);
    // It says nothing.
    drop(Successor::new(dir.path()));
    let other_version = Successor::new(dir.path());
    other_version.says(r#"{"Hello":{"version":77,"pid":1}}"#);
    let (said, sockets) = other_version.hears();
    assert!(said.contains("Refused") && said.contains("77"), "{said}");
    assert_eq!(sockets, 0);
    Successor::new(dir.path()).says("what is no message");
    Successor::new(dir.path()).prepares();
    assert!(serves(&old));
    is_taken_over(dir.path(), old, &[]);
}

#[test]
fn the_store_is_taken_back_from_a_successor_that_fails_before_it_serves() {
    let Some(runtimes) = runtimes() else { return };
    let dir = data_dir(&runtimes);
    let old = Server::start(dir.path(), &[]);
    assert_eq!(create(&old, "before").0, 201);
    let lock = File::options()
        .read(true)
        .write(true)
        .open(dir.path().join("lock"));
    let lock = lock.unwrap();
    assert!(lock.try_lock().is_err(), "the server has the data directory");
    for again in [false, true] {
        let successor = Successor::new(dir.path());
        successor.takes_the_store();
        // It has been let go of.
        lock.try_lock().unwrap();
        thread::scope(|scope| {
            // It waits, and is answered by whoever serves then.
            let waiting = scope.spawn(|| serves(&old));
            if again {
                // This one speaks, but not to the point.
                successor.says(r#""Ready""#);
            } else {
                drop(successor);
            }
            // The old server tries again and again to get the data directory.
            lock.unlock().unwrap();
            assert!(waiting.join().unwrap());
        });
        assert!(
            lock.try_lock().is_err(),
            "the server has the data directory again"
        );
    }
    assert_eq!(create(&old, "after").0, 201);
    let new = is_taken_over(dir.path(), old, &[]);
    let (_, listed) = new.request("GET", FUNCTIONS, b"");
    assert!(
        listed.contains("\"before\"") && listed.contains("\"after\""),
        "{listed}"
    );
}
