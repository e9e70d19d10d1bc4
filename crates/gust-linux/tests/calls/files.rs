//! Files, directories and descriptors.

use crate::guest::{AT_FDCWD, Came, Guest, NOWHERE, SCRATCH, error};

#[test]
fn what_is_written_is_read() {
    let mut guest = Guest::new();
    let fd = guest.open("/tmp/a", libc::O_RDWR | libc::O_CREAT) as u64;
    guest.put(SCRATCH, b"hello, world");
    assert_eq!(guest.done(libc::SYS_write, &[fd, SCRATCH, 12]), 12);
    assert_eq!(guest.done(libc::SYS_lseek, &[fd, 7, libc::SEEK_SET as u64]), 7);
    assert_eq!(guest.done(libc::SYS_read, &[fd, SCRATCH + 0x100, 100]), 5);
    assert_eq!(guest.get(SCRATCH + 0x100, 5), b"world");
    assert_eq!(guest.done(libc::SYS_pread64, &[fd, SCRATCH + 0x200, 5, 0]), 5);
    assert_eq!(guest.get(SCRATCH + 0x200, 5), b"hello");
    assert_eq!(guest.done(libc::SYS_ftruncate, &[fd, 3]), 0);
    assert_eq!(guest.done(libc::SYS_lseek, &[fd, 0, libc::SEEK_END as u64]), 3);
    assert_eq!(guest.done(libc::SYS_close, &[fd]), 0);
    assert_eq!(guest.fails(libc::SYS_read, &[fd, SCRATCH, 1]), libc::EBADF);
}

#[test]
fn a_hole_reads_as_zeros() {
    let mut guest = Guest::new();
    let fd = guest.open("/tmp/a", libc::O_RDWR | libc::O_CREAT) as u64;
    guest.put(SCRATCH, b"x");
    assert_eq!(guest.done(libc::SYS_pwrite64, &[fd, SCRATCH, 1, 10_000]), 1);
    guest.put(SCRATCH, &[1; 64]);
    assert_eq!(guest.done(libc::SYS_pread64, &[fd, SCRATCH, 64, 9_000]), 64);
    assert_eq!(guest.get(SCRATCH, 64), [0; 64]);
}

#[test]
fn the_image_cannot_be_written() {
    let mut guest = Guest::new();
    assert_eq!(guest.open("/etc/hostname", libc::O_RDWR), -i64::from(libc::EROFS));
    assert_eq!(
        guest.open("/new", libc::O_RDWR | libc::O_CREAT),
        -i64::from(libc::EROFS)
    );
    let fd = guest.open("/etc/hostname", libc::O_RDONLY) as u64;
    assert_eq!(guest.done(libc::SYS_read, &[fd, SCRATCH, 100]), 6);
    assert_eq!(guest.fails(libc::SYS_write, &[fd, SCRATCH, 1]), libc::EBADF);
    let path = guest.text(0, "/etc/hostname");
    assert_eq!(guest.fails(libc::SYS_unlink, &[path]), libc::EROFS);
}

#[test]
fn paths_are_walked_as_linux_walks_them() {
    let mut guest = Guest::new();
    for (path, expected) in [
        ("/nothing", libc::ENOENT),
        ("/etc/hostname/x", libc::ENOTDIR),
        ("", libc::ENOENT),
    ] {
        assert_eq!(guest.open(path, libc::O_RDONLY), -i64::from(expected), "{path}");
    }
    assert!(guest.open("/tmp/../etc/./hostname", libc::O_RDONLY) >= 0);
    assert!(guest.open("/../../etc/hostname", libc::O_RDONLY) >= 0);
    let long = format!("/tmp/{}", "n".repeat(300));
    assert_eq!(guest.open(&long, libc::O_RDONLY), -i64::from(libc::ENAMETOOLONG));
    let (a, b) = (guest.text(0, "/tmp/loop"), guest.text(1, "/tmp/loop"));
    assert_eq!(guest.done(libc::SYS_symlink, &[a, b]), 0);
    assert_eq!(guest.open("/tmp/loop", libc::O_RDONLY), -i64::from(libc::ELOOP));
}

/// A path that ends in a slash names a directory, also when a link stands there.
#[test]
fn a_slash_at_the_end_wants_a_directory() {
    let mut guest = Guest::new();
    let (target, link) = (guest.text(0, "/etc/hostname"), guest.text(1, "/tmp/link"));
    assert_eq!(guest.done(libc::SYS_symlink, &[target, link]), 0);
    let slashed = guest.text(2, "/tmp/link/");
    assert_eq!(guest.fails(libc::SYS_stat, &[slashed, SCRATCH]), libc::ENOTDIR);
    assert_eq!(guest.fails(libc::SYS_chmod, &[slashed, 0o600]), libc::ENOTDIR);
    assert_eq!(guest.fails(libc::SYS_open, &[slashed, 0, 0]), libc::ENOTDIR);
    assert_eq!(guest.done(libc::SYS_stat, &[link, SCRATCH]), 0);
}

#[test]
fn directories_are_listed_moved_and_removed() {
    let mut guest = Guest::new();
    let made = guest.text(0, "/tmp/d");
    assert_eq!(guest.done(libc::SYS_mkdir, &[made, 0o755]), 0);
    assert_eq!(guest.fails(libc::SYS_mkdir, &[made, 0o755]), libc::EEXIST);
    assert!(guest.open("/tmp/d/file", libc::O_RDWR | libc::O_CREAT | libc::O_EXCL) >= 0);
    let made = guest.text(0, "/tmp/d");
    assert_eq!(guest.fails(libc::SYS_rmdir, &[made]), libc::ENOTEMPTY);
    let to = guest.text(1, "/tmp/e");
    assert_eq!(guest.done(libc::SYS_rename, &[made, to]), 0);
    let fd = guest.open("/tmp/e", libc::O_RDONLY | libc::O_DIRECTORY) as u64;
    let bytes = guest.done(libc::SYS_getdents64, &[fd, SCRATCH, 4096]);
    let listed = guest.get(SCRATCH, bytes as usize);
    assert!(listed.windows(5).any(|name| name == b"file\0"));
    assert_eq!(guest.done(libc::SYS_getdents64, &[fd, SCRATCH, 4096]), 0);
    let into = guest.text(1, "/tmp/e/inside");
    let from = guest.text(0, "/tmp/e");
    assert_eq!(guest.fails(libc::SYS_rename, &[from, into]), libc::EINVAL);
}

#[test]
fn a_removed_file_lives_as_long_as_it_is_open() {
    let mut guest = Guest::new();
    let fd = guest.open("/tmp/a", libc::O_RDWR | libc::O_CREAT) as u64;
    let path = guest.text(0, "/tmp/a");
    assert_eq!(guest.done(libc::SYS_unlink, &[path]), 0);
    assert_eq!(guest.fails(libc::SYS_unlink, &[path]), libc::ENOENT);
    guest.put(SCRATCH, b"still");
    assert_eq!(guest.done(libc::SYS_pwrite64, &[fd, SCRATCH, 5, 0]), 5);
    assert_eq!(guest.done(libc::SYS_pread64, &[fd, SCRATCH, 9, 0]), 5);
}

#[test]
fn room_for_files_is_bounded() {
    let mut guest = Guest::new();
    let fd = guest.open("/tmp/a", libc::O_RDWR | libc::O_CREAT) as u64;
    let mut written = 0;
    let full = loop {
        match guest.call(libc::SYS_write, &[fd, SCRATCH, 100_000]) {
            Came::Back(bytes) if bytes > 0 => written += bytes,
            other => break other,
        }
        assert!(written <= 1 << 20, "more than the limit");
    };
    assert_eq!(full, error(libc::ENOSPC));
    // What is removed is room again.
    guest.done(libc::SYS_ftruncate, &[fd, 0]);
    assert_eq!(guest.done(libc::SYS_pwrite64, &[fd, SCRATCH, 100, 0]), 100);
}

#[test]
fn descriptors_are_bounded_and_the_lowest_is_taken() {
    let mut guest = Guest::new();
    let first = guest.open("/dev/null", libc::O_RDONLY) as u64;
    let second = guest.open("/dev/null", libc::O_RDONLY) as u64;
    assert_eq!(guest.done(libc::SYS_close, &[first]), 0);
    assert_eq!(guest.done(libc::SYS_dup, &[second]) as u64, first);
    assert_eq!(guest.done(libc::SYS_dup2, &[second, 77]), 77);
    let path = guest.text(0, "/dev/null");
    let opened = (0..100_000)
        .map(|_| guest.done(libc::SYS_openat, &[AT_FDCWD, path, 0, 0]))
        .find(|fd| *fd < 0);
    assert_eq!(opened, Some(-i64::from(libc::EMFILE)));
}

#[test]
fn bad_pointers_fail_and_change_nothing() {
    let mut guest = Guest::new();
    let fd = guest.open("/tmp/a", libc::O_RDWR | libc::O_CREAT) as u64;
    for pointer in [0, NOWHERE, u64::MAX, 0x7f80_0000_0000, 1 << 63] {
        assert_eq!(guest.fails(libc::SYS_write, &[fd, pointer, 10]), libc::EFAULT);
        assert_eq!(
            guest.fails(libc::SYS_openat, &[AT_FDCWD, pointer, 0, 0]),
            libc::EFAULT
        );
        assert_eq!(guest.fails(libc::SYS_fstat, &[fd, pointer]), libc::EFAULT);
    }
    assert_eq!(guest.done(libc::SYS_lseek, &[fd, 0, libc::SEEK_END as u64]), 0);
}

#[test]
fn devices_and_proc_are_there() {
    let mut guest = Guest::new();
    let zero = guest.open("/dev/zero", libc::O_RDONLY) as u64;
    guest.put(SCRATCH, &[1; 16]);
    assert_eq!(guest.done(libc::SYS_read, &[zero, SCRATCH, 16]), 16);
    assert_eq!(guest.get(SCRATCH, 16), [0; 16]);
    let random = guest.open("/dev/urandom", libc::O_RDONLY) as u64;
    assert_eq!(guest.done(libc::SYS_read, &[random, SCRATCH, 16]), 16);
    assert_ne!(guest.get(SCRATCH, 16), [0; 16]);
    let maps = guest.open("/proc/self/maps", libc::O_RDONLY) as u64;
    let bytes = guest.done(libc::SYS_read, &[maps, SCRATCH, 60_000]);
    let text = String::from_utf8(guest.get(SCRATCH, bytes as usize)).unwrap();
    assert!(
        text.contains("/program") && text.contains("10000000-10100000 rw-p"),
        "{text}"
    );
    let full = guest.open("/dev/full", libc::O_WRONLY) as u64;
    assert_eq!(guest.fails(libc::SYS_write, &[full, SCRATCH, 1]), libc::ENOSPC);
}

#[test]
fn output_goes_outside() {
    let mut guest = Guest::new();
    guest.put(SCRATCH, b"to the log\n");
    assert_eq!(guest.done(libc::SYS_write, &[1, SCRATCH, 11]), 11);
    assert_eq!(guest.world.output, b"to the log\n");
}

#[test]
fn a_link_that_leads_nowhere_takes_its_name() {
    let mut guest = Guest::new();
    let (target, link) = (guest.text(1, "/tmp/nothing"), guest.text(2, "/tmp/link"));
    guest.done(libc::SYS_symlinkat, &[target, AT_FDCWD, link]);
    for path in ["/tmp/link/", "/tmp/link//", "/tmp/link"] {
        let path = guest.text(3, path);
        assert_eq!(guest.fails(libc::SYS_mkdir, &[path, 0o755]), libc::EEXIST);
    }
    let fresh = guest.text(3, "/tmp/fresh//");
    assert_eq!(
        guest.fails(libc::SYS_symlinkat, &[target, AT_FDCWD, fresh]),
        libc::ENOENT
    );
    assert_eq!(guest.done(libc::SYS_mkdir, &[fresh, 0o755]), 0);
}

#[test]
fn a_file_is_not_copied_onto_bytes_that_are_copied() {
    let mut guest = Guest::new();
    let fd = guest.open("/tmp/f", libc::O_CREAT | libc::O_RDWR) as u64;
    guest.done(libc::SYS_write, &[fd, SCRATCH, 100]);
    let mut copy = |from: u64, to: u64, bytes: u64| {
        guest.put(SCRATCH, &from.to_le_bytes());
        guest.put(SCRATCH + 8, &to.to_le_bytes());
        let args = [fd, SCRATCH, fd, SCRATCH + 8, bytes, 0];
        guest.done(libc::SYS_copy_file_range, &args)
    };
    let overlap = -i64::from(libc::EINVAL);
    assert_eq!(copy(0, 0, 1), overlap);
    assert_eq!(copy(0, 50, 60), overlap);
    assert_eq!(copy(50, 0, 60), 50);
    assert_eq!(copy(50, 40, 20), overlap);
    // What lies past the end is not copied.
    assert_eq!(copy(90, 100, 1000), 10);
}

#[test]
fn a_place_past_the_last_offset_is_none() {
    let mut guest = Guest::new();
    let fd = guest.open("/tmp/f", libc::O_CREAT | libc::O_RDWR) as u64;
    let last = i64::MAX as u64;
    for call in [libc::SYS_pread64, libc::SYS_pwrite64] {
        assert_eq!(guest.fails(call, &[fd, SCRATCH, 1, last]), libc::EINVAL);
        assert_eq!(guest.fails(call, &[fd, SCRATCH, u64::MAX, last]), libc::EINVAL);
    }
}
