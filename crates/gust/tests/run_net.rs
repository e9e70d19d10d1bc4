//! The way out of a program in a micro-VM: real connections to servers of this test, through worker, node and policy.

mod common;

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread::{self, JoinHandle},
};

use common::{gust, gust_run, runtimes, text};

/// A Python program with this way out, or a loud skip.
fn python(net: &[String], script: &str) -> Option<Command> {
    let mut command = gust_run()?;
    command.args(["--timeout", "60"]);
    for rule in net {
        command.args(["--net", rule]);
    }
    command.args(["python3.11", "--", "python3", "-c", script]);
    Some(command)
}

/// A server for one connection, and the rule that lets a guest reach it.
fn server<T: Send + 'static>(
    serve: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (String, u16, JoinHandle<T>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = thread::spawn(move || serve(listener.accept().unwrap().0));
    (format!("host:{port}"), port, thread)
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect()
}

#[test]
fn bytes_pass_both_ways_and_each_half_ends_by_itself() {
    if runtimes().is_none() {
        return;
    }
    // The server hears all, to the end of the guest's half, before it says a word.
    let (rule, port, served) = server(|mut stream| {
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        stream.write_all(&heard).unwrap();
        heard
    });
    let script = format!(
        "
import socket, sys
s = socket.create_connection(('127.0.0.1', {port}))
assert s.getpeername() == ('127.0.0.1', {port}), s.getpeername()
sent = bytes((n * 2654435761 & 0xffffffff) >> 13 & 0xff for n in range(1500001))
s.sendall(sent)
s.shutdown(socket.SHUT_WR)
got = b''
while piece := s.recv(1 << 20): got += piece
print(got == sent)
"
    );
    let Some(mut command) = python(&[rule], &script) else {
        return;
    };
    assert_eq!(said(&command.output().unwrap()), "True\n");
    assert!(served.join().unwrap() == pattern(1_500_001));
}

#[test]
fn what_was_sent_before_the_end_arrives() {
    let (rule, port, served) = server(|mut stream| {
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).unwrap();
        heard.len()
    });
    let script = format!(
        "
import os, socket
s = socket.create_connection(('127.0.0.1', {port}))
s.sendall(bytes(400000))
os._exit(0)
"
    );
    let Some(mut command) = python(&[rule], &script) else {
        return;
    };
    said(&command.output().unwrap());
    assert_eq!(served.join().unwrap(), 400_000);
}

#[test]
fn errors_have_their_numbers() {
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let script = format!(
        "
import errno, socket
def tried(address, **options):
    try:
        socket.create_connection(address, **options)
        return 'connected'
    except OSError as error:
        return errno.errorcode.get(error.errno, error)
for address in [('127.0.0.1', {closed}), ('127.0.0.1', 1), ('10.0.0.1', 80), ('169.254.169.254', 80)]:
    print(tried(address), tried(address, timeout=20))
"
    );
    let Some(mut command) = python(&[format!("host:{closed}")], &script) else {
        return;
    };
    let expected = "ECONNREFUSED ECONNREFUSED\n".repeat(2) + &"EACCES EACCES\n".repeat(2);
    assert_eq!(said(&command.output().unwrap()), expected);
    // Without a way out there is no network.
    let output = python(&[], &script).unwrap().output().unwrap();
    let expected = "ECONNREFUSED ECONNREFUSED\n".repeat(2) + &"ENETUNREACH ENETUNREACH\n".repeat(2);
    assert_eq!(said(&output), expected);
}

#[test]
fn a_connection_that_is_reset_says_so_after_what_came_before() {
    let (rule, port, served) = server(|mut stream| {
        stream.write_all(b"before").unwrap();
        // Wait until there is something that is not read: closing is a reset then.
        stream.peek(&mut [0]).unwrap();
    });
    let script = format!(
        "
import errno, socket
s = socket.create_connection(('127.0.0.1', {port}))
s.sendall(b'unread')
print(s.recv(6, socket.MSG_WAITALL).decode())
try: print('end', s.recv(1))
except OSError as error: print(errno.errorcode[error.errno])
"
    );
    let Some(mut command) = python(&[rule], &script) else {
        return;
    };
    assert_eq!(said(&command.output().unwrap()), "before\nECONNRESET\n");
    served.join().unwrap();
}

#[test]
fn edges_and_levels_are_told_by_epoll() {
    let (go, went) = mpsc::channel();
    let (rule, port, served) = server(move |mut stream| {
        let mut word = [0; 4];
        stream.read_exact(&mut word).unwrap();
        stream.write_all(b"one").unwrap();
        went.recv().unwrap();
        stream.write_all(b"two").unwrap();
        stream.read_exact(&mut word).unwrap();
    });
    let script = format!(
        "
import select, socket, sys
s = socket.socket(); s.setblocking(False)
e = select.epoll(); e.register(s, select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
print(s.connect_ex(('127.0.0.1', {port})))
while not e.poll()[0][1] & select.EPOLLOUT: pass
print(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), s.send(b'word'))
while not e.poll()[0][1] & select.EPOLLIN: pass
print('readable', flush=True)
print(e.poll(0), s.recv(100).decode(), flush=True)
sys.stdin.readline()
while not e.poll()[0][1] & select.EPOLLIN: pass
print(s.recv(100).decode())
try: s.recv(1)
except BlockingIOError: print('no more')
s.send(b'word')
"
    );
    let Some(mut command) = python(&[rule], &script) else {
        return;
    };
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut line = || lines.next().unwrap().unwrap();
    // EINPROGRESS, then no error and four bytes sent.
    assert_eq!([line(), line(), line()], ["115", "0 4", "readable"]);
    // Its edge has been told, although it has not been read yet.
    assert_eq!(line(), "[] one");
    go.send(()).unwrap();
    child.stdin.take().unwrap().write_all(b"on\n").unwrap();
    assert_eq!([line(), line()], ["two", "no more"]);
    assert!(child.wait().unwrap().success());
    served.join().unwrap();
}

#[test]
fn a_server_that_does_not_read_stops_the_sender() {
    let (done, is_done) = mpsc::channel::<()>();
    let (rule, port, served) = server(move |stream| {
        // Nothing is read until the guest has ended.
        let _ = is_done.recv();
        drop(stream);
    });
    let script = format!(
        "
import select, socket
s = socket.create_connection(('127.0.0.1', {port}))
s.setblocking(False)
p = select.poll(); p.register(s, select.POLLOUT)
sent = 0
while p.poll(2000):
    try: sent += s.send(bytes(65536))
    except BlockingIOError: pass
print(sent, flush=True)
"
    );
    let Some(mut command) = python(&[rule], &script) else {
        return;
    };
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut heard = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut heard)
        .unwrap();
    drop(done);
    let sent: u64 = heard.trim().parse().expect("a number of bytes");
    // What lies between: the guest's buffer, a pipe, and the sockets of this machine, which grow to some MiB.
    assert!((1..64 << 20).contains(&sent), "{sent}");
    served.join().unwrap();
    child.wait().unwrap();
}

#[test]
fn datagrams_go_where_they_may_and_come_from_there() {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let script = format!(
        "
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.sendto(b'refused', ('10.0.0.1', 9))
s.sendto(b'question', ('127.0.0.1', {port}))
print(*s.recvfrom(100))
c = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
c.connect(('127.0.0.1', {port}))
c.send(bytes(60000))
print(len(c.recv(70000)))
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'last', ('127.0.0.1', {port}))
"
    );
    let Some(mut command) = python(&[format!("host:{port}")], &script) else {
        return;
    };
    let served = thread::spawn(move || {
        let mut buffer = vec![0; 70_000];
        let mut heard = Vec::new();
        for _ in 0..3 {
            let (count, from) = socket.recv_from(&mut buffer).unwrap();
            heard.push(count);
            socket.send_to(&buffer[..count], from).unwrap();
        }
        heard
    });
    let heard = said(&command.output().unwrap());
    assert_eq!(heard, format!("b'question' ('127.0.0.1', {port})\n60000\n"));
    assert_eq!(served.join().unwrap(), [8, 60_000, 4]);
}

#[test]
fn rules_that_are_none_are_code_125() {
    for rule in ["all", "10.0.0.1/8", "host:", "1.2.3.4:x"] {
        let output = gust()
            .args(["run", "--net", rule, "image", "program"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(125), "{rule}");
        assert!(text(&output.stderr).contains(rule), "{}", text(&output.stderr));
    }
}
