//! What threads wait for: pipes, futexes, counters, timers, and several files at once.

use gust_linux::Step;
use gust_vmm::Exit;

use crate::guest::{Came, Guest, SCRATCH, error};

const PRIVATE: u64 = libc::FUTEX_PRIVATE_FLAG as u64;

fn pipe(guest: &mut Guest, flags: i32) -> (u64, u64) {
    assert_eq!(guest.done(libc::SYS_pipe2, &[SCRATCH, flags as u64]), 0);
    let both = guest.word(SCRATCH);
    (both & 0xffff_ffff, both >> 32)
}

/// A timespec in the guest's memory.
fn time(guest: &mut Guest, seconds: i64, nanoseconds: i64) -> u64 {
    let at = SCRATCH + 0x9000;
    guest.put(at, &seconds.to_le_bytes());
    guest.put(at + 8, &nanoseconds.to_le_bytes());
    at
}

#[test]
fn a_reader_waits_for_a_writer() {
    let mut guest = Guest::new();
    let (read, write) = pipe(&mut guest, 0);
    let other = guest.thread();
    assert_eq!(
        guest.call_on(other, libc::SYS_read, &[read, SCRATCH + 0x100, 10]),
        Came::Blocked
    );
    guest.put(SCRATCH, b"abc");
    assert_eq!(guest.done(libc::SYS_write, &[write, SCRATCH, 3]), 3);
    assert_eq!(guest.turn_of(other), Came::Back(3));
    assert_eq!(guest.get(SCRATCH + 0x100, 3), b"abc");
    assert_eq!(guest.done(libc::SYS_close, &[write]), 0);
    assert_eq!(guest.done(libc::SYS_read, &[read, SCRATCH, 10]), 0);
}

#[test]
fn a_full_pipe_holds_its_writer_up() {
    let mut guest = Guest::new();
    let (read, write) = pipe(&mut guest, libc::O_NONBLOCK);
    assert_eq!(guest.done(libc::SYS_write, &[write, SCRATCH, 300_000]), 65_536);
    assert_eq!(guest.fails(libc::SYS_write, &[write, SCRATCH, 1]), libc::EAGAIN);
    assert_eq!(guest.done(libc::SYS_read, &[read, SCRATCH, 300_000]), 65_536);
    assert_eq!(guest.fails(libc::SYS_read, &[read, SCRATCH, 1]), libc::EAGAIN);
    guest.done(libc::SYS_close, &[read]);
    // The signal is ignored, so that the error is seen.
    guest.put(SCRATCH, &1u64.to_le_bytes());
    guest.put(SCRATCH + 8, &[0; 24]);
    guest.done(libc::SYS_rt_sigaction, &[libc::SIGPIPE as u64, SCRATCH, 0, 8]);
    assert_eq!(guest.fails(libc::SYS_write, &[write, SCRATCH, 1]), libc::EPIPE);
}

#[test]
fn a_futex_wakes_as_many_as_it_is_told() {
    let mut guest = Guest::new();
    let word = guest.put(SCRATCH, &5u32.to_le_bytes());
    let wait = libc::FUTEX_WAIT as u64 | PRIVATE;
    let wake = libc::FUTEX_WAKE as u64 | PRIVATE;
    assert_eq!(guest.fails(libc::SYS_futex, &[word, wait, 4, 0]), libc::EAGAIN);
    let other = guest.thread();
    assert_eq!(
        guest.call_on(other, libc::SYS_futex, &[word, wait, 5, 0]),
        Came::Blocked
    );
    // As on Linux, none is one; a requeue's none is none.
    let requeue = libc::FUTEX_REQUEUE as u64;
    assert_eq!(guest.done(libc::SYS_futex, &[word, requeue, 0, 0, word + 8]), 0);
    assert_eq!(guest.done(libc::SYS_futex, &[word, wake, 0]), 1);
    assert_eq!(guest.turn_of(other), Came::Back(0));
    assert_eq!(guest.done(libc::SYS_futex, &[word, wake, 9]), 0);
    assert_eq!(
        guest.fails(libc::SYS_futex, &[word + 1, wait, 5, 0]),
        libc::EINVAL
    );
}

/// A word that lies across two is refused, in every operation; it was tried for ever once.
#[test]
fn a_futex_is_a_whole_word() {
    let mut guest = Guest::new();
    let word = guest.put(SCRATCH, &[0; 64]);
    for operation in 0..14 {
        for (first, second) in [(word + 1, word), (word, word + 2), (word + 3, word + 1)] {
            guest.call(libc::SYS_futex, &[first, operation | PRIVATE, 1, 0, second, 0]);
            assert_eq!(guest.done(libc::SYS_getpid, &[]), 1, "operation {operation}");
        }
    }
    let wake_op = libc::FUTEX_WAKE_OP as u64;
    assert_eq!(
        guest.fails(libc::SYS_futex, &[word, wake_op, 1, 1, word + 2, 0]),
        libc::EINVAL
    );
}

#[test]
fn time_outs_of_all_lengths_end_or_never_do() {
    let mut guest = Guest::new();
    let word = guest.put(SCRATCH, &5u32.to_le_bytes());
    let wait = libc::FUTEX_WAIT as u64 | PRIVATE;
    for (seconds, nanoseconds) in [(0, 0), (0, 1), (3, 999_999_999)] {
        let before = guest.world.now_ns;
        let limit = time(&mut guest, seconds, nanoseconds);
        assert_eq!(
            guest.fails(libc::SYS_futex, &[word, wait, 5, limit]),
            libc::ETIMEDOUT
        );
        assert_eq!(
            guest.world.now_ns - before,
            (seconds * 1_000_000_000 + nanoseconds) as u64
        );
    }
    for (seconds, nanoseconds) in [(0, -1), (0, 1_000_000_000), (-1, 0)] {
        let limit = time(&mut guest, seconds, nanoseconds);
        assert_eq!(
            guest.fails(libc::SYS_futex, &[word, wait, 5, limit]),
            libc::EINVAL
        );
        assert_eq!(guest.fails(libc::SYS_nanosleep, &[limit, 0]), libc::EINVAL);
    }
    // Centuries: the clock of this test does not end before them either.
    let limit = time(&mut guest, i64::MAX, 0);
    assert_eq!(
        guest.call(libc::SYS_futex, &[word, wait, 5, limit]),
        error(libc::ETIMEDOUT)
    );
    assert!(guest.world.now_ns >= i64::MAX as u64);
}

#[test]
fn a_counter_counts() {
    let mut guest = Guest::new();
    let fd = guest.done(libc::SYS_eventfd2, &[3, libc::EFD_NONBLOCK as u64]) as u64;
    assert_eq!(guest.done(libc::SYS_read, &[fd, SCRATCH, 8]), 8);
    assert_eq!(guest.word(SCRATCH), 3);
    assert_eq!(guest.fails(libc::SYS_read, &[fd, SCRATCH, 8]), libc::EAGAIN);
    guest.put(SCRATCH, &u64::MAX.to_le_bytes());
    assert_eq!(guest.fails(libc::SYS_write, &[fd, SCRATCH, 8]), libc::EINVAL);
    guest.put(SCRATCH, &(u64::MAX - 1).to_le_bytes());
    assert_eq!(guest.done(libc::SYS_write, &[fd, SCRATCH, 8]), 8);
    guest.put(SCRATCH, &1u64.to_le_bytes());
    assert_eq!(guest.fails(libc::SYS_write, &[fd, SCRATCH, 8]), libc::EAGAIN);
}

#[test]
fn epoll_tells_of_an_edge_once_and_of_a_level_always() {
    let mut guest = Guest::new();
    let (read, write) = pipe(&mut guest, libc::O_NONBLOCK);
    let epoll = guest.done(libc::SYS_epoll_create1, &[0]) as u64;
    let event = SCRATCH + 0x400;
    let watch = |guest: &mut Guest, operation: i32, events: i32| {
        guest.put(event, &(events as u32).to_le_bytes());
        guest.put(event + 4, &42u64.to_le_bytes());
        guest.call(libc::SYS_epoll_ctl, &[epoll, operation as u64, read, event])
    };
    let edge = libc::EPOLLIN | libc::EPOLLET;
    assert_eq!(watch(&mut guest, libc::EPOLL_CTL_ADD, edge), Came::Back(0));
    assert_eq!(watch(&mut guest, libc::EPOLL_CTL_ADD, edge), error(libc::EEXIST));
    let ready = |guest: &mut Guest| guest.done(libc::SYS_epoll_wait, &[epoll, SCRATCH + 0x800, 8, 0]);
    assert_eq!(ready(&mut guest), 0);
    guest.done(libc::SYS_write, &[write, SCRATCH, 3]);
    assert_eq!(ready(&mut guest), 1);
    assert_eq!(guest.word(SCRATCH + 0x804), 42);
    assert_eq!(ready(&mut guest), 0, "an edge is told once");
    guest.done(libc::SYS_write, &[write, SCRATCH, 3]);
    assert_eq!(ready(&mut guest), 1, "the next edge is another");
    assert_eq!(
        watch(&mut guest, libc::EPOLL_CTL_MOD, libc::EPOLLIN),
        Came::Back(0)
    );
    assert_eq!((ready(&mut guest), ready(&mut guest)), (1, 1));
    guest.done(libc::SYS_read, &[read, SCRATCH, 100]);
    assert_eq!(ready(&mut guest), 0);
    let add = libc::EPOLL_CTL_ADD as u64;
    assert_eq!(
        guest.fails(libc::SYS_epoll_ctl, &[epoll, add, epoll, event]),
        libc::EINVAL
    );
}

#[test]
fn poll_waits_for_the_first_of_several() {
    let mut guest = Guest::new();
    let (read, write) = pipe(&mut guest, 0);
    let list = SCRATCH + 0x100;
    for (n, fd) in [read, write, 99].into_iter().enumerate() {
        guest.put(list + n as u64 * 8, &(fd as u32).to_le_bytes());
        let events = if n == 0 { libc::POLLIN } else { 0 };
        guest.put(list + n as u64 * 8 + 4, &(events as u32).to_le_bytes());
    }
    assert_eq!(
        guest.done(libc::SYS_poll, &[list, 3, 0]),
        1,
        "one that is not open"
    );
    assert_eq!(guest.get(list + 22, 2), (libc::POLLNVAL as u16).to_le_bytes());
    let before = guest.world.now_ns;
    assert_eq!(guest.done(libc::SYS_poll, &[list, 2, 250]), 0);
    assert_eq!(guest.world.now_ns - before, 250_000_000);
    guest.done(libc::SYS_write, &[write, SCRATCH, 1]);
    assert_eq!(guest.done(libc::SYS_poll, &[list, 2, u64::MAX]), 1);
}

#[test]
fn timers_expire_as_often_as_they_are_set_to() {
    let mut guest = Guest::new();
    let monotonic = libc::CLOCK_MONOTONIC as u64;
    let fd = guest.done(libc::SYS_timerfd_create, &[monotonic, libc::TFD_NONBLOCK as u64]) as u64;
    let at = SCRATCH + 0x200;
    for (n, value) in [0i64, 100_000_000, 0, 250_000_000].into_iter().enumerate() {
        guest.put(at + n as u64 * 8, &value.to_le_bytes());
    }
    assert_eq!(guest.done(libc::SYS_timerfd_settime, &[fd, 0, at, 0]), 0);
    assert_eq!(guest.fails(libc::SYS_read, &[fd, SCRATCH, 8]), libc::EAGAIN);
    let second = time(&mut guest, 1, 0);
    assert_eq!(guest.done(libc::SYS_nanosleep, &[second, 0]), 0);
    assert_eq!(guest.done(libc::SYS_read, &[fd, SCRATCH, 8]), 8);
    assert_eq!(guest.word(SCRATCH), 8, "at 0.25, 0.35 ... 0.95 s");
    // An interval of centuries overflows nothing.
    for (n, value) in [i64::MAX, 0, 0, 1].into_iter().enumerate() {
        guest.put(at + n as u64 * 8, &value.to_le_bytes());
    }
    guest.done(libc::SYS_timerfd_settime, &[fd, 0, at, 0]);
    let second = time(&mut guest, 1, 0);
    guest.done(libc::SYS_nanosleep, &[second, 0]);
    assert_eq!(guest.done(libc::SYS_read, &[fd, SCRATCH, 8]), 8);
    assert_eq!(guest.word(SCRATCH), 1);
}

/// A guest that has slept for as long as there is time asks for more.
#[test]
fn clocks_do_not_pass_their_end() {
    let mut guest = Guest::new();
    guest.world.now_ns = u64::MAX - 20_000_000_000;
    assert_eq!(guest.done(libc::SYS_alarm, &[u64::from(u32::MAX)]), 0);
    assert_eq!(guest.done(libc::SYS_alarm, &[0]), 10);
    let longest = time(&mut guest, i64::MAX, 999_999_999);
    assert_eq!(guest.done(libc::SYS_nanosleep, &[longest, 0]), 0);
}

/// Found by fuzzing: a timer whose next period would end behind all time was due for ever, or overflowed.
#[test]
fn timers_end_with_time() {
    let mut guest = Guest::new();
    let ignore = guest.put(SCRATCH + 0x300, &(libc::SIG_IGN as u64).to_le_bytes());
    guest.done(libc::SYS_rt_sigaction, &[libc::SIGALRM as u64, ignore, 0, 8]);
    guest.world.now_ns = u64::MAX - 20_000_000_000;
    let every_two_seconds = SCRATCH + 0x200;
    for (n, value) in [2i64, 0, 2, 0].into_iter().enumerate() {
        guest.put(every_two_seconds + n as u64 * 8, &value.to_le_bytes());
    }
    let real = libc::ITIMER_REAL as u64;
    guest.done(libc::SYS_setitimer, &[real, every_two_seconds, 0]);
    let monotonic = libc::CLOCK_MONOTONIC as u64;
    let fd = guest.done(libc::SYS_timerfd_create, &[monotonic, libc::TFD_NONBLOCK as u64]) as u64;
    guest.done(libc::SYS_timerfd_settime, &[fd, 0, every_two_seconds, 0]);
    let event = guest.put(SCRATCH + 0x400, &[0; 64]);
    guest.put(event + 12, &libc::SIGEV_NONE.to_le_bytes());
    guest.done(libc::SYS_timer_create, &[monotonic, event, SCRATCH + 0x480]);
    let timer = guest.word(SCRATCH + 0x480) & u64::from(u32::MAX);
    guest.done(libc::SYS_timer_settime, &[timer, 0, every_two_seconds, 0]);

    guest.world.now_ns = u64::MAX;
    assert_eq!(guest.done(libc::SYS_read, &[fd, SCRATCH, 8]), 8);
    assert_eq!(guest.word(SCRATCH), 5, "the clock begins at ten seconds");
    guest.done(libc::SYS_getitimer, &[real, SCRATCH]);
    assert_eq!(guest.get(SCRATCH, 32), [0; 32]);
}

#[test]
fn who_makes_calls_all_the_time_is_preempted() {
    /// What the guest's program does between two calls.
    const BETWEEN_CALLS_NS: u64 = 100_000;
    const CALLS_MAX: usize = 1000;
    let mut guest = Guest::new();
    let other = guest.thread();
    let mut turns = Vec::new();
    for _ in 0..CALLS_MAX {
        let Step::Run { slot, quantum_ns } = guest.kernel.schedule(&mut guest.vm, &mut guest.world) else {
            panic!("two threads can run")
        };
        assert!(quantum_ns.is_some_and(|quantum| quantum > 0));
        if turns.last() != Some(&slot) {
            turns.push(slot);
        }
        guest.world.now_ns += BETWEEN_CALLS_NS;
        guest.kernel.registers_mut(slot).rax = libc::SYS_getpid as u64;
        guest
            .kernel
            .on_exit(&mut guest.vm, &mut guest.world, slot, Exit::Syscall);
    }
    // In the 100 ms that have passed each had many turns, and each turn was long enough for many calls.
    assert!(turns.contains(&other));
    assert!(
        (10..CALLS_MAX / 10).contains(&turns.len()),
        "{} turns",
        turns.len()
    );
}
