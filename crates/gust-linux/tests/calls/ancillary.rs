//! Files and credentials that travel over UNIX sockets.

use crate::guest::{Came, Guest, SCRATCH, error};

const HEADER: u64 = SCRATCH;
const VECTOR: u64 = SCRATCH + 0x100;
const CONTROL: u64 = SCRATCH + 0x200;
const DATA: u64 = SCRATCH + 0x1000;

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn pair(guest: &mut Guest, kind: i32) -> (u64, u64) {
    let unix = libc::AF_UNIX as u64;
    assert_eq!(
        guest.done(libc::SYS_socketpair, &[unix, kind as u64, 0, SCRATCH]),
        0
    );
    let both = guest.word(SCRATCH);
    (both & 0xffff_ffff, both >> 32)
}

/// Puts a header with one buffer and this control data.
fn header(guest: &mut Guest, bytes: u64, control: &[u8]) -> u64 {
    guest.put(VECTOR, &words(&[DATA, bytes]));
    guest.put(CONTROL, control);
    let length = control.len() as u64;
    guest.put(HEADER, &words(&[0, 0, VECTOR, 1, CONTROL, length, 0]))
}

fn control(kind: i32, data: &[u32]) -> Vec<u8> {
    let mut raw = words(&[
        16 + 4 * data.len() as u64,
        libc::SOL_SOCKET as u64 | (kind as u64) << 32,
    ]);
    raw.extend(data.iter().flat_map(|word| word.to_le_bytes()));
    raw.resize(raw.len().next_multiple_of(8), 0);
    raw
}

fn send(guest: &mut Guest, socket: u64, bytes: u64, control: &[u8]) -> i64 {
    let at = header(guest, bytes, control);
    guest.done(libc::SYS_sendmsg, &[socket, at, 0])
}

/// Receives with room for control data; gives the bytes, the control data and the flags.
fn receive(guest: &mut Guest, socket: u64, bytes: u64, room: usize, flags: i32) -> (i64, Vec<u8>, i32) {
    let at = header(guest, bytes, &vec![0; room]);
    let received = guest.done(libc::SYS_recvmsg, &[socket, at, flags as u64]);
    let used = guest.word(HEADER + 40) as usize;
    let told = guest.word(HEADER + 48) as i32;
    (received, guest.get(CONTROL, used), told)
}

#[test]
fn an_open_file_is_handed_over() {
    for kind in [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_SEQPACKET] {
        let mut guest = Guest::new();
        let (a, b) = pair(&mut guest, kind);
        let file = guest.open("/tmp/f", libc::O_CREAT | libc::O_RDWR);
        guest.done(libc::SYS_lseek, &[file as u64, 5, libc::SEEK_SET as u64]);
        let rights = control(libc::SCM_RIGHTS, &[file as u32]);
        assert_eq!(send(&mut guest, a, 3, &rights), 3);
        // In flight it stays open without its sender.
        guest.done(libc::SYS_close, &[file as u64]);
        let (bytes, got, told) = receive(&mut guest, b, 10, 24, libc::MSG_CMSG_CLOEXEC);
        assert_eq!((bytes, told), (3, libc::MSG_CMSG_CLOEXEC));
        assert_eq!(got[..16], rights[..16]);
        let fd = u64::from(u32::from_le_bytes(got[16..20].try_into().unwrap()));
        assert_eq!(guest.done(libc::SYS_lseek, &[fd, 0, libc::SEEK_CUR as u64]), 5);
        assert_eq!(guest.done(libc::SYS_fcntl, &[fd, libc::F_GETFD as u64]), 1);
    }
}

#[test]
fn bytes_with_files_are_not_joined_with_others() {
    let mut guest = Guest::new();
    let (a, b) = pair(&mut guest, libc::SOCK_STREAM);
    let rights = control(libc::SCM_RIGHTS, &[a as u32]);
    assert_eq!(guest.done(libc::SYS_write, &[a, DATA, 2]), 2);
    assert_eq!(send(&mut guest, a, 3, &rights), 3);
    assert_eq!(guest.done(libc::SYS_write, &[a, DATA, 4]), 4);
    let (peeked, got, _) = receive(&mut guest, b, 20, 24, libc::MSG_PEEK);
    assert_eq!((peeked, got.len()), (5, 24));
    let (bytes, got, _) = receive(&mut guest, b, 20, 24, 0);
    assert_eq!((bytes, got.len()), (5, 24));
    let (bytes, got, _) = receive(&mut guest, b, 20, 24, 0);
    assert_eq!((bytes, got.len()), (4, 0));
}

#[test]
fn files_without_room_are_closed() {
    let mut guest = Guest::new();
    let (a, b) = pair(&mut guest, libc::SOCK_STREAM);
    assert_eq!(guest.done(libc::SYS_pipe2, &[SCRATCH, 0]), 0);
    let ends = guest.word(SCRATCH);
    let (reader, writer) = (ends & 0xffff_ffff, ends >> 32);
    let rights = control(libc::SCM_RIGHTS, &[writer as u32]);
    assert_eq!(send(&mut guest, a, 1, &rights), 1);
    guest.done(libc::SYS_close, &[writer]);
    let other = guest.thread();
    let waiting = guest.call_on(other, libc::SYS_read, &[reader, DATA, 1]);
    assert_eq!(waiting, Came::Blocked);
    let (bytes, got, told) = receive(&mut guest, b, 10, 16, 0);
    assert_eq!((bytes, got.len(), told), (1, 0, libc::MSG_CTRUNC));
    assert_eq!(guest.turn_of(other), Came::Back(0), "the last writer is gone");
}

#[test]
fn sockets_that_travel_in_each_other_close_in_turn() {
    let mut guest = Guest::new();
    let mut inner = pair(&mut guest, libc::SOCK_STREAM);
    for _ in 0..200 {
        let outer = pair(&mut guest, libc::SOCK_STREAM);
        let rights = control(libc::SCM_RIGHTS, &[inner.0 as u32, inner.1 as u32]);
        assert_eq!(send(&mut guest, outer.0, 1, &rights), 1);
        guest.done(libc::SYS_close, &[inner.0]);
        guest.done(libc::SYS_close, &[inner.1]);
        inner = outer;
    }
    guest.done(libc::SYS_close, &[inner.0]);
    assert_eq!(guest.done(libc::SYS_close, &[inner.1]), 0);
}

#[test]
fn credentials_are_told_and_cannot_be_forged() {
    let mut guest = Guest::new();
    let (a, b) = pair(&mut guest, libc::SOCK_STREAM);
    assert_eq!(guest.done(libc::SYS_write, &[a, DATA, 2]), 2);
    let on = guest.put(DATA, &1u32.to_le_bytes());
    let pass = [b, libc::SOL_SOCKET as u64, libc::SO_PASSCRED as u64, on, 4];
    assert_eq!(guest.done(libc::SYS_setsockopt, &pass), 0);
    assert_eq!(guest.done(libc::SYS_write, &[a, DATA, 2]), 2);
    // What was written before the option was set has nobody's name, and is not joined with what has one.
    let (bytes, got, _) = receive(&mut guest, b, 20, 32, 0);
    assert_eq!((bytes, &got[16..20]), (2, [0; 4].as_slice()));
    let (bytes, got, _) = receive(&mut guest, b, 20, 32, 0);
    let mine = control(libc::SCM_CREDENTIALS, &[1, 993, 990]);
    assert_eq!((bytes, &got), (2, &mine));
    for forged in [[2, 993, 990], [1, 0, 990], [1, 993, 0]] {
        let forged = control(libc::SCM_CREDENTIALS, &forged);
        assert_eq!(send(&mut guest, a, 1, &forged), -i64::from(libc::EPERM));
    }
}

#[test]
fn damaged_control_data_is_refused() {
    let mut guest = Guest::new();
    let (a, _) = pair(&mut guest, libc::SOCK_STREAM);
    let mut long = control(libc::SCM_RIGHTS, &[a as u32]);
    long[0] = 200;
    let mut short = control(libc::SCM_RIGHTS, &[a as u32]);
    short[0] = 3;
    let many = control(libc::SCM_RIGHTS, &vec![a as u32; 254]);
    for damaged in [long, short, many, control(9, &[1])] {
        assert_eq!(send(&mut guest, a, 1, &damaged), -i64::from(libc::EINVAL));
    }
    let closed = control(libc::SCM_RIGHTS, &[77]);
    assert_eq!(send(&mut guest, a, 1, &closed), -i64::from(libc::EBADF));
    let at = header(&mut guest, 1, &[]);
    guest.put(HEADER + 40, &u64::MAX.to_le_bytes());
    assert_eq!(guest.call(libc::SYS_sendmsg, &[a, at, 0]), error(libc::ENOBUFS));
}

#[test]
fn files_in_flight_are_bounded() {
    let mut guest = Guest::new();
    let (a, _) = pair(&mut guest, libc::SOCK_STREAM);
    let rights = control(libc::SCM_RIGHTS, &[a as u32; 253]);
    for _ in 0..4 {
        assert_eq!(send(&mut guest, a, 1, &rights), 1);
    }
    assert_eq!(send(&mut guest, a, 1, &rights), -i64::from(libc::ETOOMANYREFS));
}

#[test]
fn the_interfaces_are_there() {
    let mut guest = Guest::new();
    let (a, _) = pair(&mut guest, libc::SOCK_DGRAM);
    for (name, index) in [(b"lo\0\0\0", 1u32), (b"eth0\0", 2)] {
        guest.put(DATA, name);
        assert_eq!(guest.done(libc::SYS_ioctl, &[a, libc::SIOCGIFINDEX, DATA]), 0);
        assert_eq!(guest.get(DATA + 16, 4), index.to_le_bytes());
        assert_eq!(guest.done(libc::SYS_ioctl, &[a, libc::SIOCGIFNAME, DATA]), 0);
        assert_eq!(guest.get(DATA, 5), name);
    }
    guest.put(DATA, b"eth1\0");
    assert_eq!(
        guest.fails(libc::SYS_ioctl, &[a, libc::SIOCGIFINDEX, DATA]),
        libc::ENODEV
    );
    guest.put(DATA, b"eth0\0");
    assert_eq!(guest.done(libc::SYS_ioctl, &[a, libc::SIOCGIFNETMASK, DATA]), 0);
    assert_eq!(guest.get(DATA + 20, 4), [255, 255, 255, 252]);
    for (room, told) in [(79, 40u32), (100, 80)] {
        guest.put(DATA, &words(&[room, DATA + 0x100]));
        assert_eq!(guest.done(libc::SYS_ioctl, &[a, libc::SIOCGIFCONF, DATA]), 0);
        assert_eq!(guest.get(DATA, 4), told.to_le_bytes());
    }
}
