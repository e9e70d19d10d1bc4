//! `membarrier`.

use crate::guest::Guest;

const PRIVATE: i32 = libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED;
const REGISTER_PRIVATE: i32 = libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED;
const SYNC_CORE: i32 = libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE;
const REGISTER_SYNC_CORE: i32 = libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE;
const RSEQ: i32 = libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_RSEQ;
const GET_REGISTRATIONS: i32 = 1 << 9;

fn barrier(guest: &mut Guest, command: i32) -> i64 {
    guest.done(libc::SYS_membarrier, &[command as u32 as u64, 0])
}

#[test]
fn private_barriers_are_for_who_has_registered() {
    let mut guest = Guest::new();
    for (command, register) in [(PRIVATE, REGISTER_PRIVATE), (SYNC_CORE, REGISTER_SYNC_CORE)] {
        assert_eq!(barrier(&mut guest, command), -i64::from(libc::EPERM));
        assert_eq!(barrier(&mut guest, register), 0);
        assert_eq!(barrier(&mut guest, command), 0);
    }
    let both = REGISTER_PRIVATE | REGISTER_SYNC_CORE;
    assert_eq!(barrier(&mut guest, GET_REGISTRATIONS), i64::from(both));
}

#[test]
fn global_barriers_are_for_everyone() {
    let mut guest = Guest::new();
    for command in [
        libc::MEMBARRIER_CMD_GLOBAL,
        libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED,
        libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED,
    ] {
        assert_eq!(barrier(&mut guest, command), 0, "{command}");
    }
}

#[test]
fn a_query_tells_which_commands_there_are() {
    let mut guest = Guest::new();
    let told = barrier(&mut guest, libc::MEMBARRIER_CMD_QUERY);
    for bit in 0..31 {
        let known = barrier(&mut guest, 1 << bit) != -i64::from(libc::EINVAL);
        assert_eq!(known, told & (1 << bit) != 0, "bit {bit}");
    }
    assert_eq!(told & i64::from(RSEQ), 0, "there are no restartable sequences");
    for command in [-1, PRIVATE | REGISTER_PRIVATE] {
        assert_eq!(
            barrier(&mut guest, command),
            -i64::from(libc::EINVAL),
            "{command}"
        );
    }
    let flags = [libc::MEMBARRIER_CMD_GLOBAL as u64, 1];
    assert_eq!(guest.fails(libc::SYS_membarrier, &flags), libc::EINVAL);
}
