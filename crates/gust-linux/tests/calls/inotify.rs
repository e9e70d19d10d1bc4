//! inotify: what is told of files and directories, to whom, and under which name.

use libc::{
    IN_ACCESS, IN_ALL_EVENTS, IN_ATTRIB, IN_CLOSE_NOWRITE, IN_CLOSE_WRITE, IN_CREATE, IN_DELETE,
    IN_DELETE_SELF, IN_DONT_FOLLOW, IN_EXCL_UNLINK, IN_IGNORED, IN_ISDIR, IN_MASK_ADD, IN_MASK_CREATE,
    IN_MODIFY, IN_MOVE_SELF, IN_MOVED_FROM, IN_MOVED_TO, IN_NONBLOCK, IN_ONLYDIR, IN_OPEN, O_CREAT,
    O_DIRECTORY, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY,
};

use crate::guest::{AT_FDCWD, Came, Guest, NOWHERE, SCRATCH};

#[derive(Debug, Clone, PartialEq, Eq)]
struct Event {
    watch: i64,
    mask: u32,
    cookie: u32,
    name: String,
}

fn event(watch: i64, mask: u32, name: &str) -> Event {
    Event {
        watch,
        mask,
        cookie: 0,
        name: name.into(),
    }
}

fn instance(guest: &mut Guest) -> u64 {
    guest.done(libc::SYS_inotify_init1, &[IN_NONBLOCK as u64]) as u64
}

fn watch(guest: &mut Guest, fd: u64, path: &str, mask: u32) -> i64 {
    let path = guest.text(1, path);
    guest.done(libc::SYS_inotify_add_watch, &[fd, path, u64::from(mask)])
}

fn by_path(guest: &mut Guest, call: i64, path: &str, rest: &[u64]) -> i64 {
    let path = guest.text(1, path);
    guest.done(call, &[&[path], rest].concat())
}

fn by_paths(guest: &mut Guest, call: i64, from: &str, to: &str) {
    let (from, to) = (guest.text(1, from), guest.text(2, to));
    assert_eq!(guest.done(call, &[from, to]), 0);
}

/// All events that are there.
fn events(guest: &mut Guest, fd: u64) -> Vec<Event> {
    let bytes = guest.done(libc::SYS_read, &[fd, SCRATCH, 4096]);
    if bytes == -i64::from(libc::EAGAIN) {
        return Vec::new();
    }
    let raw = guest.get(SCRATCH, bytes as usize);
    let mut rest = raw.as_slice();
    let mut found = Vec::new();
    while !rest.is_empty() {
        let word = |n: usize| u32::from_le_bytes(rest[4 * n..4 * n + 4].try_into().unwrap());
        let name_bytes = word(3) as usize;
        assert_eq!(name_bytes % 16, 0);
        let name = String::from_utf8(rest[16..16 + name_bytes].to_vec()).unwrap();
        found.push(Event {
            watch: i64::from(word(0) as i32),
            mask: word(1),
            cookie: word(2),
            name: name.trim_end_matches('\0').into(),
        });
        rest = &rest[16 + name_bytes..];
    }
    found
}

/// A guest with a watched directory `/tmp/d`: its instance and its watch.
fn watched_directory(mask: u32) -> (Guest, u64, i64) {
    let mut guest = Guest::new();
    by_path(&mut guest, libc::SYS_mkdir, "/tmp/d", &[0o755]);
    let fd = instance(&mut guest);
    let watch = watch(&mut guest, fd, "/tmp/d", mask);
    (guest, fd, watch)
}

#[test]
fn what_is_done_in_a_directory_is_told_with_its_name() {
    let (mut guest, fd, d) = watched_directory(IN_ALL_EVENTS);
    let file = guest.open("/tmp/d/f", O_CREAT | O_TRUNC | O_RDWR) as u64;
    guest.done(libc::SYS_write, &[file, SCRATCH, 3]);
    guest.done(libc::SYS_pread64, &[file, SCRATCH, 3, 0]);
    // Nothing is read at the end, and nothing told.
    guest.done(libc::SYS_read, &[file, SCRATCH, 3]);
    guest.done(libc::SYS_ftruncate, &[file, 1]);
    guest.done(libc::SYS_fchmod, &[file, 0o600]);
    guest.done(libc::SYS_close, &[file]);
    by_path(&mut guest, libc::SYS_mkdir, "/tmp/d/sub", &[0o755]);
    by_path(&mut guest, libc::SYS_rmdir, "/tmp/d/sub", &[]);
    by_path(&mut guest, libc::SYS_unlink, "/tmp/d/f", &[]);
    assert_eq!(
        events(&mut guest, fd),
        [
            event(d, IN_CREATE, "f"),
            event(d, IN_OPEN, "f"),
            event(d, IN_MODIFY, "f"),
            event(d, IN_ACCESS, "f"),
            event(d, IN_MODIFY, "f"),
            event(d, IN_ATTRIB, "f"),
            event(d, IN_CLOSE_WRITE, "f"),
            event(d, IN_CREATE | IN_ISDIR, "sub"),
            event(d, IN_DELETE | IN_ISDIR, "sub"),
            event(d, IN_DELETE, "f"),
        ]
    );
    assert_eq!(events(&mut guest, fd), []);
}

#[test]
fn a_move_is_told_by_two_events_that_belong_together() {
    let (mut guest, fd, d) = watched_directory(IN_ALL_EVENTS);
    guest.open("/tmp/d/old", O_CREAT | O_WRONLY);
    guest.open("/tmp/d/taken", O_CREAT | O_WRONLY);
    let old = watch(&mut guest, fd, "/tmp/d/old", IN_MOVE_SELF);
    let taken = watch(&mut guest, fd, "/tmp/d/taken", IN_ATTRIB);
    events(&mut guest, fd);
    by_paths(&mut guest, libc::SYS_rename, "/tmp/d/old", "/tmp/d/taken");
    let told = events(&mut guest, fd);
    let cookie = told[0].cookie;
    assert_ne!(cookie, 0);
    let half = |mask, name| Event {
        cookie,
        ..event(d, mask, name)
    };
    assert_eq!(
        told,
        [
            half(IN_MOVED_FROM, "old"),
            half(IN_MOVED_TO, "taken"),
            event(taken, IN_ATTRIB, ""),
            event(old, IN_MOVE_SELF, ""),
        ]
    );
    by_paths(&mut guest, libc::SYS_rename, "/tmp/d/taken", "/tmp/other");
    let told = events(&mut guest, fd);
    assert_eq!((told.len(), told[0].mask), (2, IN_MOVED_FROM));
    assert_ne!(told[0].cookie, cookie);
}

#[test]
fn an_open_file_is_told_of_under_the_name_that_it_has_now() {
    let (mut guest, fd, d) = watched_directory(IN_MODIFY);
    let file = guest.open("/tmp/d/a", O_CREAT | O_WRONLY) as u64;
    let write = |guest: &mut Guest| assert_eq!(guest.done(libc::SYS_write, &[file, SCRATCH, 1]), 1);
    by_paths(&mut guest, libc::SYS_rename, "/tmp/d/a", "/tmp/d/b");
    write(&mut guest);
    assert_eq!(events(&mut guest, fd), [event(d, IN_MODIFY, "b")]);
    by_paths(&mut guest, libc::SYS_rename, "/tmp/d/b", "/tmp/c");
    write(&mut guest);
    assert_eq!(events(&mut guest, fd), []);
    // A second link in the directory is not the name that the file was opened by.
    by_paths(&mut guest, libc::SYS_link, "/tmp/c", "/tmp/d/link");
    write(&mut guest);
    assert_eq!(events(&mut guest, fd), []);
}

#[test]
fn a_removed_file_is_told_of_until_it_is_closed() {
    let (mut guest, fd, d) = watched_directory(IN_ALL_EVENTS);
    let strict = instance(&mut guest);
    watch(&mut guest, strict, "/tmp/d", IN_MODIFY | IN_EXCL_UNLINK);
    let file = guest.open("/tmp/d/f", O_CREAT | O_WRONLY) as u64;
    let f = watch(&mut guest, fd, "/tmp/d/f", IN_DELETE_SELF | IN_ATTRIB);
    by_path(&mut guest, libc::SYS_unlink, "/tmp/d/f", &[]);
    events(&mut guest, fd);
    guest.done(libc::SYS_write, &[file, SCRATCH, 1]);
    assert_eq!(events(&mut guest, fd), [event(d, IN_MODIFY, "f")]);
    assert_eq!(events(&mut guest, strict), []);
    guest.done(libc::SYS_close, &[file]);
    assert_eq!(
        events(&mut guest, fd),
        [
            event(d, IN_CLOSE_WRITE, "f"),
            event(f, IN_DELETE_SELF, ""),
            event(f, IN_IGNORED, ""),
        ]
    );
    assert_eq!(
        guest.fails(libc::SYS_inotify_rm_watch, &[fd, f as u64]),
        libc::EINVAL
    );
}

#[test]
fn a_node_that_takes_anothers_number_is_not_taken_for_it() {
    let (mut guest, fd, d) = watched_directory(IN_ALL_EVENTS);
    let file = guest.open("/tmp/d/f", O_CREAT | O_WRONLY) as u64;
    by_path(&mut guest, libc::SYS_unlink, "/tmp/d/f", &[]);
    by_path(&mut guest, libc::SYS_rmdir, "/tmp/d", &[]);
    let told = events(&mut guest, fd);
    assert!(told.ends_with(&[event(d, IN_DELETE_SELF, ""), event(d, IN_IGNORED, "")]));
    // The first node that is made gets the lowest number, which was the directory's.
    by_path(&mut guest, libc::SYS_mkdir, "/tmp/new", &[0o755]);
    watch(&mut guest, fd, "/tmp/new", IN_ALL_EVENTS);
    guest.done(libc::SYS_write, &[file, SCRATCH, 1]);
    guest.done(libc::SYS_close, &[file]);
    assert_eq!(events(&mut guest, fd), []);
}

#[test]
fn directories_are_told_of_by_the_name_that_they_have() {
    let (mut guest, fd, d) = watched_directory(IN_ALL_EVENTS);
    by_path(&mut guest, libc::SYS_mkdir, "/tmp/d/sub", &[0o755]);
    events(&mut guest, fd);
    let sub = guest.open("/tmp/d/sub/.", O_RDONLY | O_DIRECTORY) as u64;
    guest.done(libc::SYS_getdents64, &[sub, SCRATCH, 4096]);
    guest.done(libc::SYS_close, &[sub]);
    assert_eq!(
        events(&mut guest, fd),
        [IN_OPEN, IN_ACCESS, IN_CLOSE_NOWRITE].map(|mask| event(d, mask | IN_ISDIR, "sub"))
    );
    // What is mounted is not told of where it is mounted.
    let slash = watch(&mut guest, fd, "/", IN_ALL_EVENTS);
    let tmp = guest.open("/tmp", O_RDONLY) as u64;
    guest.done(libc::SYS_close, &[tmp]);
    let etc = guest.open("/etc", O_RDONLY) as u64;
    guest.done(libc::SYS_close, &[etc]);
    assert_eq!(
        events(&mut guest, fd),
        [IN_OPEN, IN_CLOSE_NOWRITE].map(|mask| event(slash, mask | IN_ISDIR, "etc"))
    );
}

#[test]
fn a_reader_waits_for_an_event_and_polls_see_it() {
    let (mut guest, _, d) = watched_directory(IN_CREATE);
    let fd = guest.done(libc::SYS_inotify_init, &[]) as u64;
    watch(&mut guest, fd, "/tmp/d", IN_CREATE);
    let poll = |guest: &mut Guest| {
        let asked = fd | u64::from(libc::POLLIN as u16) << 32;
        guest.put(SCRATCH, &asked.to_le_bytes());
        guest.done(libc::SYS_poll, &[SCRATCH, 1, 0])
    };
    assert_eq!(poll(&mut guest), 0);
    let reader = guest.thread();
    assert_eq!(
        guest.call_on(reader, libc::SYS_read, &[fd, SCRATCH + 4096, 64]),
        Came::Blocked
    );
    by_path(&mut guest, libc::SYS_mkdir, "/tmp/d/x", &[0o755]);
    assert_eq!(guest.turn_of(reader), Came::Back(32));
    by_path(&mut guest, libc::SYS_mkdir, "/tmp/d/y", &[0o755]);
    assert_eq!(poll(&mut guest), 1);
    assert_eq!(guest.done(libc::SYS_ioctl, &[fd, libc::FIONREAD, SCRATCH]), 0);
    assert_eq!(guest.word(SCRATCH) as u32, 32);
    assert_eq!(guest.fails(libc::SYS_read, &[fd, SCRATCH, 31]), libc::EINVAL);
    assert_eq!(events(&mut guest, fd), [event(d, IN_CREATE | IN_ISDIR, "y")]);
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let mut guest = Guest::new();
    let fd = instance(&mut guest);
    assert_eq!(guest.fails(libc::SYS_inotify_init1, &[1]), libc::EINVAL);
    let (tmp, file) = (guest.text(1, "/tmp"), guest.text(2, "/etc/hostname"));
    let (link, missing) = (guest.text(3, "/tmp/link"), guest.text(4, "/nothing"));
    guest.done(libc::SYS_symlinkat, &[missing, AT_FDCWD, link]);
    let plain = guest.open("/etc/hostname", O_RDONLY) as u64;
    let add = libc::SYS_inotify_add_watch;
    for ((fd, path, mask), errno) in [
        ((fd, tmp, 0), libc::EINVAL),
        ((fd, tmp, IN_MASK_ADD | IN_MASK_CREATE), libc::EINVAL),
        ((plain, tmp, IN_OPEN), libc::EINVAL),
        ((77, tmp, IN_OPEN), libc::EBADF),
        ((fd, missing, IN_OPEN), libc::ENOENT),
        ((fd, link, IN_OPEN), libc::ENOENT),
        ((fd, NOWHERE, IN_OPEN), libc::EFAULT),
        ((fd, file, IN_OPEN | IN_ONLYDIR), libc::ENOTDIR),
    ] {
        assert_eq!(
            guest.fails(add, &[fd, path, u64::from(mask)]),
            errno,
            "{fd} {path:x} {mask:x}"
        );
    }
    assert_eq!(
        guest.done(add, &[fd, link, u64::from(IN_OPEN | IN_DONT_FOLLOW)]),
        1
    );
    assert_eq!(guest.done(add, &[fd, tmp, u64::from(IN_OPEN)]), 2);
    let again = [fd, tmp, u64::from(IN_OPEN | IN_MASK_CREATE)];
    assert_eq!(guest.fails(add, &again), libc::EEXIST);
    for wrong in [0, 3, u64::MAX, 1 << 40] {
        assert_eq!(
            guest.fails(libc::SYS_inotify_rm_watch, &[fd, wrong]),
            libc::EINVAL
        );
    }
    assert_eq!(guest.fails(libc::SYS_write, &[fd, SCRATCH, 16]), libc::EBADF);
    assert_eq!(
        guest.fails(libc::SYS_pread64, &[fd, SCRATCH, 16, 0]),
        libc::ESPIPE
    );
    guest.open("/tmp/x", O_CREAT | O_WRONLY);
    let path = guest.text(1, "/tmp");
    let opened = guest.done(libc::SYS_openat, &[AT_FDCWD, path, O_RDONLY as u64, 0]);
    assert!(opened >= 0);
    assert_eq!(guest.fails(libc::SYS_read, &[fd, NOWHERE, 64]), libc::EFAULT);
}
