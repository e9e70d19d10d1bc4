//! Signals and faults.

use gust_linux::Ended;

use crate::guest::{Came, Guest, NOWHERE, SCRATCH};

const HANDLER: u64 = 0x40_0200;
const RETURN: u64 = 0x40_0300;

/// Installs a handler with the flags given.
fn handle(guest: &mut Guest, signal: i32, flags: u64) {
    let at = SCRATCH + 0x3000;
    for (n, word) in [HANDLER, flags | 0x0400_0000, RETURN, 0].into_iter().enumerate() {
        guest.put(at + n as u64 * 8, &word.to_le_bytes());
    }
    assert_eq!(guest.done(libc::SYS_rt_sigaction, &[signal as u64, at, 0, 8]), 0);
}

fn raise(guest: &mut Guest, signal: i32) -> Came {
    let tid = guest.done(libc::SYS_gettid, &[]) as u64;
    let pid = guest.done(libc::SYS_getpid, &[]) as u64;
    guest.call(libc::SYS_tgkill, &[pid, tid, signal as u64])
}

#[test]
fn a_handler_runs_and_returns_to_where_it_came_from() {
    let mut guest = Guest::new();
    handle(&mut guest, libc::SIGUSR1, libc::SA_SIGINFO as u64);
    let main = guest.main;
    let before = *guest.kernel.registers_mut(main);
    raise(&mut guest, libc::SIGUSR1);
    let inside = *guest.kernel.registers_mut(main);
    assert_eq!((inside.rip, inside.rdi), (HANDLER, libc::SIGUSR1 as u64));
    assert_eq!(
        guest.word(inside.rsp),
        RETURN,
        "the frame's first word is where it returns to"
    );
    assert_eq!(inside.rsp % 16, 8);
    assert!(inside.rsp < before.rsp - 128, "the red zone is left alone");
    // The return address is taken off as `ret` does it.
    guest.kernel.registers_mut(main).rsp += 8;
    guest.call(libc::SYS_rt_sigreturn, &[]);
    let after = *guest.kernel.registers_mut(main);
    assert_eq!((after.rip, after.rsp), (before.rip, before.rsp));
}

/// A loop that sleeps what was left makes its way, however often it is woken.
#[test]
fn a_sleep_that_a_signal_ends_says_what_was_left() {
    let mut guest = Guest::new();
    handle(&mut guest, libc::SIGALRM, 0);
    let seconds = |guest: &mut Guest, at: u64| guest.word(at) + u64::from(guest.word(at + 8) >= 500_000_000);
    let [asked, left, set] = [SCRATCH + 0x100, SCRATCH + 0x200, SCRATCH + 0x300];
    let ask = |guest: &mut Guest| {
        for (n, word) in [10u64, 0].into_iter().enumerate() {
            guest.put(asked + n as u64 * 8, &word.to_le_bytes());
        }
    };
    ask(&mut guest);
    let main = guest.main;
    for (number, args, at) in [
        (libc::SYS_nanosleep, [asked, left, 0, 0, 0, 0], left),
        (libc::SYS_clock_nanosleep, [1, 0, asked, left, 0, 0], left),
        (libc::SYS_select, [0, 0, 0, 0, asked, 0], asked),
        (libc::SYS_pselect6, [0, 0, 0, 0, asked, 0], asked),
        (libc::SYS_ppoll, [0, 0, asked, 0, 0, 0], asked),
    ] {
        ask(&mut guest);
        let before = *guest.kernel.registers_mut(main);
        assert_eq!(guest.done(libc::SYS_alarm, &[3]), 0);
        guest.call(number, &args);
        assert_eq!(guest.kernel.registers_mut(main).rip, HANDLER, "call {number}");
        assert_eq!(seconds(&mut guest, at), 7, "call {number}");
        *guest.kernel.registers_mut(main) = before;
        let none = guest.put(set, &0u64.to_le_bytes());
        let how = libc::SIG_SETMASK as u64;
        guest.done(libc::SYS_rt_sigprocmask, &[how, none, 0, 8]);
    }
    // One that nothing ends leaves the place as it is; one that asks for files says that nothing was left.
    ask(&mut guest);
    guest.put(left, &[42; 16]);
    assert_eq!(guest.done(libc::SYS_nanosleep, &[asked, left]), 0);
    assert_eq!(guest.get(left, 16), [42; 16]);
    assert_eq!(guest.done(libc::SYS_ppoll, &[0, 0, asked, 0, 0]), 0);
    assert_eq!(guest.get(asked, 16), [0; 16]);
    // One that has its answer at once has all of it left.
    let pair = guest.put(set, &[0; 8]);
    assert_eq!(guest.done(libc::SYS_pipe2, &[pair, 0]), 0);
    let writer = guest.word(pair) >> 32;
    guest.put(set, &(1u64 << writer).to_le_bytes());
    ask(&mut guest);
    assert_eq!(guest.done(libc::SYS_select, &[writer + 1, 0, set, 0, asked]), 1);
    assert_eq!(seconds(&mut guest, asked), 10);
}

#[test]
fn a_masked_signal_waits() {
    let mut guest = Guest::new();
    handle(&mut guest, libc::SIGUSR1, 0);
    let main = guest.main;
    let set = guest.put(SCRATCH, &(1u64 << (libc::SIGUSR1 - 1)).to_le_bytes());
    let block = libc::SIG_BLOCK as u64;
    guest.done(libc::SYS_rt_sigprocmask, &[block, set, 0, 8]);
    raise(&mut guest, libc::SIGUSR1);
    assert_ne!(guest.kernel.registers_mut(main).rip, HANDLER);
    guest.done(libc::SYS_rt_sigpending, &[SCRATCH + 8, 8]);
    assert_eq!(guest.word(SCRATCH + 8), 1 << (libc::SIGUSR1 - 1));
    let unblock = libc::SIG_UNBLOCK as u64;
    guest.call(libc::SYS_rt_sigprocmask, &[unblock, set, 0, 8]);
    assert_eq!(guest.kernel.registers_mut(main).rip, HANDLER);
}

#[test]
fn an_unhandled_signal_ends_the_guest() {
    for (signal, expected) in [
        (libc::SIGTERM, Some(Ended::Signal(libc::SIGTERM))),
        (libc::SIGKILL, Some(Ended::Signal(libc::SIGKILL))),
        (libc::SIGCHLD, None),
    ] {
        let mut guest = Guest::new();
        raise(&mut guest, signal);
        assert_eq!(guest.ended(), expected, "signal {signal}");
    }
}

#[test]
fn a_wild_access_is_a_signal_with_its_address() {
    let mut guest = Guest::new();
    handle(&mut guest, libc::SIGSEGV, libc::SA_SIGINFO as u64);
    guest.page_fault(NOWHERE + 0x123, true);
    let main = guest.main;
    let inside = *guest.kernel.registers_mut(main);
    assert_eq!((inside.rip, inside.rdi), (HANDLER, libc::SIGSEGV as u64));
    assert_eq!(guest.word(inside.rsi + 16), NOWHERE + 0x123, "si_addr");
    let mut guest = Guest::new();
    assert_eq!(guest.page_fault(NOWHERE, false), Came::Ended);
    assert_eq!(guest.ended(), Some(Ended::Signal(libc::SIGSEGV)));
}

#[test]
fn a_fault_in_a_handler_without_room_ends_the_guest() {
    let mut guest = Guest::new();
    handle(&mut guest, libc::SIGSEGV, 0);
    let main = guest.main;
    guest.kernel.registers_mut(main).rsp = NOWHERE;
    guest.page_fault(NOWHERE, true);
    assert_eq!(guest.ended(), Some(Ended::Signal(libc::SIGSEGV)));
}

#[test]
fn a_blocked_call_is_interrupted_or_made_again() {
    for (flags, expected) in [(0, -i64::from(libc::EINTR)), (libc::SA_RESTART as u64, 0)] {
        let mut guest = Guest::new();
        handle(&mut guest, libc::SIGUSR1, flags);
        assert_eq!(guest.done(libc::SYS_pipe2, &[SCRATCH, 0]), 0);
        let read = guest.word(SCRATCH) & 0xffff_ffff;
        let other = guest.thread();
        assert_eq!(
            guest.call_on(other, libc::SYS_read, &[read, SCRATCH, 1]),
            Came::Blocked
        );
        let pid = guest.done(libc::SYS_getpid, &[]) as u64;
        let main = guest.done(libc::SYS_gettid, &[]) as u64;
        // There is one other thread, with one of the ids above the first one's.
        for tid in main + 1..main + 10 {
            guest.call(libc::SYS_tgkill, &[pid, tid, libc::SIGUSR1 as u64]);
        }
        guest.turn_of(other);
        let inside = *guest.kernel.registers_mut(other);
        assert_eq!(inside.rip, HANDLER);
        guest.kernel.registers_mut(other).rsp += 8;
        match guest.call_on(other, libc::SYS_rt_sigreturn, &[]) {
            Came::Back(value) if expected < 0 => assert_eq!(value, expected),
            // The instruction is made again: it is two bytes before where it had returned to.
            Came::Back(value) => {
                assert_eq!(value, libc::SYS_read, "the number of the call is in its register");
            }
            other => panic!("{other:?}"),
        }
    }
}
