//! `gust up` on sockets that it was given, as by systemd: a shell puts them where it would.

mod common;

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use common::{Server, gust, text};

/// Begins the program with sockets at descriptors 3 and 4, as far as there are any: they come as the standard descriptors.
const ACTIVATE: &str = r#"exec 3<&0 4<&2 2>/dev/null </dev/null; LISTEN_PID=${PID:-$$} exec "$@""#;
/// With one socket.
const ACTIVATE_ONE: &str = r#"exec 3<&0 </dev/null; LISTEN_PID=${PID:-$$} exec "$@""#;

/// Longest wait for someone to answer: a failure, not a figure.
const PATIENCE: Duration = Duration::from_secs(60);

fn activated(
    data_dir: &Path,
    first: impl Into<OwnedFd>,
    second: Option<TcpListener>,
    names: &str,
) -> Command {
    let gust = gust();
    let mut command = Command::new("sh");
    let script = if second.is_some() { ACTIVATE } else { ACTIVATE_ONE };
    command.args(["-c", script, "sh"]).arg(gust.get_program());
    for (name, value) in gust.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
        .args(["up", "--quiet", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(data_dir)
        .env("LISTEN_FDS", if second.is_some() { "2" } else { "1" })
        .env("LISTEN_FDNAMES", names)
        .stdin(Stdio::from(first.into()));
    if let Some(second) = second {
        command.stderr(Stdio::from(OwnedFd::from(second)));
    }
    command
}

fn listener() -> TcpListener {
    TcpListener::bind("127.0.0.1:0").expect("bind a socket")
}

/// Sockets of the processes beneath one, as links like `socket:[INODE]`.
fn sockets_beneath(pid: u32) -> Vec<String> {
    let mut sockets = Vec::new();
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return sockets;
    };
    for thread in threads.flatten() {
        let children = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            let open = fs::read_dir(format!("/proc/{child}/fd"))
                .into_iter()
                .flatten()
                .flatten();
            sockets.extend(
                open.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.to_str()?.to_owned())),
            );
            sockets.extend(sockets_beneath(child.parse().expect("a process id")));
        }
    }
    sockets
}

#[test]
fn it_serves_on_the_socket_that_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let socket = listener();
    let address = socket.local_addr().unwrap().to_string();
    let request = format!("GET /_gust/v1/health HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    // It arrives before there is a server.
    let mut early = TcpStream::connect(&address).unwrap();
    early.write_all(request.as_bytes()).unwrap();
    let again = || socket.try_clone().unwrap();
    let mut server = Server::start_as(&mut activated(dir.path(), again(), None, "gust.socket"));
    assert_eq!(server.address, address);
    let mut answer = String::new();
    early.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // Whoever runs functions has nothing of it.
    let inode = fs::read_link(format!("/proc/{}/fd/3", server.pid())).unwrap();
    let beneath = sockets_beneath(server.pid());
    assert!(
        !beneath.is_empty() && !beneath.contains(&inode.to_str().unwrap().to_owned()),
        "{beneath:?}"
    );

    server.signal("TERM");
    assert!(server.wait().success());
    // What comes while there is none waits for the next one.
    let mut late = TcpStream::connect(&address).unwrap();
    late.write_all(request.as_bytes()).unwrap();
    let _server = Server::start_as(&mut activated(dir.path(), again(), None, ""));
    answer.clear();
    late.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn a_socket_is_for_nodes_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let (api, cluster) = (listener(), listener());
    let address = api.local_addr().unwrap().to_string();
    let nodes = cluster.local_addr().unwrap();
    let names = "cluster:gust.socket";
    let server = Server::start_as(&mut activated(dir.path(), cluster, Some(api), names));
    assert_eq!(server.address, address);
    // A server without a port for nodes has none to throw out.
    let (status, body) = server.request("POST", "/_gust/v1/nodes/some-node/revoke", b"");
    assert_eq!((status, body.as_str()), (200, r#"{"was_linked":false}"#));
    // Someone is there: what is no handshake is answered or cut off.
    let mut stream = TcpStream::connect(nodes).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&[0; 64]).unwrap();
    let heard = stream.read(&mut [0; 64]).map_err(|error| error.kind());
    assert!(
        !matches!(heard, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)),
        "{heard:?}"
    );
}

#[test]
fn what_is_for_another_process_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let socket = listener();
    let address = socket.local_addr().unwrap().to_string();
    let server = Server::start_as(activated(dir.path(), socket, None, "").env("PID", "1"));
    assert_ne!(server.address, address);
}

#[test]
fn what_cannot_be_served_on_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |command: &mut Command, expected: &str| {
        let Output { status, stderr, .. } = command.output().unwrap();
        let stderr = text(&stderr);
        assert!(
            status.code() == Some(1) && stderr.contains(expected),
            "{status} {stderr}"
        );
    };
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    refused(
        &mut activated(dir.path(), datagrams, None, ""),
        "use descriptor 3, a socket according to LISTEN_FDS",
    );
    let silent = listener();
    let connected = TcpStream::connect(silent.local_addr().unwrap()).unwrap();
    refused(
        &mut activated(dir.path(), connected, None, ""),
        "it does not listen",
    );
    refused(
        activated(dir.path(), listener(), None, "").env("LISTEN_FDS", "2"),
        "there are 2 sockets for the API",
    );
    refused(
        activated(dir.path(), listener(), None, "cluster").env("LISTEN_FDS", "1000"),
        "LISTEN_FDS is \"1000\"",
    );
    assert!(
        fs::read_dir(dir.path()).unwrap().next().is_none(),
        "nothing was touched"
    );
}
