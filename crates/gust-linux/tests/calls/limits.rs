//! Limits that a program sets for itself, and mappings with conditions.

use crate::guest::{AT_FDCWD, Guest, SCRATCH};

const ANONYMOUS: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;

fn set(guest: &mut Guest, resource: u32, soft: u64, hard: u64) -> i64 {
    let at = guest.put(SCRATCH, &[soft, hard].map(u64::to_le_bytes).concat());
    guest.done(libc::SYS_setrlimit, &[u64::from(resource), at])
}

#[test]
fn limits_are_told_as_they_were_set() {
    let mut guest = Guest::new();
    assert_eq!(set(&mut guest, libc::RLIMIT_CORE, 0, 1), -i64::from(libc::EPERM));
    assert_eq!(
        set(&mut guest, libc::RLIMIT_STACK, 2, 1),
        -i64::from(libc::EINVAL)
    );
    assert_eq!(set(&mut guest, libc::RLIMIT_STACK, 4096, 8192), 0);
    let stack = u64::from(libc::RLIMIT_STACK);
    assert_eq!(guest.done(libc::SYS_prlimit64, &[0, stack, 0, SCRATCH]), 0);
    assert_eq!((guest.word(SCRATCH), guest.word(SCRATCH + 8)), (4096, 8192));
    assert_eq!(
        set(&mut guest, libc::RLIMIT_STACK, 1, 8193),
        -i64::from(libc::EPERM)
    );
}

#[test]
fn descriptors_end_at_the_limit() {
    let mut guest = Guest::new();
    let file = guest.open("/tmp/f", libc::O_CREAT | libc::O_RDWR) as u64;
    assert_eq!(set(&mut guest, libc::RLIMIT_NOFILE, file + 2, 1024), 0);
    assert_eq!(guest.done(libc::SYS_dup, &[file]), file as i64 + 1);
    assert_eq!(guest.fails(libc::SYS_dup, &[file]), libc::EMFILE);
    let path = guest.text(0, "/tmp/f");
    assert_eq!(
        guest.fails(libc::SYS_openat, &[AT_FDCWD, path, 0, 0]),
        libc::EMFILE
    );
    assert_eq!(guest.fails(libc::SYS_dup2, &[file, file + 2]), libc::EBADF);
    let command = libc::F_DUPFD as u64;
    assert_eq!(
        guest.fails(libc::SYS_fcntl, &[file, command, file + 2]),
        libc::EINVAL
    );
}

#[test]
fn the_address_space_and_the_heap_end_at_theirs() {
    let mut guest = Guest::new();
    let map = [0, 64 << 20, 3, ANONYMOUS, u64::MAX, 0];
    let heap = guest.done(libc::SYS_brk, &[0]) as u64;
    assert_eq!(set(&mut guest, libc::RLIMIT_DATA, 8192, u64::MAX), 0);
    assert_eq!(guest.done(libc::SYS_brk, &[heap + 8192]) as u64, heap + 8192);
    assert_eq!(guest.done(libc::SYS_brk, &[heap + 8193]) as u64, heap + 8192);
    assert!(guest.done(libc::SYS_mmap, &map) > 0);
    assert_eq!(set(&mut guest, libc::RLIMIT_AS, 32 << 20, u64::MAX), 0);
    assert_eq!(guest.fails(libc::SYS_mmap, &map), libc::ENOMEM);
}

#[test]
fn mappings_are_low_when_asked_for() {
    let mut guest = Guest::new();
    let low = ANONYMOUS | libc::MAP_32BIT as u64;
    let at = guest.done(libc::SYS_mmap, &[0x7000_0000_0000, 1 << 20, 3, low, u64::MAX, 0]);
    assert!((1..1 << 31).contains(&at), "{at:x}");
    let both = ANONYMOUS | libc::MAP_SHARED as u64;
    let refused = [0, 4096, 3, both, u64::MAX, 0];
    assert_eq!(guest.fails(libc::SYS_mmap, &refused), libc::EINVAL);
}

#[test]
fn a_sealed_file_is_not_mapped_for_writing() {
    let mut guest = Guest::new();
    let name = guest.text(0, "sealed");
    let sealable = u64::from(libc::MFD_ALLOW_SEALING);
    let file = guest.done(libc::SYS_memfd_create, &[name, sealable]) as u64;
    assert_eq!(guest.done(libc::SYS_ftruncate, &[file, 4096]), 0);
    let shared = [0, 4096, 3, libc::MAP_SHARED as u64, file, 0];
    let mapped = guest.done(libc::SYS_mmap, &shared) as u64;
    let seal = [file, libc::F_ADD_SEALS as u64, libc::F_SEAL_WRITE as u64];
    assert_eq!(guest.fails(libc::SYS_fcntl, &seal), libc::EBUSY);
    assert_eq!(guest.done(libc::SYS_munmap, &[mapped, 4096]), 0);
    assert_eq!(guest.done(libc::SYS_fcntl, &seal), 0);
    assert_eq!(guest.fails(libc::SYS_mmap, &shared), libc::EPERM);
    let unknown = [file, libc::F_ADD_SEALS as u64, 1 << 12];
    assert_eq!(guest.fails(libc::SYS_fcntl, &unknown), libc::EINVAL);
}
