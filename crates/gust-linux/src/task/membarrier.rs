//! `membarrier`: barriers on every processor that runs a thread of the process.
//!
//! One virtual processor runs all threads, so whoever leaves the guest for this call has made it execute a barrier, and a
//! serialising one: entering a virtual machine serialises. What is left is to keep the registrations as Linux does.
//! There are no restartable sequences here, so their two commands are unknown, as on a Linux without them.

use crate::{
    errno::{EINVAL, EPERM},
    kernel::{Cx, Flow, Kernel, SysResult},
};

const QUERY: i32 = libc::MEMBARRIER_CMD_QUERY;
const GLOBAL: i32 = libc::MEMBARRIER_CMD_GLOBAL;
const GLOBAL_EXPEDITED: i32 = libc::MEMBARRIER_CMD_GLOBAL_EXPEDITED;
const REGISTER_GLOBAL_EXPEDITED: i32 = libc::MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED;
const PRIVATE_EXPEDITED: i32 = libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED;
const REGISTER_PRIVATE_EXPEDITED: i32 = libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED;
const PRIVATE_SYNC_CORE: i32 = libc::MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE;
const REGISTER_PRIVATE_SYNC_CORE: i32 = libc::MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE;
const GET_REGISTRATIONS: i32 = 1 << 9;

const COMMANDS: i32 = GLOBAL
    | GLOBAL_EXPEDITED
    | REGISTER_GLOBAL_EXPEDITED
    | PRIVATE_EXPEDITED
    | REGISTER_PRIVATE_EXPEDITED
    | PRIVATE_SYNC_CORE
    | REGISTER_PRIVATE_SYNC_CORE
    | GET_REGISTRATIONS;

pub(crate) fn sys_membarrier(k: &mut Kernel, _cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let (command, flags) = (args[0] as i32, args[1] as u32);
    if flags != 0 {
        return Err(EINVAL);
    }
    let registered = &mut k.process.barriers;
    let value = match command {
        QUERY => COMMANDS,
        GLOBAL | GLOBAL_EXPEDITED => 0,
        REGISTER_GLOBAL_EXPEDITED | REGISTER_PRIVATE_EXPEDITED | REGISTER_PRIVATE_SYNC_CORE => {
            *registered |= command;
            0
        }
        PRIVATE_EXPEDITED if *registered & REGISTER_PRIVATE_EXPEDITED == 0 => return Err(EPERM),
        PRIVATE_SYNC_CORE if *registered & REGISTER_PRIVATE_SYNC_CORE == 0 => return Err(EPERM),
        PRIVATE_EXPEDITED | PRIVATE_SYNC_CORE => 0,
        GET_REGISTRATIONS => *registered,
        _ => return Err(EINVAL),
    };
    Ok(Flow::Done(value as u64))
}
