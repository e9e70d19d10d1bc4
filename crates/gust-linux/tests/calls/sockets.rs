//! Sockets inside the guest. There is no network outside of it.

use crate::guest::{Came, Guest, SCRATCH, error};

const INET: u64 = libc::AF_INET as u64;
const STREAM: u64 = libc::SOCK_STREAM as u64;

fn address(guest: &mut Guest, ip: [u8; 4], port: u16) -> u64 {
    let mut bytes = vec![libc::AF_INET as u8, 0];
    bytes.extend(port.to_be_bytes());
    bytes.extend(ip);
    bytes.extend([0; 8]);
    guest.put(SCRATCH + 0x2000, &bytes)
}

fn listener(guest: &mut Guest, port: u16) -> u64 {
    let fd = guest.done(libc::SYS_socket, &[INET, STREAM, 0]) as u64;
    let at = address(guest, [127, 0, 0, 1], port);
    assert_eq!(guest.done(libc::SYS_bind, &[fd, at, 16]), 0);
    assert_eq!(guest.done(libc::SYS_listen, &[fd, 5]), 0);
    fd
}

/// A socket that is connected to a listener over loopback.
fn client(guest: &mut Guest, port: u16) -> u64 {
    let client = guest.done(libc::SYS_socket, &[INET, STREAM, 0]) as u64;
    let at = address(guest, [127, 0, 0, 1], port);
    assert_eq!(guest.done(libc::SYS_connect, &[client, at, 16]), 0);
    client
}

/// A connection over loopback: listener, client, server.
fn connection(guest: &mut Guest) -> (u64, u64, u64) {
    let listener = listener(guest, 8080);
    let client = client(guest, 8080);
    let server = guest.done(libc::SYS_accept4, &[listener, 0, 0, 0]) as u64;
    (listener, client, server)
}

#[test]
fn a_server_and_its_client_meet() {
    let mut guest = Guest::new();
    let (_, client, server) = connection(&mut guest);
    guest.put(SCRATCH, b"request");
    assert_eq!(guest.done(libc::SYS_sendto, &[client, SCRATCH, 7, 0, 0, 0]), 7);
    assert_eq!(guest.done(libc::SYS_read, &[server, SCRATCH + 0x100, 100]), 7);
    assert_eq!(guest.get(SCRATCH + 0x100, 7), b"request");
    assert_eq!(guest.done(libc::SYS_shutdown, &[client, libc::SHUT_WR as u64]), 0);
    assert_eq!(guest.done(libc::SYS_read, &[server, SCRATCH, 100]), 0);
    guest.done(libc::SYS_close, &[server]);
    assert_eq!(guest.done(libc::SYS_read, &[client, SCRATCH, 100]), 0);
}

/// A thread that waits for someone to accept.
fn accepting(guest: &mut Guest, listener: u64) -> usize {
    let thread = guest.thread();
    let accept = guest.call_on(thread, libc::SYS_accept, &[listener, 0, 0]);
    assert_eq!(accept, Came::Blocked);
    thread
}

#[test]
fn who_waits_to_accept_is_woken() {
    let mut guest = Guest::new();
    let listener = listener(&mut guest, 8080);
    let other = accepting(&mut guest, listener);
    client(&mut guest, 8080);
    assert!(matches!(guest.turn_of(other), Came::Back(fd) if fd > 0));
}

/// As servers end their loops: the thread that accepts is told, whoever waited to be accepted is refused, the name stays.
#[test]
fn a_listener_that_is_shut_down_wakes_who_accepts() {
    let mut guest = Guest::new();
    let waits = listener(&mut guest, 8080);
    let other = accepting(&mut guest, waits);
    // What only ends sending ends nothing here.
    let [read, write, both] = [libc::SHUT_RD, libc::SHUT_WR, libc::SHUT_RDWR].map(|how| how as u64);
    assert_eq!(guest.done(libc::SYS_shutdown, &[waits, write]), 0);
    assert_eq!(guest.turn_of(other), Came::Blocked);
    assert_eq!(guest.done(libc::SYS_shutdown, &[waits, both]), 0);
    assert_eq!(guest.turn_of(other), error(libc::EINVAL));
    assert_eq!(guest.fails(libc::SYS_shutdown, &[waits, read]), libc::ENOTCONN);

    let refuses = listener(&mut guest, 8081);
    let pending = client(&mut guest, 8081);
    assert_eq!(guest.done(libc::SYS_shutdown, &[refuses, read]), 0);
    let receive = [pending, SCRATCH, 8, 0, 0, 0];
    assert_eq!(guest.fails(libc::SYS_recvfrom, &receive), libc::ECONNRESET);
    let late = guest.done(libc::SYS_socket, &[INET, STREAM, 0]) as u64;
    let at = address(&mut guest, [127, 0, 0, 1], 8081);
    assert_eq!(
        guest.fails(libc::SYS_connect, &[late, at, 16]),
        libc::ECONNREFUSED
    );
    assert_eq!(guest.fails(libc::SYS_bind, &[late, at, 16]), libc::EADDRINUSE);
    assert_eq!(guest.done(libc::SYS_listen, &[refuses, 1]), 0);
    client(&mut guest, 8081);
}

/// Of a UNIX listener that is shut down who waits is still accepted, and nobody else.
#[test]
fn a_unix_listener_that_is_shut_down_takes_nobody_else() {
    let mut guest = Guest::new();
    let unix = libc::AF_UNIX as u64;
    let [waits, first, late] = [(); 3].map(|()| guest.done(libc::SYS_socket, &[unix, STREAM, 0]) as u64);
    let name = guest.put(SCRATCH, b"\x01\0\0name");
    assert_eq!(guest.done(libc::SYS_bind, &[waits, name, 7]), 0);
    assert_eq!(guest.done(libc::SYS_listen, &[waits, 4]), 0);
    assert_eq!(guest.done(libc::SYS_connect, &[first, name, 7]), 0);
    let other = guest.thread();
    assert!(matches!(guest.call_on(other, libc::SYS_accept, &[waits, 0, 0]), Came::Back(fd) if fd > 0));
    let again = guest.done(libc::SYS_socket, &[unix, STREAM, 0]) as u64;
    assert_eq!(guest.done(libc::SYS_connect, &[again, name, 7]), 0);
    assert_eq!(guest.done(libc::SYS_shutdown, &[waits, libc::SHUT_RD as u64]), 0);
    assert_eq!(
        guest.fails(libc::SYS_connect, &[late, name, 7]),
        libc::ECONNREFUSED
    );
    assert!(guest.done(libc::SYS_accept, &[waits, 0, 0]) > 0);
    assert_eq!(guest.fails(libc::SYS_accept, &[waits, 0, 0]), libc::EINVAL);
    // One that is nothing yet can be shut down.
    assert_eq!(guest.done(libc::SYS_shutdown, &[late, libc::SHUT_RDWR as u64]), 0);
}

#[test]
fn a_refused_connection_is_at_its_end() {
    let mut guest = Guest::new();
    let flags = STREAM | libc::SOCK_NONBLOCK as u64;
    let socket = guest.done(libc::SYS_socket, &[INET, flags, 0]) as u64;
    let receive = [socket, SCRATCH, 8, 0, 0, 0];
    assert_eq!(guest.fails(libc::SYS_recvfrom, &receive), libc::ENOTCONN);
    let at = address(&mut guest, [127, 0, 0, 1], 8080);
    let connect = [socket, at, 16];
    assert_eq!(guest.fails(libc::SYS_connect, &connect), libc::EINPROGRESS);
    assert_eq!(guest.fails(libc::SYS_recvfrom, &receive), libc::ECONNREFUSED);
    assert_eq!(guest.done(libc::SYS_recvfrom, &receive), 0);
    // It can be tried again once that has been asked for in vain, and is no longer at its end then.
    assert_eq!(guest.fails(libc::SYS_connect, &connect), libc::ECONNABORTED);
    let _server = listener(&mut guest, 8080);
    address(&mut guest, [127, 0, 0, 1], 8080);
    assert_eq!(guest.fails(libc::SYS_connect, &connect), libc::EINPROGRESS);
    assert_eq!(guest.fails(libc::SYS_recvfrom, &receive), libc::EAGAIN);
}

#[test]
fn bytes_can_be_dropped_unread() {
    let mut guest = Guest::new();
    let (_, client, server) = connection(&mut guest);
    guest.put(SCRATCH, b"0123456789");
    assert_eq!(guest.done(libc::SYS_sendto, &[client, SCRATCH, 10, 0, 0, 0]), 10);
    let place = guest.put(SCRATCH + 64, b"........");
    let cut = libc::MSG_TRUNC as u64;
    assert_eq!(guest.done(libc::SYS_recvfrom, &[server, place, 4, cut, 0, 0]), 4);
    // The place need not even be one.
    assert_eq!(guest.done(libc::SYS_recvfrom, &[server, 0, 2, cut, 0, 0]), 2);
    assert_eq!(guest.get(place, 8), b"........");
    assert_eq!(guest.done(libc::SYS_recvfrom, &[server, place, 8, 0, 0, 0]), 4);
    assert_eq!(guest.get(place, 4), b"6789");
}

/// A file that is sent waits for room, as bytes that are written do.
#[test]
fn a_file_is_sent_when_there_is_room() {
    let mut guest = Guest::new();
    let file = guest.open("/tmp/f", libc::O_CREAT | libc::O_RDWR) as u64;
    assert_eq!(guest.done(libc::SYS_ftruncate, &[file, 1 << 20]), 0);
    let (_, client, server) = connection(&mut guest);
    let from = guest.put(SCRATCH, &0u64.to_le_bytes());
    let send = [client, file, from, 1 << 20];
    let mut sent = 0;
    let other = guest.thread();
    loop {
        match guest.call_on(other, libc::SYS_sendfile, &send) {
            Came::Back(bytes) => sent += bytes,
            Came::Blocked => break,
            came @ Came::Ended => panic!("{came:?}"),
        }
        guest.put(from, &0u64.to_le_bytes());
        assert!(sent < 64 << 20, "there is room without end");
    }
    let receive = [server, SCRATCH + 64, 0x8000, 0, 0, 0];
    let mut received = 0;
    let more = loop {
        received += guest.done(libc::SYS_recvfrom, &receive);
        match guest.turn_of(other) {
            Came::Back(bytes) => break bytes,
            came => assert_eq!((came, received < sent), (Came::Blocked, true)),
        }
    };
    assert!(more > 0 && guest.word(from) == more as u64);
    // One that is not to wait is told so.
    let flags = libc::O_NONBLOCK as u64;
    guest.done(libc::SYS_fcntl, &[client, libc::F_SETFL as u64, flags]);
    let refused = loop {
        match guest.done(libc::SYS_sendfile, &[client, file, 0, 1 << 20]) {
            0 => guest.done(libc::SYS_lseek, &[file, 0, 0]),
            bytes if bytes < 0 => break bytes,
            bytes => bytes,
        };
    };
    assert_eq!(refused, -i64::from(libc::EAGAIN));
}

#[test]
fn there_is_no_way_out() {
    let mut guest = Guest::new();
    let socket = guest.done(libc::SYS_socket, &[INET, STREAM, 0]) as u64;
    let at = address(&mut guest, [127, 0, 0, 1], 9);
    assert_eq!(
        guest.fails(libc::SYS_connect, &[socket, at, 16]),
        libc::ECONNREFUSED
    );
    let socket = guest.done(libc::SYS_socket, &[INET, STREAM, 0]) as u64;
    let at = address(&mut guest, [10, 0, 0, 1], 80);
    assert_eq!(
        guest.fails(libc::SYS_connect, &[socket, at, 16]),
        libc::ENETUNREACH
    );
    let packet = libc::AF_PACKET as u64;
    assert_eq!(
        guest.call(libc::SYS_socket, &[packet, STREAM, 0]),
        error(libc::EAFNOSUPPORT)
    );
}

#[test]
fn a_port_is_taken_once() {
    let mut guest = Guest::new();
    let first = listener(&mut guest, 8080);
    let second = guest.done(libc::SYS_socket, &[INET, STREAM, 0]) as u64;
    let at = address(&mut guest, [127, 0, 0, 1], 8080);
    assert_eq!(guest.fails(libc::SYS_bind, &[second, at, 16]), libc::EADDRINUSE);
    guest.done(libc::SYS_close, &[first]);
    assert_eq!(guest.done(libc::SYS_bind, &[second, at, 16]), 0);
}

/// Who sends to a connection whose other end is closed learns of it by the answer, so with the next call.
#[test]
fn the_first_bytes_to_a_closed_end_are_lost() {
    let mut guest = Guest::new();
    let (_, client, server) = connection(&mut guest);
    assert_eq!(guest.done(libc::SYS_close, &[server]), 0);
    let quiet = libc::MSG_NOSIGNAL as u64;
    assert_eq!(
        guest.done(libc::SYS_sendto, &[client, SCRATCH, 9, quiet, 0, 0]),
        9
    );
    assert_eq!(
        guest.fails(libc::SYS_sendto, &[client, SCRATCH, 9, quiet, 0, 0]),
        libc::EPIPE
    );
    assert_eq!(guest.done(libc::SYS_read, &[client, SCRATCH, 9]), 0);
}

/// UDP-Lite carries datagrams as UDP does, and says which it is.
#[test]
fn udp_lite_carries_datagrams() {
    let mut guest = Guest::new();
    let kind = libc::SOCK_DGRAM as u64;
    let lite = libc::IPPROTO_UDPLITE as u64;
    let fd = guest.done(libc::SYS_socket, &[INET, kind, lite]) as u64;
    let at = address(&mut guest, [127, 0, 0, 1], 8080);
    assert_eq!(guest.done(libc::SYS_bind, &[fd, at, 16]), 0);
    guest.put(SCRATCH, b"lite");
    assert_eq!(guest.done(libc::SYS_sendto, &[fd, SCRATCH, 4, 0, at, 16]), 4);
    assert_eq!(guest.done(libc::SYS_read, &[fd, SCRATCH + 0x100, 9]), 4);
    assert_eq!(guest.get(SCRATCH + 0x100, 4), b"lite");
    let length = guest.put(SCRATCH + 0x200, &4u32.to_le_bytes());
    let (level, name) = (libc::SOL_SOCKET as u64, libc::SO_PROTOCOL as u64);
    let value = SCRATCH + 0x300;
    assert_eq!(
        guest.done(libc::SYS_getsockopt, &[fd, level, name, value, length]),
        0
    );
    assert_eq!(guest.word(value) as u32, libc::IPPROTO_UDPLITE as u32);
    assert_eq!(
        guest.fails(libc::SYS_socket, &[INET, STREAM, lite]),
        libc::EPROTONOSUPPORT
    );
}

/// Two listeners with one port number, one of each family: clients meet the one of theirs.
#[test]
fn each_family_has_its_listener() {
    let mut guest = Guest::new();
    let four = listener(&mut guest, 9000);
    let stream = libc::SOCK_STREAM as u64 | libc::SOCK_NONBLOCK as u64;
    let six = guest.done(libc::SYS_socket, &[libc::AF_INET6 as u64, stream, 0]) as u64;
    let one = guest.put(SCRATCH, &1u32.to_le_bytes());
    let (level, name) = (libc::IPPROTO_IPV6 as u64, libc::IPV6_V6ONLY as u64);
    assert_eq!(guest.done(libc::SYS_setsockopt, &[six, level, name, one, 4]), 0);
    let mut raw = [0; 28];
    raw[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_le_bytes());
    raw[2..4].copy_from_slice(&9000u16.to_be_bytes());
    raw[23] = 1;
    let loopback_six = guest.put(SCRATCH + 0x400, &raw);
    assert_eq!(guest.done(libc::SYS_bind, &[six, loopback_six, 28]), 0);
    assert_eq!(guest.done(libc::SYS_listen, &[six, 5]), 0);

    let client = guest.done(
        libc::SYS_socket,
        &[libc::AF_INET6 as u64, libc::SOCK_STREAM as u64, 0],
    ) as u64;
    assert_eq!(guest.done(libc::SYS_connect, &[client, loopback_six, 28]), 0);
    assert!(guest.done(libc::SYS_accept, &[six, 0, 0]) > 0);
    let client = guest.done(
        libc::SYS_socket,
        &[libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0],
    ) as u64;
    let loopback_four = address(&mut guest, [127, 0, 0, 1], 9000);
    assert_eq!(guest.done(libc::SYS_connect, &[client, loopback_four, 16]), 0);
    assert!(guest.done(libc::SYS_accept, &[four, 0, 0]) > 0);
    assert_eq!(guest.done(libc::SYS_close, &[four]), 0);
    let client = guest.done(
        libc::SYS_socket,
        &[libc::AF_INET as u64, libc::SOCK_STREAM as u64, 0],
    ) as u64;
    assert_eq!(
        guest.fails(libc::SYS_connect, &[client, loopback_four, 16]),
        libc::ECONNREFUSED
    );
    let datagrams = guest.done(
        libc::SYS_socket,
        &[libc::AF_INET6 as u64, libc::SOCK_DGRAM as u64, 0],
    ) as u64;
    assert_eq!(
        guest.fails(libc::SYS_connect, &[datagrams, loopback_four, 16]),
        libc::EAFNOSUPPORT,
        "an address of the other family"
    );
}

#[test]
fn pairs_carry_messages_whole() {
    let mut guest = Guest::new();
    let unix = libc::AF_UNIX as u64;
    let datagram = libc::SOCK_DGRAM as u64;
    assert_eq!(guest.done(libc::SYS_socketpair, &[unix, datagram, 0, SCRATCH]), 0);
    let both = guest.word(SCRATCH);
    let (a, b) = (both & 0xffff_ffff, both >> 32);
    guest.put(SCRATCH, b"onetwo");
    assert_eq!(guest.done(libc::SYS_write, &[a, SCRATCH, 3]), 3);
    assert_eq!(guest.done(libc::SYS_write, &[a, SCRATCH + 3, 3]), 3);
    assert_eq!(guest.done(libc::SYS_read, &[b, SCRATCH + 0x100, 2]), 2);
    assert_eq!(guest.get(SCRATCH + 0x100, 2), b"on");
    assert_eq!(
        guest.done(libc::SYS_read, &[b, SCRATCH + 0x100, 9]),
        3,
        "what is left of a message is lost"
    );
    assert_eq!(guest.get(SCRATCH + 0x100, 3), b"two");
}

fn set_option(guest: &mut Guest, fd: u64, name: i32, value: &[u32]) {
    let raw: Vec<u8> = value.iter().flat_map(|word| word.to_le_bytes()).collect();
    let at = guest.put(SCRATCH + 0x3000, &raw);
    let (level, bytes) = (libc::SOL_SOCKET as u64, raw.len() as u64);
    assert_eq!(
        guest.done(libc::SYS_setsockopt, &[fd, level, name as u64, at, bytes]),
        0
    );
}

/// Found by fuzzing: the length of an option is half a word, and what stands above it is nothing to allocate by.
#[test]
fn the_length_of_an_option_is_half_a_word() {
    let mut guest = Guest::new();
    let (domain, kind) = (libc::AF_INET as u64, libc::SOCK_STREAM as u64);
    let fd = guest.done(libc::SYS_socket, &[domain, kind, 0]) as u64;
    let (level, name) = (libc::SOL_SOCKET as u64, libc::SO_REUSEADDR as u64);
    let one = guest.put(SCRATCH, &1u32.to_le_bytes());
    let mut set = |bytes: u64| guest.call(libc::SYS_setsockopt, &[fd, level, name, one, bytes]);
    assert_eq!(set(1 << 63 | 4), Came::Back(0));
    for bytes in [1 << 31, 1025, 0, 1 << 32] {
        assert_eq!(set(bytes), error(libc::EINVAL), "{bytes:#x}");
    }
}

/// Programs make buffers small to see a sender held up.
#[test]
fn the_buffers_of_both_ends_bound_what_is_under_way() {
    const ASKED: u32 = 4096;
    let mut guest = Guest::new();
    let (_, client, server) = connection(&mut guest);
    set_option(&mut guest, client, libc::SO_SNDBUF, &[ASKED]);
    set_option(&mut guest, server, libc::SO_RCVBUF, &[ASKED]);
    let doubled = 2 * i64::from(ASKED);
    let send = [client, SCRATCH, 300_000, libc::MSG_DONTWAIT as u64, 0, 0];
    assert_eq!(guest.done(libc::SYS_sendto, &send), 2 * doubled);
    assert_eq!(guest.fails(libc::SYS_sendto, &send), libc::EAGAIN);
    assert_eq!(guest.done(libc::SYS_read, &[server, SCRATCH, 1000]), 1000);
    assert_eq!(guest.done(libc::SYS_sendto, &send), 1000);
}

/// An end that is closed without lingering breaks the connection; what it had sent can still be read.
#[test]
fn a_connection_that_is_broken_has_no_peer() {
    let mut guest = Guest::new();
    let (_, client, server) = connection(&mut guest);
    guest.put(SCRATCH, b"last words");
    assert_eq!(guest.done(libc::SYS_write, &[client, SCRATCH, 10]), 10);
    set_option(&mut guest, client, libc::SO_LINGER, &[1, 0]);
    assert_eq!(guest.done(libc::SYS_close, &[client]), 0);
    let length = guest.put(SCRATCH + 0x200, &16u32.to_le_bytes());
    let name = [server, SCRATCH + 0x300, length];
    assert_eq!(guest.fails(libc::SYS_getpeername, &name), libc::ENOTCONN);
    assert_eq!(guest.done(libc::SYS_read, &[server, SCRATCH, 100]), 10);
    assert_eq!(
        guest.fails(libc::SYS_read, &[server, SCRATCH, 100]),
        libc::ECONNRESET
    );
    assert_eq!(guest.done(libc::SYS_read, &[server, SCRATCH, 100]), 0);
    let quiet = libc::MSG_NOSIGNAL as u64;
    assert_eq!(
        guest.fails(libc::SYS_sendto, &[server, SCRATCH, 1, quiet, 0, 0]),
        libc::EPIPE
    );
}

/// A peer that has said that no more comes is still there; an end's own name stays also when it is not.
#[test]
fn names_stay_as_long_as_there_is_a_connection() {
    let mut guest = Guest::new();
    let (_, client, server) = connection(&mut guest);
    let length = guest.put(SCRATCH + 0x200, &16u32.to_le_bytes());
    let name = [server, SCRATCH + 0x300, length];
    assert_eq!(guest.done(libc::SYS_close, &[client]), 0);
    assert_eq!(guest.done(libc::SYS_getpeername, &name), 0);
    assert_eq!(guest.done(libc::SYS_getsockname, &name), 0);
    assert_eq!(guest.get(SCRATCH + 0x302, 6), [0x1f, 0x90, 127, 0, 0, 1]);
    assert_eq!(guest.done(libc::SYS_shutdown, &[server, libc::SHUT_WR as u64]), 0);
    assert_eq!(guest.fails(libc::SYS_getpeername, &name), libc::ENOTCONN);
}

/// `127.0.0.1` and `::1` have ports of their own; `::` has those of both families.
#[test]
fn each_loopback_address_has_its_ports() {
    let mut guest = Guest::new();
    let four = listener(&mut guest, 8080);
    let six = guest.done(libc::SYS_socket, &[libc::AF_INET6 as u64, STREAM, 0]) as u64;
    let mut raw = [0; 28];
    raw[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_le_bytes());
    raw[2..4].copy_from_slice(&8080u16.to_be_bytes());
    let any = guest.put(SCRATCH + 0x400, &raw);
    assert_eq!(guest.fails(libc::SYS_bind, &[six, any, 28]), libc::EADDRINUSE);
    raw[23] = 1;
    let own = guest.put(SCRATCH + 0x400, &raw);
    assert_eq!(guest.done(libc::SYS_bind, &[six, own, 28]), 0);
    assert_eq!(guest.done(libc::SYS_listen, &[six, 5]), 0);
    client(&mut guest, 8080);
    assert!(guest.done(libc::SYS_accept, &[four, 0, 0]) > 0);
}

/// Groups are joined once, left once, and told of in `/proc/net/igmp`.
#[test]
fn multicast_groups_are_joined_and_left() {
    let mut guest = Guest::new();
    let fd = guest.done(libc::SYS_socket, &[INET, libc::SOCK_DGRAM as u64, 0]) as u64;
    let mut raw = [0; 8];
    raw[..4].copy_from_slice(&[224, 0, 0, 254]);
    raw[4..].copy_from_slice(&[127, 0, 0, 1]);
    let at = guest.put(SCRATCH, &raw);
    let change = |name: i32| [fd, libc::IPPROTO_IP as u64, name as u64, at, 8];
    let (join, leave) = (change(libc::IP_ADD_MEMBERSHIP), change(libc::IP_DROP_MEMBERSHIP));
    let listed = |guest: &mut Guest| {
        let file = guest.open("/proc/net/igmp", libc::O_RDONLY) as u64;
        let bytes = guest.done(libc::SYS_read, &[file, SCRATCH + 0x1000, 4096]) as usize;
        let text = guest.get(SCRATCH + 0x1000, bytes);
        String::from_utf8(text)
            .unwrap()
            .matches("FE0000E0     1 ")
            .count()
    };
    assert_eq!(guest.fails(libc::SYS_setsockopt, &leave), libc::EADDRNOTAVAIL);
    assert_eq!(guest.done(libc::SYS_setsockopt, &join), 0);
    assert_eq!(guest.fails(libc::SYS_setsockopt, &join), libc::EADDRINUSE);
    assert_eq!(listed(&mut guest), 1);
    assert_eq!(guest.done(libc::SYS_setsockopt, &leave), 0);
    assert_eq!(listed(&mut guest), 0);
    for wrong in [[223, 0, 0, 1, 0, 0, 0, 0], [224, 0, 0, 9, 10, 0, 0, 1]] {
        guest.put(SCRATCH, &wrong);
        assert!(matches!(guest.call(libc::SYS_setsockopt, &join), Came::Back(..0)));
    }
}
