//! What descriptors name, for how long, and what a listing of a directory goes on from.

use crate::guest::{AT_FDCWD, Came, Guest, SCRATCH, error};

fn pipe(guest: &mut Guest) -> (u64, u64) {
    assert_eq!(guest.done(libc::SYS_pipe2, &[SCRATCH, 0]), 0);
    let both = guest.word(SCRATCH);
    (both & 0xffff_ffff, both >> 32)
}

#[test]
fn a_waiting_read_goes_on_with_a_closed_descriptor() {
    let mut guest = Guest::new();
    let (reader, writer) = pipe(&mut guest);
    let other = guest.thread();
    let came = guest.call_on(other, libc::SYS_read, &[reader, SCRATCH + 0x100, 4]);
    assert_eq!(came, Came::Blocked);
    assert_eq!(guest.done(libc::SYS_close, &[reader]), 0);
    guest.put(SCRATCH, b"data");
    assert_eq!(guest.done(libc::SYS_write, &[writer, SCRATCH, 4]), 4);
    assert_eq!(guest.turn_of(other), Came::Back(4));
    assert_eq!(guest.get(SCRATCH + 0x100, 4), b"data");
    // The call was the last to hold the reading end.
    assert_eq!(
        guest.call(libc::SYS_read, &[reader, SCRATCH, 1]),
        error(libc::EBADF)
    );
    let ignore = SCRATCH + 0x200;
    guest.put(ignore, &[1u64, 0, 0, 0].map(u64::to_le_bytes).concat());
    assert_eq!(
        guest.done(libc::SYS_rt_sigaction, &[libc::SIGPIPE as u64, ignore, 0, 8]),
        0
    );
    assert_eq!(guest.fails(libc::SYS_write, &[writer, SCRATCH, 4]), libc::EPIPE);
}

#[test]
fn a_named_pipe_opens_when_both_ends_do() {
    let mut guest = Guest::new();
    let path = guest.text(0, "/tmp/fifo");
    let mode = u64::from(libc::S_IFIFO | 0o600);
    assert_eq!(guest.done(libc::SYS_mknodat, &[AT_FDCWD, path, mode, 0]), 0);
    let other = guest.thread();
    let reading = guest.call_on(other, libc::SYS_openat, &[AT_FDCWD, path, 0, 0]);
    assert_eq!(reading, Came::Blocked);
    let writer = guest.done(libc::SYS_openat, &[AT_FDCWD, path, libc::O_WRONLY as u64, 0]);
    let Came::Back(reader) = guest.turn_of(other) else {
        panic!("the reader's opening still waits")
    };
    guest.put(SCRATCH, b"through");
    assert_eq!(guest.done(libc::SYS_write, &[writer as u64, SCRATCH, 7]), 7);
    assert_eq!(
        guest.done(libc::SYS_read, &[reader as u64, SCRATCH + 0x100, 100]),
        7
    );
    // The call that opened the reader holds it no longer: closing it is the end of all readers.
    assert_eq!(guest.done(libc::SYS_close, &[reader as u64]), 0);
    let nonblocking = (libc::O_WRONLY | libc::O_NONBLOCK) as u64;
    assert_eq!(
        guest.fails(libc::SYS_openat, &[AT_FDCWD, path, nonblocking, 0]),
        libc::ENXIO
    );
}

#[test]
fn an_anonymous_pipe_is_opened_again_at_once() {
    let mut guest = Guest::new();
    let (reader, writer) = pipe(&mut guest);
    assert_eq!(guest.done(libc::SYS_close, &[writer]), 0);
    let again = guest.open(&format!("/proc/self/fd/{reader}"), libc::O_RDONLY) as u64;
    assert_eq!(
        guest.done(libc::SYS_read, &[again, SCRATCH, 1]),
        0,
        "nobody writes"
    );
}

#[test]
fn a_file_opened_for_its_path_is_good_for_nothing_else() {
    let mut guest = Guest::new();
    guest.open("/tmp/f", libc::O_CREAT | libc::O_RDWR);
    let fd = guest.open("/tmp/f", libc::O_PATH) as u64;
    for (number, args) in [
        (libc::SYS_fchmod, vec![fd, 0o600]),
        (libc::SYS_fchown, vec![fd, 993, 990]),
        (libc::SYS_ftruncate, vec![fd, 0]),
        (libc::SYS_fallocate, vec![fd, 0, 0, 1]),
        (libc::SYS_fsync, vec![fd]),
        (libc::SYS_fcntl, vec![fd, libc::F_SETFL as u64, 0]),
        (libc::SYS_getdents64, vec![fd, SCRATCH, 100]),
    ] {
        assert_eq!(guest.fails(number, &args), libc::EBADF, "call {number}");
    }
    let flags = guest.done(libc::SYS_fcntl, &[fd, libc::F_GETFL as u64]);
    assert_eq!(flags, i64::from(libc::O_PATH));
    assert_eq!(guest.done(libc::SYS_fstat, &[fd, SCRATCH]), 0);
}

#[test]
fn opening_truncates_also_for_a_reader() {
    let mut guest = Guest::new();
    let fd = guest.open("/tmp/f", libc::O_CREAT | libc::O_WRONLY) as u64;
    guest.put(SCRATCH, b"contents");
    assert_eq!(guest.done(libc::SYS_write, &[fd, SCRATCH, 8]), 8);
    guest.open("/tmp/f", libc::O_RDONLY | libc::O_TRUNC);
    assert_eq!(guest.done(libc::SYS_lseek, &[fd, 0, libc::SEEK_END as u64]), 0);
    let path = guest.text(0, "/tmp");
    let truncate = libc::O_TRUNC as u64;
    assert_eq!(
        guest.fails(libc::SYS_openat, &[AT_FDCWD, path, truncate, 0]),
        libc::EISDIR
    );
}

/// Names in a listing of the newer form, `bytes` long, at the start of the scratch memory.
fn names(guest: &mut Guest, bytes: i64) -> Vec<String> {
    let raw = guest.get(SCRATCH, bytes as usize);
    let mut names = Vec::new();
    let mut at = 0;
    while at < raw.len() {
        let record = u16::from_le_bytes([raw[at + 16], raw[at + 17]]) as usize;
        let name = raw[at + 19..].split(|byte| *byte == 0).next().unwrap();
        names.push(String::from_utf8(name.to_vec()).unwrap());
        at += record;
    }
    names
}

#[test]
fn removing_names_while_they_are_listed_skips_none() {
    let mut guest = Guest::new();
    let path = guest.text(1, "/tmp/d");
    assert_eq!(guest.done(libc::SYS_mkdirat, &[AT_FDCWD, path, 0o700]), 0);
    for n in 0..20 {
        guest.open(&format!("/tmp/d/{n:02}"), libc::O_CREAT | libc::O_WRONLY);
    }
    let directory = guest.open("/tmp/d", libc::O_DIRECTORY) as u64;
    let mut removed = 0;
    loop {
        let bytes = guest.done(libc::SYS_getdents64, &[directory, SCRATCH, 80]);
        if bytes == 0 {
            break;
        }
        for name in names(&mut guest, bytes) {
            if !name.starts_with('.') {
                let path = guest.text(0, &format!("/tmp/d/{name}"));
                assert_eq!(guest.done(libc::SYS_unlinkat, &[AT_FDCWD, path, 0]), 0);
                removed += 1;
            }
        }
    }
    assert_eq!(removed, 20);
}

#[test]
fn the_older_listing_has_the_type_behind_the_name() {
    let mut guest = Guest::new();
    let path = guest.text(1, "/tmp/d");
    assert_eq!(guest.done(libc::SYS_mkdirat, &[AT_FDCWD, path, 0o700]), 0);
    let directory = guest.open("/tmp/d", libc::O_DIRECTORY) as u64;
    assert_eq!(guest.done(libc::SYS_getdents, &[directory, SCRATCH, 4096]), 48);
    let raw = guest.get(SCRATCH, 48);
    assert_eq!(
        (&raw[18..20], raw[23], &raw[42..45], raw[47]),
        (b".\0".as_slice(), libc::DT_DIR, b"..\0".as_slice(), libc::DT_DIR)
    );
}

#[test]
fn descriptors_tell_position_and_flags() {
    let mut guest = Guest::new();
    let fd = guest.open("/tmp/f", libc::O_CREAT | libc::O_RDWR) as u64;
    assert_eq!(guest.done(libc::SYS_lseek, &[fd, 7, libc::SEEK_SET as u64]), 7);
    let info = guest.open(&format!("/proc/self/fdinfo/{fd}"), libc::O_RDONLY) as u64;
    let bytes = guest.done(libc::SYS_read, &[info, SCRATCH, 4096]);
    let text = String::from_utf8(guest.get(SCRATCH, bytes as usize)).unwrap();
    assert!(text.starts_with("pos:\t7\nflags:\t0100002\n"), "{text}");
}

/// Programs copy by hand where files cannot be spliced, and Go does so for this error alone.
#[test]
fn files_cannot_be_spliced() {
    let mut guest = Guest::new();
    let (read, write) = pipe(&mut guest);
    let splice = [read, 0, write, 0, 4096, 0];
    assert_eq!(guest.fails(libc::SYS_splice, &splice), libc::EINVAL);
}
