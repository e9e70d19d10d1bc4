//! A guest that makes any call with any arguments harms no one but itself.

use gust_vmm::Exit;
use proptest::{prelude::*, test_runner::RngSeed};

use crate::guest::{Came, Guest, NOWHERE, SCRATCH, SCRATCH_BYTES};

/// Arguments that calls have trouble with, and some that they take.
fn argument() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..12u64,
        4 => (0..SCRATCH_BYTES).prop_map(|offset| SCRATCH + offset),
        2 => (0..64u64).prop_map(|page| SCRATCH + page * 0x1000),
        1 => Just(u64::MAX),
        1 => Just(1 << 63),
        1 => Just(NOWHERE),
        1 => Just(0x7f80_0000_0000),
        1 => Just(0x7eff_ffff_f000),
        1 => Just(0x40_0000),
        1 => Just(u64::from(u32::MAX)),
        1 => Just(libc::AT_FDCWD as i64 as u64),
        1 => (0..40u32).prop_map(|bit| 1 << bit),
        1 => any::<u64>(),
    ]
}

#[derive(Debug, Clone)]
enum Action {
    Call(u64, [u64; 6]),
    Fault(u64, bool),
    Exception(u8),
    Put(u64, Vec<u8>),
}

fn action() -> impl Strategy<Value = Action> {
    let args = proptest::array::uniform6(argument());
    prop_oneof![
        30 => (0..460u64, args).prop_map(|(number, args)| Action::Call(number, args)),
        2 => (argument(), any::<bool>()).prop_map(|(address, write)| Action::Fault(address, write)),
        1 => (0..32u8).prop_map(Action::Exception),
        6 => (0..SCRATCH_BYTES - 64, proptest::collection::vec(any::<u8>(), 0..64))
            .prop_map(|(offset, bytes)| Action::Put(SCRATCH + offset, bytes)),
        4 => (0..256u64, argument(), argument())
            .prop_map(|(offset, a, b)| Action::Put(SCRATCH + offset * 0x100, [a.to_le_bytes(), b.to_le_bytes()].concat())),
    ]
}

fn act(guest: &mut Guest, action: &Action) -> Came {
    match action {
        Action::Call(number, args) => guest.call(*number as i64, args),
        Action::Fault(address, write) => guest.page_fault(*address, *write),
        Action::Exception(vector) => {
            let main = guest.main;
            let exit = Exit::Exception {
                vector: *vector,
                error_code: 0,
                address: 0,
            };
            guest.kernel.on_exit(&mut guest.vm, &mut guest.world, main, exit);
            guest.turn_of(main)
        }
        Action::Put(address, bytes) => {
            // Where the guest itself could not write, it does not.
            if guest.vm.space_mut().write(*address, bytes).is_err() {
                return guest.page_fault(*address, true);
            }
            Came::Back(0)
        }
    }
}

/// The same calls at every run, or `GUST_FUZZ_CASES` sequences of others.
fn config() -> ProptestConfig {
    let more = std::env::var("GUST_FUZZ_CASES").ok();
    let more = more.map(|cases| cases.parse().expect("GUST_FUZZ_CASES is a number"));
    ProptestConfig {
        cases: more.unwrap_or(300),
        max_shrink_iters: 2000,
        failure_persistence: None,
        rng_seed: match more {
            Some(_) => RngSeed::Random,
            None => RngSeed::Fixed(1),
        },
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    /// Nothing panics, nothing grows without bound, and the state can be stored, read and go on whatever was done.
    #[test]
    fn any_calls_are_survived(actions in proptest::collection::vec(action(), 1..120)) {
        let mut guest = Guest::new();
        for action in &actions {
            match act(&mut guest, action) {
                Came::Back(_) => {}
                Came::Blocked | Came::Ended => break,
            }
        }
        let stored = postcard::to_stdvec(&guest.kernel).unwrap();
        prop_assert!(stored.len() < 64 << 20, "{} bytes of state", stored.len());
        let read: gust_linux::Kernel = postcard::from_bytes(&stored).unwrap();
        prop_assert_eq!(read.thread_slots(), guest.kernel.thread_slots());
        prop_assert_eq!(read.ended().cloned(), guest.ended());
    }
}
