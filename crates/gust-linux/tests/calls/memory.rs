//! Mappings.

use gust_linux::Ended;

use crate::guest::{Came, Guest, SCRATCH};

const RW: u64 = (libc::PROT_READ | libc::PROT_WRITE) as u64;
const ANONYMOUS: u64 = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
const NO_FILE: u64 = u64::MAX;

fn map(guest: &mut Guest, bytes: u64) -> u64 {
    let at = guest.done(libc::SYS_mmap, &[0, bytes, RW, ANONYMOUS, NO_FILE, 0]);
    assert!(at > 0, "{at}");
    at as u64
}

#[test]
fn new_memory_is_zero_and_of_its_own() {
    let mut guest = Guest::new();
    let (a, b) = (map(&mut guest, 0x3000), map(&mut guest, 0x3000));
    assert!(a + 0x3000 <= b || b + 0x3000 <= a);
    assert_eq!(guest.get(a, 0x3000), vec![0; 0x3000]);
    guest.put(a, &[7; 0x3000]);
    assert_eq!(guest.get(b, 0x3000), vec![0; 0x3000]);
}

#[test]
fn what_is_given_back_is_gone_and_comes_back_zero() {
    let mut guest = Guest::new();
    let at = map(&mut guest, 0x4000);
    guest.put(at, &[7; 0x4000]);
    assert_eq!(guest.done(libc::SYS_munmap, &[at + 0x1000, 0x1000]), 0);
    assert!(guest.vm.space().read(at + 0x1000, &mut [0; 8]).is_err());
    assert_eq!(guest.get(at + 0x2000, 4), [7; 4]);
    let fixed = ANONYMOUS | libc::MAP_FIXED as u64;
    let again = guest.done(libc::SYS_mmap, &[at + 0x1000, 0x1000, RW, fixed, NO_FILE, 0]);
    assert_eq!(again as u64, at + 0x1000);
    assert_eq!(guest.get(at + 0x1000, 0x1000), vec![0; 0x1000]);
    let dontneed = libc::MADV_DONTNEED as u64;
    assert_eq!(guest.done(libc::SYS_madvise, &[at + 0x2000, 0x1000, dontneed]), 0);
    assert_eq!(guest.get(at + 0x2000, 0x1000), vec![0; 0x1000]);
}

#[test]
fn rights_are_kept() {
    let mut guest = Guest::new();
    let at = map(&mut guest, 0x3000);
    guest.put(at, &[7; 0x3000]);
    let read = libc::PROT_READ as u64;
    assert_eq!(guest.done(libc::SYS_mprotect, &[at + 0x1000, 0x1000, read]), 0);
    assert!(guest.vm.space_mut().write(at + 0x1000, b"x").is_err());
    assert_eq!(guest.get(at + 0x1000, 1), [7]);
    assert_eq!(guest.done(libc::SYS_mprotect, &[at + 0x1000, 0x1000, 0]), 0);
    assert!(guest.vm.space().read(at + 0x1000, &mut [0]).is_err());
    // A call cannot be used to read past them.
    guest.put(SCRATCH, b"x");
    let null = guest.open("/dev/null", libc::O_WRONLY) as u64;
    let file = guest.open("/tmp/f", libc::O_RDWR | libc::O_CREAT) as u64;
    assert_eq!(
        guest.fails(libc::SYS_write, &[file, at + 0x1000, 8]),
        libc::EFAULT
    );
    assert_eq!(guest.done(libc::SYS_write, &[null, SCRATCH, 1]), 1);
    assert_eq!(guest.done(libc::SYS_mprotect, &[at + 0x1000, 0x1000, RW]), 0);
    assert_eq!(guest.get(at + 0x1000, 1), [7]);
}

#[test]
fn memory_moves_with_its_contents() {
    let mut guest = Guest::new();
    let at = map(&mut guest, 0x2000);
    guest.put(at, &[5; 0x2000]);
    let may_move = libc::MREMAP_MAYMOVE as u64;
    let to = guest.done(libc::SYS_mremap, &[at, 0x2000, 0x40_0000, may_move]) as u64;
    assert_eq!(guest.get(to, 0x2000), vec![5; 0x2000]);
    assert_eq!(guest.get(to + 0x2000, 0x1000), vec![0; 0x1000]);
    let back = guest.done(libc::SYS_mremap, &[to, 0x40_0000, 0x1000, may_move]) as u64;
    assert_eq!(back, to);
    assert!(guest.vm.space().read(to + 0x1000, &mut [0]).is_err());
}

#[test]
fn calls_on_terabytes_cost_what_is_in_them() {
    const TIB: u64 = 1 << 40;
    let mut guest = Guest::new();
    let reserve = |guest: &mut Guest, bytes| {
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as u64;
        guest.done(libc::SYS_mmap, &[0, bytes, RW, flags, u64::MAX, 0]) as u64
    };
    // Page by page, each turn would take minutes.
    for _ in 0..100 {
        let at = reserve(&mut guest, 32 * TIB);
        guest.put(at + 5 * TIB, b"here");
        let no_more_there = at + 32 * TIB;
        let fixed = (libc::MAP_FIXED | libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
        guest.call(libc::SYS_mmap, &[no_more_there, 0x1000, RW, fixed, u64::MAX, 0]);
        let may_move = libc::MREMAP_MAYMOVE as u64;
        let moved = guest.done(libc::SYS_mremap, &[at, 32 * TIB, 33 * TIB, may_move]) as u64;
        assert_ne!(moved, at);
        assert_eq!(guest.get(moved + 5 * TIB, 4), b"here");
        assert_eq!(guest.done(libc::SYS_munmap, &[moved, 33 * TIB]), 0);
        assert_eq!(guest.done(libc::SYS_munmap, &[no_more_there, 0x1000]), 0);
    }
    let file = guest.open("/tmp/sparse", libc::O_RDWR | libc::O_CREAT) as u64;
    assert_eq!(guest.done(libc::SYS_ftruncate, &[file, TIB]), 0);
    let flags = libc::MAP_SHARED as u64;
    let at = guest.done(libc::SYS_mmap, &[0, TIB, RW, flags, file, 0]) as u64;
    for turn in 0..100_u8 {
        guest.put(at + TIB - 0x1000, &[turn]);
        guest.done(libc::SYS_pread64, &[file, SCRATCH, 1, TIB - 0x1000]);
        assert_eq!(guest.get(SCRATCH, 1), [turn]);
        assert_eq!(guest.done(libc::SYS_msync, &[at, TIB, libc::MS_SYNC as u64]), 0);
    }
    // The answer about a gibibyte is 256 KiB.
    let reserved = reserve(&mut guest, 1 << 30);
    guest.put(reserved + 0x5000, b"x");
    for _ in 0..100 {
        assert_eq!(guest.done(libc::SYS_mincore, &[reserved, 1 << 30, SCRATCH]), 0);
    }
    let present = guest.get(SCRATCH, 1 << 18);
    assert_eq!(present[5], 1);
    assert!(present[0x200..].iter().all(|page| *page == 0));
    assert_eq!(guest.done(libc::SYS_munmap, &[reserved + 0x10_0000, 0x1000]), 0);
    assert_eq!(
        guest.fails(libc::SYS_mincore, &[reserved, 1 << 30, SCRATCH]),
        libc::ENOMEM
    );
}

#[test]
fn a_file_in_memory_lasts_as_long_as_its_last_mapping() {
    let mut guest = Guest::new();
    let file = guest.open("/tmp/kept", libc::O_RDWR | libc::O_CREAT) as u64;
    guest.put(SCRATCH, b"kept");
    assert_eq!(guest.done(libc::SYS_write, &[file, SCRATCH, 4]), 4);
    let flags = libc::MAP_PRIVATE as u64;
    let maps = [(); 3].map(|()| guest.done(libc::SYS_mmap, &[0, 0x1000, 1, flags, file, 0]) as u64);
    let path = guest.text(0, "/tmp/kept");
    assert_eq!(guest.done(libc::SYS_unlink, &[path]), 0);
    assert_eq!(guest.done(libc::SYS_close, &[file]), 0);
    for at in maps {
        assert_eq!(guest.get(at, 4), b"kept");
        assert_eq!(guest.done(libc::SYS_munmap, &[at, 0x1000]), 0);
    }
    // What it held is free again: the file system's room is what it was.
    let file = guest.open("/tmp/another", libc::O_RDWR | libc::O_CREAT) as u64;
    assert_eq!(
        guest.done(libc::SYS_fallocate, &[file, 0, 0, (1 << 20) - 0x4000]),
        0
    );
}

#[test]
fn the_break_grows_and_shrinks() {
    let mut guest = Guest::new();
    let start = guest.done(libc::SYS_brk, &[0]) as u64;
    assert_eq!(
        guest.done(libc::SYS_brk, &[start + 0x5000]) as u64,
        start + 0x5000
    );
    guest.put(start, &[1; 0x5000]);
    assert_eq!(guest.done(libc::SYS_brk, &[start]) as u64, start);
    assert_eq!(
        guest.done(libc::SYS_brk, &[start + 0x1000]) as u64,
        start + 0x1000
    );
    assert_eq!(guest.get(start, 0x1000), vec![0; 0x1000]);
    // What cannot be is refused by giving the old one.
    assert_eq!(guest.done(libc::SYS_brk, &[u64::MAX]) as u64, start + 0x1000);
}

#[test]
fn impossible_mappings_are_refused() {
    let mut guest = Guest::new();
    let fixed = ANONYMOUS | libc::MAP_FIXED as u64;
    for (args, expected) in [
        ([0, 0, RW, ANONYMOUS, NO_FILE, 0], libc::EINVAL),
        ([0, u64::MAX, RW, ANONYMOUS, NO_FILE, 0], libc::ENOMEM),
        ([0x1234, 0x1000, RW, fixed, NO_FILE, 0], libc::EINVAL),
        ([0x7f80_0000_0000, 0x1000, RW, fixed, NO_FILE, 0], libc::ENOMEM),
        ([!0xfff, 0x1000, RW, fixed, NO_FILE, 0], libc::ENOMEM),
        ([0, 0x1000, RW, libc::MAP_PRIVATE as u64, 99, 0], libc::EBADF),
        ([0, 0x1000, RW, 0, NO_FILE, 0], libc::EINVAL),
    ] {
        assert_eq!(guest.fails(libc::SYS_mmap, &args), expected, "{args:x?}");
    }
    // The memory of whoever runs the guest is not touched by any of them.
    assert!(guest.vm.space().read(0x7f80_0000_0000, &mut [0]).is_err());
}

#[test]
fn files_are_mapped_with_their_contents() {
    let mut guest = Guest::new();
    let fd = guest.open("/etc/hostname", libc::O_RDONLY) as u64;
    let private = libc::MAP_PRIVATE as u64;
    let at = guest.done(libc::SYS_mmap, &[0, 0x1000, RW, private, fd, 0]) as u64;
    // A file of the image is there at the latest when it is touched.
    guest.page_fault(at, false);
    assert_eq!(guest.get(at, 8), b"guest\n\0\0");
    guest.put(at, b"other");
    let again = guest.done(libc::SYS_pread64, &[fd, SCRATCH, 6, 0]);
    assert_eq!(
        (again, guest.get(SCRATCH, 6).as_slice()),
        (6, b"guest\n".as_slice())
    );
}

/// The limit is what the host says is resident, as with a control group.
#[test]
fn a_guest_past_its_limit_ends() {
    let mut guest = Guest::new();
    let mut came = Came::Back(0);
    for _ in 0..64 {
        guest.world.resident_bytes += 4 << 20;
        came = guest.call(
            libc::SYS_mmap,
            &[0, 4 << 20, RW, ANONYMOUS | libc::MAP_POPULATE as u64, NO_FILE, 0],
        );
        if !matches!(came, Came::Back(at) if at > 0) {
            break;
        }
    }
    assert!(
        came == Came::Back(-i64::from(libc::ENOMEM)) || guest.ended() == Some(Ended::OutOfMemory),
        "{came:?} {:?}",
        guest.ended()
    );
}
