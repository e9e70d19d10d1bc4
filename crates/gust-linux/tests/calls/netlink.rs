//! Questions about interfaces.

use crate::guest::{Guest, SCRATCH};

const REQUEST: u64 = SCRATCH;
const ANSWER: u64 = SCRATCH + 0x1000;
const HEADER_BYTES: usize = 16;
const DUMP: u16 = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;

/// A message: its kind and what follows the header.
type Message = (u16, Vec<u8>);

fn netlink(guest: &mut Guest) -> u64 {
    let kind = (libc::SOCK_RAW | libc::SOCK_CLOEXEC) as u64;
    guest.done(libc::SYS_socket, &[libc::AF_NETLINK as u64, kind, 0]) as u64
}

fn ask(guest: &mut Guest, fd: u64, kind: u16, flags: u16, body: &[u8]) {
    let bytes = HEADER_BYTES + body.len();
    let mut raw = (bytes as u32).to_le_bytes().to_vec();
    raw.extend(kind.to_le_bytes());
    raw.extend(flags.to_le_bytes());
    raw.extend(7u32.to_le_bytes());
    raw.extend([0; 4]);
    raw.extend(body);
    guest.put(REQUEST, &raw);
    let sent = guest.done(libc::SYS_sendto, &[fd, REQUEST, bytes as u64, 0, 0, 0]);
    assert_eq!(sent, bytes as i64);
}

/// The next datagram's messages. All are to the socket of this port and for the request that [`ask`] makes.
fn receive(guest: &mut Guest, fd: u64, port: u32) -> Vec<Message> {
    let wait = libc::MSG_DONTWAIT as u64;
    let bytes = guest.done(libc::SYS_recvfrom, &[fd, ANSWER, 4096, wait, 0, 0]);
    let raw = guest.get(ANSWER, bytes as usize);
    let mut rest = &raw[..];
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_le_bytes(rest[..4].try_into().unwrap()) as usize;
        assert_eq!(rest[8..12], 7u32.to_le_bytes(), "sequence");
        assert_eq!(rest[12..16], port.to_le_bytes(), "port");
        let kind = u16::from_le_bytes([rest[4], rest[5]]);
        messages.push((kind, rest[HEADER_BYTES..length].to_vec()));
        rest = &rest[length.next_multiple_of(4)..];
    }
    messages
}

/// Value of the attribute of this kind, behind a body of `skip` bytes.
fn attribute(body: &[u8], skip: usize, kind: u16) -> Option<&[u8]> {
    let mut rest = &body[skip..];
    while rest.len() >= 4 {
        let length = usize::from(u16::from_le_bytes([rest[0], rest[1]]));
        if rest[2..4] == kind.to_le_bytes() {
            return Some(&rest[4..length]);
        }
        rest = &rest[length.next_multiple_of(4)..];
    }
    None
}

fn own_port(guest: &mut Guest, fd: u64) -> u32 {
    let length = guest.put(SCRATCH + 0x800, &12u32.to_le_bytes());
    let at = SCRATCH + 0x900;
    assert_eq!(guest.done(libc::SYS_getsockname, &[fd, at, length]), 0);
    let raw = guest.get(at, 12);
    assert_eq!(raw[..2], (libc::AF_NETLINK as u16).to_le_bytes());
    u32::from_le_bytes(raw[4..8].try_into().unwrap())
}

#[test]
fn interfaces_and_their_addresses_are_listed() {
    let mut guest = Guest::new();
    let fd = netlink(&mut guest);
    ask(&mut guest, fd, libc::RTM_GETLINK, DUMP, &[0; 4]);
    let port = own_port(&mut guest, fd);
    let links = receive(&mut guest, fd, port);
    let names: Vec<_> = links
        .iter()
        .map(|(kind, body)| {
            assert_eq!(*kind, libc::RTM_NEWLINK);
            attribute(body, 16, libc::IFLA_IFNAME).unwrap()
        })
        .collect();
    assert_eq!(names, [&b"lo\0"[..], b"eth0\0"]);
    assert_eq!(
        receive(&mut guest, fd, port),
        [(libc::NLMSG_DONE as u16, vec![0; 4])]
    );

    let mut listed = |family: i32| {
        ask(&mut guest, fd, libc::RTM_GETADDR, DUMP, &[family as u8, 0, 0, 0]);
        let addresses = receive(&mut guest, fd, port);
        assert_eq!(receive(&mut guest, fd, port).len(), 1);
        let told = addresses.iter().map(|(_, body)| {
            let address = attribute(body, 8, libc::IFA_ADDRESS).unwrap();
            (body[0], body[1], body[4], address[0])
        });
        told.collect::<Vec<_>>()
    };
    let (four, six) = (libc::AF_INET as u8, libc::AF_INET6 as u8);
    assert_eq!(listed(libc::AF_INET), [(four, 8, 1, 127), (four, 30, 2, 169)]);
    assert_eq!(listed(libc::AF_INET6), [(six, 128, 1, 0), (six, 64, 2, 0xfe)]);
    assert_eq!(listed(libc::AF_UNSPEC).len(), 4);
}

#[test]
fn one_interface_is_told_by_number_or_name_and_none_is_changed() {
    let mut guest = Guest::new();
    let first = netlink(&mut guest);
    let mut second_request = vec![0; 16];
    second_request[4] = 2;
    let once = libc::NLM_F_REQUEST as u16;
    ask(&mut guest, first, libc::RTM_GETLINK, once, &second_request);
    let fd = netlink(&mut guest);
    let mut named = vec![0; 16];
    named.extend([9, 0, libc::IFLA_IFNAME as u8, 0]);
    named.extend(b"eth0\0");
    ask(&mut guest, fd, libc::RTM_GETLINK, once, &named);
    let (first_port, port) = (own_port(&mut guest, first), own_port(&mut guest, fd));
    assert_ne!(first_port, port, "each socket has an address of its own");
    let by_number = receive(&mut guest, first, first_port);
    assert_eq!(receive(&mut guest, fd, port), by_number);
    assert_eq!(by_number.len(), 1);

    let mut refused = |kind: u16, body: &[u8]| {
        ask(&mut guest, fd, kind, once, body);
        let [(kind, told)] = &receive(&mut guest, fd, port)[..] else {
            panic!("one message")
        };
        assert_eq!(*kind, libc::NLMSG_ERROR as u16);
        -i32::from_le_bytes(told[..4].try_into().unwrap())
    };
    second_request[4] = 3;
    assert_eq!(refused(libc::RTM_GETLINK, &second_request), libc::ENODEV);
    assert_eq!(refused(libc::RTM_GETLINK, &[0; 3]), libc::EINVAL);
    assert_eq!(refused(libc::RTM_NEWADDR, &[0; 8]), libc::EPERM);
    assert_eq!(refused(libc::RTM_GETROUTE, &[0; 12]), libc::EOPNOTSUPP);
    assert_eq!(refused(999, &[]), libc::EOPNOTSUPP);
}

/// What is not read fills the socket, and no more.
#[test]
fn answers_that_nobody_reads_are_bounded() {
    let mut guest = Guest::new();
    let fd = netlink(&mut guest);
    let header = [
        &20u32.to_le_bytes()[..],
        &libc::RTM_GETLINK.to_le_bytes(),
        &DUMP.to_le_bytes(),
        &[0; 12],
    ];
    let many = header.concat().repeat(1000);
    let at = guest.put(REQUEST, &many);
    let send = [fd, at, many.len() as u64, 0, 0, 0];
    assert_eq!(guest.fails(libc::SYS_sendto, &send), libc::ENOBUFS);
    // A length that lies ends the request.
    guest.put(REQUEST, &u32::MAX.to_le_bytes());
    let other = netlink(&mut guest);
    assert_eq!(guest.done(libc::SYS_sendto, &[other, REQUEST, 64, 0, 0, 0]), 64);
    let read = [other, ANSWER, 100, libc::MSG_DONTWAIT as u64, 0, 0];
    assert_eq!(guest.fails(libc::SYS_recvfrom, &read), libc::EAGAIN);
}

#[test]
fn other_protocols_and_kinds_are_refused() {
    let mut guest = Guest::new();
    let family = libc::AF_NETLINK as u64;
    let raw = libc::SOCK_RAW as u64;
    let events = libc::NETLINK_KOBJECT_UEVENT as u64;
    assert_eq!(
        guest.fails(libc::SYS_socket, &[family, raw, events]),
        libc::EPROTONOSUPPORT
    );
    assert_eq!(
        guest.fails(libc::SYS_socket, &[family, libc::SOCK_STREAM as u64, 0]),
        libc::ESOCKTNOSUPPORT
    );
    assert_eq!(
        guest.fails(libc::SYS_socketpair, &[family, raw, 0, SCRATCH]),
        libc::EOPNOTSUPP
    );
}
