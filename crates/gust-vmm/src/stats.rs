//! Counts that KVM keeps of a vCPU.
//!
//! `unsafe`: one ioctl that kvm-ioctls has no name for.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use kvm_ioctls::VcpuFd;

/// `_IO(KVMIO, 0xce)`: a descriptor from which the statistics of a vCPU are read.
const KVM_GET_STATS_FD: libc::c_ulong = 0xaece;
/// Faults that KVM resolved by mapping pages.
const FAULTS: &[u8] = b"pf_fixed";
/// Most statistics that are looked through.
const DESCRIPTORS_MAX: u32 = 512;
/// Bytes of a descriptor before its name.
const DESCRIPTOR_BYTES: usize = 16;

/// Where KVM's count of a vCPU's page faults is read.
#[derive(Debug)]
pub(crate) struct FaultCounter {
    file: OwnedFd,
    /// Offset of the count in the file.
    at: u64,
}

impl FaultCounter {
    /// Finds the count. `None` on hosts whose KVM has none (before Linux 5.14).
    pub(crate) fn new(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: the ioctl takes no argument and gives a new descriptor.
        let file = unsafe {
            let raw = libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD, 0);
            (raw >= 0).then(|| OwnedFd::from_raw_fd(raw))
        }?;
        // Flags, bytes of a name, descriptors, then the offsets of an id, of the descriptors and of the data.
        let mut header = [0; 24];
        read_exact(&file, &mut header, 0)?;
        let word =
            |bytes: &[u8], n: usize| Some(u32::from_le_bytes(bytes.get(n * 4..n * 4 + 4)?.try_into().ok()?));
        let (name_bytes, count) = (word(&header, 1)?, word(&header, 2)?);
        let (descriptors_at, data_at) = (word(&header, 4)?, word(&header, 5)?);
        let mut descriptor = vec![0; DESCRIPTOR_BYTES + name_bytes.min(256) as usize];
        for n in 0..count.min(DESCRIPTORS_MAX) {
            let at = u64::from(descriptors_at) + u64::from(n) * descriptor.len() as u64;
            read_exact(&file, &mut descriptor, at)?;
            let name = &descriptor[DESCRIPTOR_BYTES..];
            if name.split(|byte| *byte == 0).next() == Some(FAULTS) {
                let offset = word(&descriptor, 2)?;
                return Some(Self {
                    file,
                    at: u64::from(data_at) + u64::from(offset),
                });
            }
        }
        None
    }

    /// Faults so far.
    pub(crate) fn count(&self) -> u64 {
        let mut raw = [0; 8];
        read_exact(&self.file, &mut raw, self.at).map_or(0, |()| u64::from_le_bytes(raw))
    }
}

fn read_exact(file: &OwnedFd, out: &mut [u8], at: u64) -> Option<()> {
    let read = rustix::io::pread(file, &mut *out, at).ok()?;
    (read == out.len()).then_some(())
}
