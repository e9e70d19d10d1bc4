//! Machines that go back to their snapshot after a run.

use std::os::fd::AsFd;

use gust_vmm::{Hypervisor, Prot};

use crate::model::*;

fn goes_back(hypervisor: &Hypervisor, snapshot: &Snapshot, how: LaidOut, rounds: &[Vec<Op>]) {
    let mut vm = snapshot.restored(hypervisor, how);
    for round in rounds {
        let mut model = snapshot.model.clone();
        let mut new = snapshot.restored(hypervisor, how);
        assert_same(&content(&vm, &model), &content(&new, &model));
        let mut same = model.clone();
        round.iter().for_each(|op| model.apply(&mut vm, op));
        round.iter().for_each(|op| same.apply(&mut new, op));
        assert_same(&content(&vm, &model), &content(&new, &model));
        vm.rewind(snapshot.layout.as_fd(), snapshot.memory.as_fd())
            .unwrap();
    }
}

/// What a machine did before it went back is nothing to what it does then: it is like one that has just been laid out.
#[test]
fn a_machine_that_went_back_is_as_if_new() {
    let rounds = proptest::collection::vec(ops(), 1..4);
    let how = proptest::sample::select(vec![LaidOut::Compact, LaidOut::Fast, LaidOut::Grafted]);
    check(
        80,
        &(ops(), ops(), (ops(), ops()), rounds, how),
        |hypervisor, (before, recorded, (middle, again), rounds, how)| {
            let base = snapshot(hypervisor, &before, &recorded);
            let snapshot = base.descendant(hypervisor, &middle, &again);
            goes_back(hypervisor, &snapshot, how, &rounds);
        },
    );
}

/// What random runs have found, kept.
#[test]
fn what_a_run_leaves_where_the_snapshot_has_nothing_is_gone() {
    let Ok(hypervisor) = Hypervisor::open() else {
        eprintln!("SKIPPED: no KVM on this host");
        return;
    };
    let all = CHUNK_PAGES;
    let found: [(&[Op], &[Op], &[Op]); 3] = [
        // A page that is mapped in a chunk of the snapshot's, and is mapped again by the next run.
        (
            &[Op::Map(0, 1, Prot::READ)],
            &[Op::Map(0, all, Prot::READ_WRITE), Op::GuestWrites(43, 1)],
            &[Op::Map(40, 4, Prot::READ_WRITE)],
        ),
        // Pages that the guest may not write, and that are made zero for it.
        (
            &[
                Op::Map(0, all, Prot::READ_WRITE),
                Op::HostWrites(11, 1),
                Op::Protect(0, all, Prot::READ),
            ],
            &[Op::Discard(0, 12)],
            &[],
        ),
        // A large page that could not be written, and could for a while.
        (
            &[
                Op::Map(0, all, Prot::READ_WRITE),
                Op::HostWrites(11, 1),
                Op::Protect(0, all, Prot::READ),
            ],
            &[Op::Protect(0, all, Prot::READ_WRITE), Op::GuestWrites(11, 2)],
            &[],
        ),
    ];
    for (before, first, second) in found {
        let snapshot = snapshot(&hypervisor, before, &[]);
        for how in [LaidOut::Compact, LaidOut::Fast] {
            let rounds = [first.to_vec(), second.to_vec(), second.to_vec()];
            goes_back(&hypervisor, &snapshot, how, &rounds);
        }
    }
}

/// A page that is clean in the snapshot is written twice, its rights changed the first time.
#[test]
fn every_write_to_a_page_that_stays_is_seen() {
    let Ok(hypervisor) = Hypervisor::open() else {
        eprintln!("SKIPPED: no KVM on this host");
        return;
    };
    let before = [Op::Map(0, 20, Prot::READ_WRITE), Op::HostWrites(2, 7)];
    // Page 3 is a neighbour of a page that is written, so it is hot and clean.
    let snapshot = snapshot(&hypervisor, &before, &[Op::GuestWrites(2, 1)]);
    let first = [
        Op::Protect(3, 1, Prot::READ),
        Op::Protect(3, 1, Prot::READ_WRITE),
        Op::GuestWrites(3, 1),
    ];
    let second = [Op::GuestWrites(3, 2)];
    let rounds = [
        first.to_vec(),
        second.to_vec(),
        Vec::new(),
        second.to_vec(),
        Vec::new(),
    ];
    goes_back(&hypervisor, &snapshot, LaidOut::Fast, &rounds);
}
