//! Headers of internet datagrams, as control data.

use crate::guest::{Guest, SCRATCH};

const HEADER: u64 = SCRATCH;
const VECTOR: u64 = SCRATCH + 0x100;
const CONTROL: u64 = SCRATCH + 0x200;
const DATA: u64 = SCRATCH + 0x1000;
const ADDRESS: u64 = SCRATCH + 0x2000;
const PORT: u16 = 9000;

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A `cmsghdr` with its data.
fn control(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
    let mut raw = (16 + data.len() as u64).to_le_bytes().to_vec();
    raw.extend(level.to_le_bytes());
    raw.extend(kind.to_le_bytes());
    raw.extend(data);
    raw.resize(raw.len().next_multiple_of(8), 0);
    raw
}

struct Ends {
    receiver: u64,
    sender: u64,
    address_bytes: u64,
}

/// A receiver at loopback's [`PORT`], and a sender.
fn ends(guest: &mut Guest, family: i32) -> Ends {
    let address = if family == libc::AF_INET {
        let mut raw = vec![family as u8, 0];
        raw.extend(PORT.to_be_bytes());
        raw.extend([127, 0, 0, 1]);
        raw.resize(16, 0);
        raw
    } else {
        let mut raw = vec![family as u8, 0];
        raw.extend(PORT.to_be_bytes());
        raw.resize(28, 0);
        raw[23] = 1;
        raw
    };
    guest.put(ADDRESS, &address);
    let kind = libc::SOCK_DGRAM as u64;
    let mut socket = || guest.done(libc::SYS_socket, &[family as u64, kind, 0]) as u64;
    let (receiver, sender) = (socket(), socket());
    let address_bytes = address.len() as u64;
    let bound = guest.done(libc::SYS_bind, &[receiver, ADDRESS, address_bytes]);
    assert_eq!(bound, 0);
    Ends {
        receiver,
        sender,
        address_bytes,
    }
}

fn set(guest: &mut Guest, fd: u64, level: i32, name: i32, value: i32) {
    let at = guest.put(SCRATCH + 0x3000, &value.to_le_bytes());
    let args = [fd, level as u64, name as u64, at, 4];
    assert_eq!(guest.done(libc::SYS_setsockopt, &args), 0);
}

/// Sends one byte with this control data; gives what `sendmsg` gave.
fn send(guest: &mut Guest, ends: &Ends, control: &[u8]) -> i64 {
    guest.put(VECTOR, &words(&[DATA, 1]));
    guest.put(CONTROL, control);
    let length = control.len() as u64;
    let at = if length == 0 { 0 } else { CONTROL };
    let header = words(&[ADDRESS, ends.address_bytes, VECTOR, 1, at, length, 0]);
    guest.put(HEADER, &header);
    match guest.call(libc::SYS_sendmsg, &[ends.sender, HEADER, 0]) {
        crate::guest::Came::Back(value) => value,
        other => panic!("sendmsg: {other:?}"),
    }
}

/// Receives a byte with room for control data; gives that and the flags.
fn receive(guest: &mut Guest, ends: &Ends, room: usize) -> (Vec<u8>, i32) {
    guest.put(VECTOR, &words(&[DATA, 10]));
    guest.put(CONTROL, &vec![0; room]);
    guest.put(HEADER, &words(&[0, 0, VECTOR, 1, CONTROL, room as u64, 0]));
    let wait = libc::MSG_DONTWAIT as u64;
    assert_eq!(guest.done(libc::SYS_recvmsg, &[ends.receiver, HEADER, wait]), 1);
    let used = guest.word(HEADER + 40) as usize;
    (guest.get(CONTROL, used), guest.word(HEADER + 48) as i32)
}

#[test]
fn a_receiver_is_told_what_it_asks_for() {
    let mut guest = Guest::new();
    let ends = ends(&mut guest, libc::AF_INET6);
    let level = libc::IPPROTO_IPV6;
    assert_eq!(send(&mut guest, &ends, &[]), 1);
    assert_eq!(
        receive(&mut guest, &ends, 100),
        (Vec::new(), 0),
        "nothing asked for"
    );
    set(&mut guest, ends.receiver, level, libc::IPV6_RECVHOPLIMIT, 1);
    set(&mut guest, ends.receiver, level, libc::IPV6_RECVTCLASS, 1);
    set(&mut guest, ends.sender, level, libc::IPV6_TCLASS, 9);
    assert_eq!(send(&mut guest, &ends, &[]), 1);
    let hops = |value: i32| control(level, libc::IPV6_HOPLIMIT, &value.to_le_bytes());
    let class = |value: i32| control(level, libc::IPV6_TCLASS, &value.to_le_bytes());
    let both = [hops(64), class(9)].concat();
    assert_eq!(receive(&mut guest, &ends, 100), (both, 0));
    // One message may have headers of its own; -1 is the socket's.
    assert_eq!(send(&mut guest, &ends, &[class(-1), hops(2)].concat()), 1);
    let told = [hops(2), class(9)].concat();
    assert_eq!(receive(&mut guest, &ends, 100), (told.clone(), 0));
    // What there is no room for is cut off, and that is said.
    for (room, kept) in [(8, 0), (24, 24), (39, 24)] {
        assert_eq!(send(&mut guest, &ends, &hops(2)), 1);
        let received = receive(&mut guest, &ends, room);
        assert_eq!(received, (told[..kept].to_vec(), libc::MSG_CTRUNC), "{room}");
    }
    for wrong in [
        hops(256),
        control(level, libc::IPV6_HOPLIMIT, &[2; 5]),
        control(level, 999, &[0; 4]),
    ] {
        assert_eq!(send(&mut guest, &ends, &wrong), -i64::from(libc::EINVAL));
    }
}

#[test]
fn ipv4_tells_its_own_way() {
    let mut guest = Guest::new();
    let ends = ends(&mut guest, libc::AF_INET);
    let level = libc::IPPROTO_IP;
    for option in [
        libc::IP_PKTINFO,
        libc::IP_RECVTTL,
        libc::IP_RECVTOS,
        libc::IP_RECVORIGDSTADDR,
    ] {
        set(&mut guest, ends.receiver, level, option, 1);
    }
    let wishes = [
        control(level, libc::IP_TTL, &5i32.to_le_bytes()),
        control(level, libc::IP_TOS, &[0x10]),
    ];
    assert_eq!(send(&mut guest, &ends, &wishes.concat()), 1);
    let own = [127, 0, 0, 1];
    let interface = [&1i32.to_le_bytes()[..], &own, &own].concat();
    let to = guest.get(ADDRESS, 16);
    let told = [
        control(level, libc::IP_PKTINFO, &interface),
        control(level, libc::IP_TTL, &5i32.to_le_bytes()),
        control(level, libc::IP_TOS, &[0x10]),
        control(level, libc::IP_ORIGDSTADDR, &to),
    ];
    assert_eq!(receive(&mut guest, &ends, 200), (told.concat(), 0));
}
