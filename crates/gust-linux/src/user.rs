//! Copies between the personality and guest memory.
//!
//! Every pointer and length of a guest is hostile. What a call needs is copied in once and then validated; a page that
//! is mapped but not yet present is made present on the way, as it would be for the guest's own access.

use gust_vmm::BadAddress;

use crate::{
    abi::{IOV_MAX, PAGE, PATH_MAX, RW_BYTES_MAX, i64_at, u64_at},
    errno::{EFAULT, EINVAL, ENAMETOOLONG, Errno},
    kernel::{Cx, Kernel},
    mm::Access,
};

/// Bytes that are moved between two copies when a buffer of the personality's own is needed.
pub(crate) const STAGING_BYTES: usize = 256 << 10;

/// One piece of a guest's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct UserSlice {
    pub(crate) at: u64,
    pub(crate) bytes: u64,
}

impl Kernel {
    /// Makes an access, and makes it again after each page that it lacked has been brought in. What lacks the same twice
    /// cannot be helped.
    pub(crate) fn reach<T>(
        &mut self,
        cx: &mut Cx<'_>,
        access: Access,
        mut attempt: impl FnMut(&mut Cx<'_>) -> Result<T, BadAddress>,
    ) -> Result<T, Errno> {
        let mut lacked = None;
        loop {
            match attempt(cx) {
                Ok(value) => return Ok(value),
                Err(BadAddress(bad)) if lacked == Some(bad) => return Err(EFAULT),
                Err(BadAddress(bad)) => {
                    lacked = Some(bad);
                    self.fault_in(cx, bad, access)?;
                }
            }
        }
    }

    /// Copies bytes in.
    pub(crate) fn copy_in(&mut self, cx: &mut Cx<'_>, at: u64, out: &mut [u8]) -> Result<(), Errno> {
        self.reach(cx, Access::Read, |cx| cx.vm.space().read(at, out))
    }

    /// Copies bytes out.
    pub(crate) fn copy_out(&mut self, cx: &mut Cx<'_>, at: u64, data: &[u8]) -> Result<(), Errno> {
        self.reach(cx, Access::Write, |cx| cx.vm.space_mut().write(at, data))
    }

    /// Copies out unless the pointer is null.
    pub(crate) fn copy_out_if(&mut self, cx: &mut Cx<'_>, at: u64, data: &[u8]) -> Result<(), Errno> {
        if at == 0 {
            Ok(())
        } else {
            self.copy_out(cx, at, data)
        }
    }

    /// Copies a structure of `N` bytes in.
    pub(crate) fn copy_in_array<const N: usize>(
        &mut self,
        cx: &mut Cx<'_>,
        at: u64,
    ) -> Result<[u8; N], Errno> {
        let mut raw = [0; N];
        self.copy_in(cx, at, &mut raw)?;
        Ok(raw)
    }

    /// Copies `bytes` bytes in; the caller has bounded them.
    pub(crate) fn copy_in_vec(&mut self, cx: &mut Cx<'_>, at: u64, bytes: usize) -> Result<Vec<u8>, Errno> {
        let mut raw = vec![0; bytes];
        self.copy_in(cx, at, &mut raw)?;
        Ok(raw)
    }

    /// Copies a word in.
    pub(crate) fn copy_in_u64(&mut self, cx: &mut Cx<'_>, at: u64) -> Result<u64, Errno> {
        Ok(u64::from_le_bytes(self.copy_in_array(cx, at)?))
    }

    /// Copies half a word in.
    pub(crate) fn copy_in_u32(&mut self, cx: &mut Cx<'_>, at: u64) -> Result<u32, Errno> {
        Ok(u32::from_le_bytes(self.copy_in_array(cx, at)?))
    }

    /// Copies a zero-terminated string in, without its zero; it and its zero take at most `bytes_max` bytes.
    pub(crate) fn copy_in_string(
        &mut self,
        cx: &mut Cx<'_>,
        at: u64,
        bytes_max: usize,
    ) -> Result<Vec<u8>, Errno> {
        let mut string = Vec::new();
        while string.len() < bytes_max {
            let from = at.checked_add(string.len() as u64).ok_or(EFAULT)?;
            let to_page_end = 4096 - (from & 4095) as usize;
            let piece = to_page_end.min(bytes_max - string.len());
            let start = string.len();
            string.resize(start + piece, 0);
            let copied = self.copy_in(cx, from, &mut string[start..]);
            copied?;
            if let Some(end) = string[start..].iter().position(|byte| *byte == 0) {
                string.truncate(start + end);
                return Ok(string);
            }
        }
        Err(ENAMETOOLONG)
    }

    /// Copies a path in.
    pub(crate) fn copy_in_path(&mut self, cx: &mut Cx<'_>, at: u64) -> Result<Vec<u8>, Errno> {
        self.copy_in_string(cx, at, PATH_MAX)
    }

    /// Copies the description of a vectored buffer in. As on Linux, the total is cut off at `MAX_RW_COUNT`.
    pub(crate) fn copy_in_iovec(
        &mut self,
        cx: &mut Cx<'_>,
        at: u64,
        count: u64,
    ) -> Result<Vec<UserSlice>, Errno> {
        if count > IOV_MAX {
            return Err(EINVAL);
        }
        let raw = self.copy_in_vec(cx, at, count as usize * 16)?;
        let mut left = RW_BYTES_MAX;
        let mut slices = Vec::with_capacity(count as usize);
        for entry in raw.chunks_exact(16) {
            if i64_at(entry, 8) < 0 {
                return Err(EINVAL);
            }
            let bytes = u64_at(entry, 8).min(left);
            left -= bytes;
            slices.push(UserSlice {
                at: u64_at(entry, 0),
                bytes,
            });
        }
        Ok(slices)
    }

    /// Gathers guest buffers, at most `bytes_max` bytes from `skip` on. Bytes before a bad address are given; a bad
    /// address at the very start is an error.
    pub(crate) fn gather(
        &mut self,
        cx: &mut Cx<'_>,
        slices: &[UserSlice],
        skip: u64,
        bytes_max: usize,
    ) -> Result<Vec<u8>, Errno> {
        let mut data = Vec::new();
        let mut skip = skip;
        for slice in slices {
            let skipped = skip.min(slice.bytes);
            skip -= skipped;
            let wanted = ((slice.bytes - skipped) as usize).min(bytes_max - data.len());
            if wanted == 0 {
                continue;
            }
            let start = data.len();
            data.resize(start + wanted, 0);
            let from = slice.at.checked_add(skipped).ok_or(EFAULT)?;
            if let Err(errno) = self.copy_in(cx, from, &mut data[start..]) {
                // What lies before the bad page is good.
                let good = self.good_pages(from, wanted, |k, at, piece| {
                    k.copy_in(cx, at, &mut data[start..][piece]).is_ok()
                });
                data.truncate(start + good);
                return if data.is_empty() { Err(errno) } else { Ok(data) };
            }
        }
        Ok(data)
    }

    /// Copies a range that has a bad page somewhere page by page; gives the bytes before it.
    fn good_pages(
        &mut self,
        at: u64,
        bytes: usize,
        mut copy: impl FnMut(&mut Self, u64, std::ops::Range<usize>) -> bool,
    ) -> usize {
        let mut done = 0;
        while done < bytes {
            let from = at.wrapping_add(done as u64);
            let piece = (PAGE - (from & (PAGE - 1))) as usize;
            let end = (done + piece).min(bytes);
            if !copy(self, from, done..end) {
                break;
            }
            done = end;
        }
        done
    }

    /// Scatters bytes over guest buffers, from `skip` on; gives how many were placed.
    pub(crate) fn scatter(
        &mut self,
        cx: &mut Cx<'_>,
        slices: &[UserSlice],
        skip: u64,
        data: &[u8],
    ) -> Result<u64, Errno> {
        let mut skip = skip;
        let mut placed = 0;
        for slice in slices {
            let skipped = skip.min(slice.bytes);
            skip -= skipped;
            let piece = ((slice.bytes - skipped) as usize).min(data.len() - placed);
            if piece == 0 {
                continue;
            }
            let to = slice.at.checked_add(skipped).ok_or(EFAULT)?;
            if let Err(errno) = self.copy_out(cx, to, &data[placed..placed + piece]) {
                let good = self.good_pages(to, piece, |k, at, part| {
                    k.copy_out(cx, at, &data[placed..][part]).is_ok()
                });
                placed += good;
                return if placed > 0 { Ok(placed as u64) } else { Err(errno) };
            }
            placed += piece;
        }
        Ok(placed as u64)
    }

    /// Copies a `timespec` in as nanoseconds; `EINVAL` for what is no time.
    pub(crate) fn copy_in_timespec(&mut self, cx: &mut Cx<'_>, at: u64) -> Result<u64, Errno> {
        let raw: [u8; 16] = self.copy_in_array(cx, at)?;
        timespec_ns(i64_at(&raw, 0), i64_at(&raw, 8))
    }
}

/// Nanoseconds of a `timespec`, saturating as Linux's `KTIME_MAX` does.
pub(crate) fn timespec_ns(seconds: i64, nanoseconds: i64) -> Result<u64, Errno> {
    if seconds < 0 || !(0..1_000_000_000).contains(&nanoseconds) {
        return Err(EINVAL);
    }
    const KTIME_MAX: u64 = i64::MAX as u64;
    Ok((seconds as u64)
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds as u64)
        .min(KTIME_MAX))
}

/// Total of a vectored buffer.
pub(crate) fn total(slices: &[UserSlice]) -> u64 {
    slices.iter().map(|slice| slice.bytes).sum()
}
