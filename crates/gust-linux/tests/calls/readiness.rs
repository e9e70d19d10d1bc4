//! Signals read from files, and files that send signals.

use crate::guest::{Came, Guest, SCRATCH};

const DATA: u64 = SCRATCH + 0x1000;

fn block(guest: &mut Guest, signal: i32) {
    let mask = guest.put(SCRATCH, &(1u64 << (signal - 1)).to_le_bytes());
    assert_eq!(guest.done(libc::SYS_rt_sigprocmask, &[0, mask, 0, 8]), 0);
}

fn signal_file(guest: &mut Guest, signal: i32, flags: i32) -> u64 {
    let mask = guest.put(SCRATCH, &(1u64 << (signal - 1)).to_le_bytes());
    guest.done(libc::SYS_signalfd4, &[u64::MAX, mask, 8, flags as u64]) as u64
}

fn pipe(guest: &mut Guest) -> (u64, u64) {
    assert_eq!(guest.done(libc::SYS_pipe2, &[SCRATCH, 0]), 0);
    let both = guest.word(SCRATCH);
    (both & 0xffff_ffff, both >> 32)
}

#[test]
fn a_blocked_signal_is_read() {
    let mut guest = Guest::new();
    block(&mut guest, libc::SIGUSR1);
    let file = signal_file(&mut guest, libc::SIGUSR1, libc::SFD_NONBLOCK);
    assert_eq!(guest.fails(libc::SYS_read, &[file, DATA, 128]), libc::EAGAIN);
    assert_eq!(guest.fails(libc::SYS_read, &[file, DATA, 127]), libc::EINVAL);
    assert_eq!(guest.done(libc::SYS_kill, &[1, libc::SIGUSR1 as u64]), 0);
    assert_eq!(guest.done(libc::SYS_read, &[file, DATA, 256]), 128);
    let words: Vec<u32> = guest
        .get(DATA, 20)
        .chunks(4)
        .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
        .collect();
    assert_eq!(words, [libc::SIGUSR1 as u32, 0, 0, 1, 993]);
    assert_eq!(guest.fails(libc::SYS_read, &[file, DATA, 128]), libc::EAGAIN);
}

#[test]
fn who_waits_for_a_signal_to_read_is_woken() {
    let mut guest = Guest::new();
    block(&mut guest, libc::SIGUSR1);
    let file = signal_file(&mut guest, libc::SIGUSR1, 0);
    let other = guest.thread();
    let came = guest.call_on(other, libc::SYS_read, &[file, DATA, 128]);
    assert_eq!(came, Came::Blocked);
    assert_eq!(guest.done(libc::SYS_kill, &[1, libc::SIGUSR1 as u64]), 0);
    assert_eq!(guest.turn_of(other), Came::Back(128));
}

#[test]
fn a_file_tells_its_owner_that_it_can_be_read() {
    let mut guest = Guest::new();
    let (reader, writer) = pipe(&mut guest);
    block(&mut guest, libc::SIGUSR2);
    let file = signal_file(&mut guest, libc::SIGUSR2, libc::SFD_NONBLOCK);
    const F_SETSIG: u64 = 10;
    let set = [
        (libc::F_SETOWN as u64, 1),
        (F_SETSIG, libc::SIGUSR2 as u64),
        (libc::F_SETFL as u64, libc::O_ASYNC as u64),
    ];
    for (command, argument) in set {
        assert_eq!(guest.done(libc::SYS_fcntl, &[reader, command, argument]), 0);
    }
    assert_eq!(guest.done(libc::SYS_write, &[writer, DATA, 1]), 1);
    assert_eq!(guest.done(libc::SYS_read, &[file, DATA, 128]), 128);
    let raw = guest.get(DATA, 32);
    let word = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(8)), (libc::SIGUSR2 as u32, 1));
    assert_eq!(u64::from(word(20)), reader, "the descriptor it was set with");
    // Without O_ASYNC it is silent again.
    assert_eq!(guest.done(libc::SYS_fcntl, &[reader, libc::F_SETFL as u64, 0]), 0);
    assert_eq!(guest.done(libc::SYS_write, &[writer, DATA, 1]), 1);
    assert_eq!(guest.fails(libc::SYS_read, &[file, DATA, 128]), libc::EAGAIN);
}

#[test]
fn owners_must_exist() {
    let mut guest = Guest::new();
    let (reader, _) = pipe(&mut guest);
    let set_owner = libc::F_SETOWN as u64;
    for (owner, errno) in [(77, libc::ESRCH), (-77, libc::ESRCH), (i32::MIN, libc::EINVAL)] {
        let owner = i64::from(owner) as u64;
        assert_eq!(guest.fails(libc::SYS_fcntl, &[reader, set_owner, owner]), errno);
    }
    assert_eq!(guest.done(libc::SYS_fcntl, &[reader, set_owner, -1i64 as u64]), 0);
    assert_eq!(guest.done(libc::SYS_fcntl, &[reader, libc::F_GETOWN as u64]), -1);
    const F_SETSIG: u64 = 10;
    assert_eq!(
        guest.fails(libc::SYS_fcntl, &[reader, F_SETSIG, 65]),
        libc::EINVAL
    );
}

#[test]
fn a_file_without_a_handler_for_its_signal_ends_the_guest() {
    let mut guest = Guest::new();
    let (reader, writer) = pipe(&mut guest);
    guest.done(libc::SYS_fcntl, &[reader, libc::F_SETOWN as u64, 1]);
    let on = libc::O_ASYNC as u64;
    guest.done(libc::SYS_fcntl, &[reader, libc::F_SETFL as u64, on]);
    assert_eq!(guest.call(libc::SYS_write, &[writer, DATA, 1]), Came::Ended);
    assert_eq!(guest.ended(), Some(gust_linux::Ended::Signal(libc::SIGIO)));
}

#[test]
fn a_process_copies_within_its_own_memory() {
    let mut guest = Guest::new();
    let text = guest.put(DATA, b"from here to there");
    let words = |words: [u64; 4]| words.map(u64::to_le_bytes).concat();
    let remote = guest.put(SCRATCH, &words([text, 5, text + 10, 8]));
    let local = guest.put(SCRATCH + 0x100, &words([DATA + 0x100, 3, DATA + 0x200, 100]));
    let args = [1, local, 2, remote, 2, 0];
    assert_eq!(guest.done(libc::SYS_process_vm_readv, &args), 13);
    assert_eq!(guest.get(DATA + 0x100, 3), b"fro");
    assert_eq!(guest.get(DATA + 0x200, 10), b"m to there");
    assert_eq!(
        guest.fails(libc::SYS_process_vm_readv, &[2, local, 2, remote, 2, 0]),
        libc::ESRCH
    );
    assert_eq!(
        guest.fails(libc::SYS_process_vm_writev, &[1, local, 2, remote, 2, 1]),
        libc::EINVAL
    );
}

#[test]
fn socket_options_have_ranges_and_defaults() {
    let mut guest = Guest::new();
    let inet = [libc::AF_INET as u64, libc::SOCK_DGRAM as u64, 0];
    let socket = guest.done(libc::SYS_socket, &inet) as u64;
    let ip = libc::IPPROTO_IP as u64;
    let (hops, room) = (DATA, DATA + 8);
    let get = |guest: &mut Guest, name: i32| {
        guest.put(room, &4u32.to_le_bytes());
        let args = [socket, ip, name as u64, hops, room];
        assert_eq!(guest.done(libc::SYS_getsockopt, &args), 0);
        u32::from_le_bytes(guest.get(hops, 4).try_into().unwrap())
    };
    assert_eq!(get(&mut guest, libc::IP_TTL), 64);
    assert_eq!(get(&mut guest, libc::IP_MULTICAST_TTL), 1);
    for (value, errno) in [(0, libc::EINVAL), (256, libc::EINVAL), (17, 0), (-1, 0)] {
        guest.put(hops, &i32::to_le_bytes(value));
        let args = [socket, ip, libc::IP_TTL as u64, hops, 4];
        let came = guest.done(libc::SYS_setsockopt, &args);
        assert_eq!(came, -i64::from(errno), "{value}");
    }
    assert_eq!(get(&mut guest, libc::IP_TTL), 64, "-1 is the default");
    guest.put(hops, &[9]);
    assert_eq!(
        guest.done(libc::SYS_setsockopt, &[socket, ip, libc::IP_TOS as u64, hops, 1]),
        0
    );
    assert_eq!(get(&mut guest, libc::IP_TOS), 9);
}
