//! Locks of ranges of files.

use crate::guest::{Came, Guest, SCRATCH};

/// `struct flock`: kind, from where, first byte, length, process.
fn flock(kind: i32, first: i64, length: i64, pid: i32) -> Vec<u8> {
    let mut raw = vec![0; 32];
    raw[..2].copy_from_slice(&(kind as i16).to_le_bytes());
    raw[8..16].copy_from_slice(&first.to_le_bytes());
    raw[16..24].copy_from_slice(&length.to_le_bytes());
    raw[24..28].copy_from_slice(&pid.to_le_bytes());
    raw
}

fn asked(guest: &mut Guest, fd: u64, command: i32, kind: i32, first: i64, length: i64) -> i64 {
    guest.put(SCRATCH, &flock(kind, first, length, 0));
    guest.done(libc::SYS_fcntl, &[fd, command as u64, SCRATCH])
}

fn two_openings(guest: &mut Guest) -> [u64; 2] {
    [libc::O_CREAT | libc::O_RDWR, libc::O_RDWR].map(|flags| guest.open("/tmp/f", flags) as u64)
}

/// A thread that waits for a range from the file's start on, to have it alone.
fn waiting(guest: &mut Guest, fd: u64, command: i32, length: i64) -> usize {
    let thread = guest.thread();
    let at = SCRATCH + 64;
    guest.put(at, &flock(libc::F_WRLCK, 0, length, 0));
    let call = guest.call_on(thread, libc::SYS_fcntl, &[fd, command as u64, at]);
    assert_eq!(call, Came::Blocked);
    thread
}

const REFUSED: i64 = -(libc::EAGAIN as i64);

#[test]
fn two_openings_lock_ranges_apart() {
    let mut guest = Guest::new();
    let [first, second] = two_openings(&mut guest);
    let set = libc::F_OFD_SETLK;
    assert_eq!(asked(&mut guest, first, set, libc::F_WRLCK, 0, 100), 0);
    assert_eq!(asked(&mut guest, first, set, libc::F_UNLCK, 40, 20), 0);
    assert_eq!(asked(&mut guest, second, set, libc::F_WRLCK, 40, 20), 0);
    for (at, length) in [(39, 1), (60, 1), (99, -1), (0, 0)] {
        assert_eq!(
            asked(&mut guest, second, set, libc::F_RDLCK, at, length),
            REFUSED,
            "{at}, {length}"
        );
    }
    // Who is asked tells the first that is in the way.
    assert_eq!(
        asked(&mut guest, second, libc::F_OFD_GETLK, libc::F_RDLCK, 50, 0),
        0
    );
    assert_eq!(guest.get(SCRATCH, 32), flock(libc::F_WRLCK, 60, 40, -1));
    assert_eq!(
        asked(&mut guest, second, libc::F_OFD_GETLK, libc::F_RDLCK, 100, 7),
        0
    );
    assert_eq!(guest.get(SCRATCH, 32), flock(libc::F_UNLCK, 100, 7, 0));
    // A duplicate is the same open file, and holds its locks until it is closed too.
    let copy = guest.done(libc::SYS_dup, &[first]) as u64;
    assert_eq!(asked(&mut guest, copy, set, libc::F_WRLCK, 0, 10), 0);
    assert_eq!(guest.done(libc::SYS_close, &[first]), 0);
    assert_eq!(asked(&mut guest, second, set, libc::F_WRLCK, 0, 10), REFUSED);
    assert_eq!(guest.done(libc::SYS_close, &[copy]), 0);
    assert_eq!(asked(&mut guest, second, set, libc::F_WRLCK, 0, 0), 0);
}

#[test]
fn a_thread_waits_for_a_range() {
    let mut guest = Guest::new();
    let [first, second] = two_openings(&mut guest);
    assert_eq!(
        asked(&mut guest, first, libc::F_OFD_SETLK, libc::F_WRLCK, 10, 10),
        0
    );
    let other = waiting(&mut guest, second, libc::F_OFD_SETLKW, 0);
    // Giving up a part is not enough.
    assert_eq!(
        asked(&mut guest, first, libc::F_OFD_SETLK, libc::F_UNLCK, 10, 5),
        0
    );
    assert_eq!(guest.turn_of(other), Came::Blocked);
    assert_eq!(
        asked(&mut guest, first, libc::F_OFD_SETLK, libc::F_UNLCK, 0, 0),
        0
    );
    assert_eq!(guest.turn_of(other), Came::Back(0));
    assert_eq!(
        asked(&mut guest, first, libc::F_OFD_SETLK, libc::F_RDLCK, 5, 1),
        REFUSED
    );
}

#[test]
fn the_process_shares_its_locks_and_loses_them_with_any_descriptor() {
    let mut guest = Guest::new();
    let [first, second] = two_openings(&mut guest);
    let third = guest.open("/tmp/f", libc::O_RDWR) as u64;
    for fd in [first, second] {
        assert_eq!(asked(&mut guest, fd, libc::F_SETLK, libc::F_WRLCK, 0, 8), 0);
    }
    assert_eq!(asked(&mut guest, second, libc::F_GETLK, libc::F_WRLCK, 0, 8), 0);
    assert_eq!(guest.get(SCRATCH, 32), flock(libc::F_UNLCK, 0, 8, 0));
    // An open file's lock meets the process's.
    let pid = guest.done(libc::SYS_getpid, &[]) as i32;
    assert_eq!(
        asked(&mut guest, second, libc::F_OFD_SETLK, libc::F_WRLCK, 4, 1),
        REFUSED
    );
    assert_eq!(
        asked(&mut guest, second, libc::F_OFD_GETLK, libc::F_WRLCK, 4, 1),
        0
    );
    assert_eq!(guest.get(SCRATCH, 32), flock(libc::F_WRLCK, 0, 8, pid));
    assert_eq!(guest.done(libc::SYS_close, &[third]), 0);
    assert_eq!(
        asked(&mut guest, second, libc::F_OFD_SETLK, libc::F_WRLCK, 4, 1),
        0
    );
}

/// A thread waits with a descriptor that another closes: it gets what it asked for, and nobody has it then.
#[test]
fn a_lock_does_not_outlive_the_descriptor_that_it_was_asked_with() {
    let mut guest = Guest::new();
    let [first, second] = two_openings(&mut guest);
    let third = guest.open("/tmp/f", libc::O_RDWR) as u64;
    for wait in [libc::F_SETLKW, libc::F_OFD_SETLKW] {
        let asking = guest.done(libc::SYS_dup, &[second]) as u64;
        assert_eq!(
            asked(&mut guest, first, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 1),
            0
        );
        let other = waiting(&mut guest, asking, wait, 1);
        if wait == libc::F_OFD_SETLKW {
            assert_eq!(guest.done(libc::SYS_close, &[second]), 0);
        }
        assert_eq!(guest.done(libc::SYS_close, &[asking]), 0);
        assert_eq!(
            asked(&mut guest, first, libc::F_OFD_SETLK, libc::F_UNLCK, 0, 1),
            0
        );
        assert_eq!(guest.turn_of(other), Came::Back(0));
        assert_eq!(
            asked(&mut guest, third, libc::F_OFD_SETLK, libc::F_WRLCK, 0, 1),
            0
        );
        assert_eq!(
            asked(&mut guest, third, libc::F_OFD_SETLK, libc::F_UNLCK, 0, 1),
            0
        );
    }
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    let mut guest = Guest::new();
    let [first, _] = two_openings(&mut guest);
    let reading = guest.open("/tmp/f", libc::O_RDONLY) as u64;
    let set = libc::F_SETLK;
    for (fd, kind, at, length, errno) in [
        (first, 9, 0, 1, libc::EINVAL),
        (first, libc::F_WRLCK, -1, 1, libc::EINVAL),
        (first, libc::F_WRLCK, 3, -4, libc::EINVAL),
        (first, libc::F_WRLCK, i64::MAX, 2, libc::EOVERFLOW),
        (first, libc::F_WRLCK, i64::MIN, i64::MIN, libc::EINVAL),
        (reading, libc::F_WRLCK, 0, 1, libc::EBADF),
    ] {
        let refused = asked(&mut guest, fd, set, kind, at, length);
        assert_eq!(refused, -i64::from(errno), "{kind} {at} {length}");
    }
    guest.put(SCRATCH, &flock(libc::F_WRLCK, 0, 1, 7));
    let of_file = [first, libc::F_OFD_SETLK as u64, SCRATCH];
    assert_eq!(guest.fails(libc::SYS_fcntl, &of_file), libc::EINVAL);
    let ask_to_unlock = asked(&mut guest, first, libc::F_GETLK, libc::F_UNLCK, 0, 1);
    assert_eq!(ask_to_unlock, -i64::from(libc::EINVAL));
    // There are so many and no more; each second byte is a lock of its own.
    let mut held = 0;
    while asked(&mut guest, first, set, libc::F_RDLCK, 2 * held, 1) == 0 {
        held += 1;
    }
    assert_eq!(
        asked(&mut guest, first, set, libc::F_RDLCK, 2 * held, 1),
        -i64::from(libc::ENOLCK)
    );
    assert!((1000..5000).contains(&held), "{held}");
    assert_eq!(asked(&mut guest, first, set, libc::F_UNLCK, 0, 0), 0);
    assert_eq!(asked(&mut guest, first, set, libc::F_RDLCK, 2 * held, 1), 0);
}
