//! Copies between two processes' memories (`process_vm_readv`, `process_vm_writev`). There is one process here, so both
//! memories are its own.

use crate::{
    errno::{EFAULT, EINVAL, ESRCH, Errno},
    kernel::{Cx, Flow, Kernel, SysResult},
    user::{STAGING_BYTES, UserSlice, total},
};

impl Kernel {
    fn copy_slices(&mut self, cx: &mut Cx<'_>, from: &[UserSlice], to: &[UserSlice]) -> Result<u64, Errno> {
        let wanted = total(from).min(total(to));
        let mut done = 0;
        while done < wanted {
            let piece = (wanted - done).min(STAGING_BYTES as u64) as usize;
            let step = match self.gather(cx, from, done, piece) {
                Ok(data) if data.is_empty() => Err(EFAULT),
                Ok(data) => self
                    .scatter(cx, to, done, &data)
                    .map(|placed| (placed, data.len())),
                Err(errno) => Err(errno),
            };
            match step {
                Ok((placed, offered)) => {
                    done += placed;
                    if placed < offered as u64 {
                        break;
                    }
                }
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(done)
    }

    fn process_vm(&mut self, cx: &mut Cx<'_>, args: &[u64; 6], writes: bool) -> SysResult {
        let [pid, local, local_count, remote, remote_count, flags] = *args;
        if flags != 0 {
            return Err(EINVAL);
        }
        let local = self.copy_in_iovec(cx, local, local_count)?;
        let remote = self.copy_in_iovec(cx, remote, remote_count)?;
        if total(&local) == 0 || total(&remote) == 0 {
            return Ok(Flow::Done(0));
        }
        if !self.process.is_me(pid as u32) && self.threads.find_tid(pid as u32).is_none() {
            return Err(ESRCH);
        }
        let copied = if writes {
            self.copy_slices(cx, &local, &remote)
        } else {
            self.copy_slices(cx, &remote, &local)
        };
        copied.map(Flow::Done)
    }
}

pub(crate) fn sys_process_vm_readv(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.process_vm(cx, args, false)
}

pub(crate) fn sys_process_vm_writev(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.process_vm(cx, args, true)
}
