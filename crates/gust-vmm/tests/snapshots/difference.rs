//! Machines that are made again from their snapshot and a difference, in any layout.

use std::os::fd::AsFd;

use gust_vmm::{Hypervisor, Prot, XSAVE_BYTES};

use crate::model::*;

#[test]
fn a_machine_is_made_again_from_what_sets_it_apart() {
    let any = || proptest::sample::select(vec![LaidOut::Recording, LaidOut::Compact, LaidOut::Fast]);
    let layouts = (any(), any());
    check(
        60,
        &(ops(), ops(), ops(), layouts),
        |hypervisor, (before, recorded, after, (first, second))| {
            let snapshot = snapshot(hypervisor, &before, &recorded);
            let mut vm = snapshot.restored(hypervisor, first);
            let mut model = snapshot.model.clone();
            after.iter().for_each(|op| model.apply(&mut vm, op));
            let mut extended = [0; XSAVE_BYTES];
            vm.extended_state(1, &mut extended).unwrap();
            extended[0] ^= 1;
            vm.set_extended_state(1, &extended).unwrap();
            let difference = vm
                .difference(&model.areas(), &[1], &snapshot.state, snapshot.memory.as_fd())
                .unwrap()
                .expect("it is small");
            let expected = content(&vm, &model);
            drop(vm);

            let mut again = snapshot.restored(hypervisor, second);
            again.apply(&difference).unwrap();
            let found = content(&again, &model);
            assert_same(&found, &expected);
            let mut same = [0; XSAVE_BYTES];
            again.extended_state(1, &mut same).unwrap();
            assert!(same == extended);
            // It is a machine like any other.
            let writable = model.0.iter().position(|prot| prot.is_some_and(Prot::writable));
            if let Some(page) = writable {
                let at = address(page as u64) + 8;
                store(&mut again, at, 0x1234_5678);
                assert_eq!(again.space().load_u32(at).unwrap(), 0x1234_5678);
            }
        },
    );
}

/// A page that was mapped and never touched has no contents in the snapshot; its large page gives the guest some.
#[test]
fn what_is_written_where_the_snapshot_had_nothing_outlives_the_large_page() {
    let Ok(hypervisor) = Hypervisor::open() else {
        eprintln!("SKIPPED: no KVM on this host");
        return;
    };
    let before = [Op::Map(0, 10, Prot::READ_WRITE), Op::HostWrites(3, 7)];
    let snapshot = snapshot(&hypervisor, &before, &[]);
    for layout in [LaidOut::Compact, LaidOut::Fast] {
        let mut vm = snapshot.restored(&hypervisor, layout);
        let untouched = address(100);
        store(&mut vm, untouched, 0x1234_5678);
        // Something else in the chunk changes, so that the large page is split.
        vm.space_mut().protect(range(3, 1), Prot::READ).unwrap();
        store(&mut vm, untouched + 8, 1);
        assert_eq!(vm.space().load_u32(untouched).unwrap(), 0x1234_5678, "{layout:?}");
        // Where nothing is mapped any more, nothing is seen.
        vm.space_mut().clear_phantoms(range(200, 1)).unwrap();
        assert!(vm.space().rights_at(address(200)).is_none());
        assert_eq!(vm.space().load_u32(untouched).unwrap(), 0x1234_5678, "{layout:?}");
    }
}
