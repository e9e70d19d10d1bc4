//! Extended attributes, locks of files, and buffers that end in nothing.

use crate::guest::{Came, Guest, NOWHERE, SCRATCH};

const DATA: u64 = SCRATCH + 0x1000;

fn set(guest: &mut Guest, path: &str, name: &str, value: &[u8], flags: i32) -> i64 {
    let (path, name) = (guest.text(0, path), guest.text(1, name));
    let value_at = guest.put(DATA, value);
    let args = [path, name, value_at, value.len() as u64, flags as u64];
    guest.done(libc::SYS_setxattr, &args)
}

fn get(guest: &mut Guest, path: &str, name: &str, room: u64) -> i64 {
    let (path, name) = (guest.text(0, path), guest.text(1, name));
    guest.done(libc::SYS_getxattr, &[path, name, DATA, room])
}

#[test]
fn attributes_are_set_listed_and_removed() {
    let mut guest = Guest::new();
    guest.open("/tmp/f", libc::O_CREAT | libc::O_RDWR);
    assert_eq!(set(&mut guest, "/tmp/f", "user.b", b"value", 0), 0);
    assert_eq!(set(&mut guest, "/tmp/f", "user.a", b"", libc::XATTR_CREATE), 0);
    assert_eq!(
        get(&mut guest, "/tmp/f", "user.b", 0),
        5,
        "who has no room is told"
    );
    assert_eq!(get(&mut guest, "/tmp/f", "user.b", 4), -i64::from(libc::ERANGE));
    assert_eq!(get(&mut guest, "/tmp/f", "user.b", 100), 5);
    assert_eq!(guest.get(DATA, 5), b"value");
    let path = guest.text(0, "/tmp/f");
    assert_eq!(guest.done(libc::SYS_listxattr, &[path, DATA, 100]), 14);
    assert_eq!(guest.get(DATA, 14), b"user.a\0user.b\0");
    let name = guest.text(1, "user.b");
    assert_eq!(guest.done(libc::SYS_removexattr, &[path, name]), 0);
    assert_eq!(guest.fails(libc::SYS_removexattr, &[path, name]), libc::ENODATA);
}

#[test]
fn attributes_that_cannot_be_are_refused() {
    let mut guest = Guest::new();
    guest.open("/tmp/f", libc::O_CREAT | libc::O_RDWR);
    for (path, name, flags, errno) in [
        ("/tmp/f", "user.a", libc::XATTR_REPLACE, libc::ENODATA),
        ("/tmp/f", "user.a", 8, libc::EINVAL),
        ("/tmp/f", "user.", 0, libc::EINVAL),
        ("/tmp/f", "", 0, libc::ERANGE),
        ("/tmp/f", "trusted.a", 0, libc::EPERM),
        ("/tmp/f", "other.a", 0, libc::EOPNOTSUPP),
        ("/tmp/none", "user.a", 0, libc::ENOENT),
        ("/dev/null", "user.a", 0, libc::EPERM),
    ] {
        let came = set(&mut guest, path, name, b"x", flags);
        assert_eq!(came, -i64::from(errno), "{path} {name} {flags}");
    }
    assert!(set(&mut guest, "/etc/hostname", "user.a", b"x", 0) < 0);
    let (path, name) = (guest.text(0, "/tmp/f"), guest.text(1, "user.a"));
    let much = [path, name, DATA, 65_537, 0];
    assert_eq!(guest.fails(libc::SYS_setxattr, &much), libc::E2BIG);
    // They are charged like contents: a limit of 1 MiB is reached, and given back with the file.
    let big = SCRATCH;
    let mut stored = 0;
    let errno = loop {
        let name = guest.text(1, &format!("user.{stored}"));
        match guest.done(libc::SYS_setxattr, &[path, name, big, 65_536, 0]) {
            0 => stored += 1,
            failed => break failed,
        }
    };
    assert_eq!((stored, errno), (15, -i64::from(libc::ENOSPC)));
    guest.done(libc::SYS_close, &[3]);
    assert_eq!(guest.done(libc::SYS_unlink, &[path]), 0);
    guest.open("/tmp/g", libc::O_CREAT | libc::O_RDWR);
    assert_eq!(set(&mut guest, "/tmp/g", "user.a", &[7; 4096], 0), 0);
}

#[test]
fn two_openings_of_a_file_lock_each_other_out() {
    let mut guest = Guest::new();
    let first = guest.open("/tmp/f", libc::O_CREAT | libc::O_RDWR) as u64;
    let second = guest.open("/tmp/f", libc::O_RDWR) as u64;
    let [shared, exclusive, nonblocking, unlock] =
        [libc::LOCK_SH, libc::LOCK_EX, libc::LOCK_NB, libc::LOCK_UN].map(|flag| flag as u64);
    assert_eq!(guest.done(libc::SYS_flock, &[first, shared]), 0);
    assert_eq!(guest.done(libc::SYS_flock, &[second, shared]), 0);
    let try_alone = [second, exclusive | nonblocking];
    assert_eq!(guest.fails(libc::SYS_flock, &try_alone), libc::EAGAIN);
    let other = guest.thread();
    assert_eq!(
        guest.call_on(other, libc::SYS_flock, &[second, exclusive]),
        Came::Blocked
    );
    assert_eq!(guest.done(libc::SYS_flock, &[first, unlock]), 0);
    assert_eq!(guest.turn_of(other), Came::Back(0));
    let try_shared = [first, shared | nonblocking];
    assert_eq!(guest.fails(libc::SYS_flock, &try_shared), libc::EAGAIN);
    assert_eq!(guest.done(libc::SYS_close, &[second]), 0);
    assert_eq!(guest.done(libc::SYS_flock, &try_shared), 0);
}

#[test]
fn what_lies_before_a_bad_page_is_moved() {
    let mut guest = Guest::new();
    let file = guest.open("/tmp/f", libc::O_CREAT | libc::O_RDWR) as u64;
    let edge = 0x2000_0000;
    let fixed = (libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    guest.done(libc::SYS_mmap, &[edge - 0x1000, 0x1000, 3, fixed, u64::MAX, 0]);
    guest.put(edge - 3, b"end");
    assert_eq!(guest.done(libc::SYS_pwrite64, &[file, edge - 3, 100, 0]), 3);
    assert_eq!(guest.done(libc::SYS_pwrite64, &[file, DATA, 100, 3]), 100);
    assert_eq!(guest.done(libc::SYS_pread64, &[file, edge - 2, 50, 0]), 2);
    assert_eq!(guest.get(edge - 2, 2), b"en");
    assert_eq!(
        guest.fails(libc::SYS_pread64, &[file, NOWHERE, 50, 0]),
        libc::EFAULT
    );
}

#[test]
fn a_handler_begins_with_a_new_extended_state() {
    let mut guest = Guest::new();
    let action = [0x40_0200u64, 0x0400_0000, 0x40_0300, 0]
        .map(u64::to_le_bytes)
        .concat();
    let at = guest.put(DATA, &action);
    let install = [libc::SIGUSR1 as u64, at, 0, 8];
    assert_eq!(guest.done(libc::SYS_rt_sigaction, &install), 0);
    let mut fresh = [0; gust_vmm::XSAVE_BYTES];
    guest.vm.extended_state(guest.main, &mut fresh).unwrap();
    let mut used = fresh;
    const FIRST_XMM: usize = 160;
    used[FIRST_XMM..FIRST_XMM + 8].copy_from_slice(b"of main!");
    guest.vm.set_extended_state(guest.main, &used).unwrap();
    guest.done(libc::SYS_kill, &[1, libc::SIGUSR1 as u64]);
    let mut inside = [0; gust_vmm::XSAVE_BYTES];
    guest.vm.extended_state(guest.main, &mut inside).unwrap();
    assert_eq!(inside[FIRST_XMM..FIRST_XMM + 8], [0; 8]);
    // The frame has what was there before.
    let frame = guest.kernel.registers_mut(guest.main).rsp;
    const POINTER_IN_CONTEXT: u64 = 8 + 40 + 23 * 8;
    let state_at = guest.word(frame + POINTER_IN_CONTEXT);
    assert_eq!(guest.get(state_at + FIRST_XMM as u64, 8), b"of main!");
}

#[test]
fn a_chosen_processor_is_told_again() {
    let mut guest = Guest::new();
    guest.put(DATA, &3u64.to_le_bytes());
    assert_eq!(guest.done(libc::SYS_sched_setaffinity, &[0, 8, DATA]), 0);
    assert_eq!(guest.done(libc::SYS_sched_getaffinity, &[0, 8, DATA]), 8);
    assert_eq!(guest.word(DATA), 1, "there is one");
    guest.put(DATA, &2u64.to_le_bytes());
    assert_eq!(
        guest.fails(libc::SYS_sched_setaffinity, &[0, 8, DATA]),
        libc::EINVAL
    );
}
