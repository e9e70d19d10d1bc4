//! Layouts and constants of the x86-64 Linux ABI that `libc` does not name, and a writer for its structures.
//!
//! Structures are written and read as bytes, field by field: nothing of the guest is ever a Rust reference.

/// Bytes of a page.
pub(crate) const PAGE: u64 = 4096;

/// Most bytes that one read or write moves (`MAX_RW_COUNT`).
pub(crate) const RW_BYTES_MAX: u64 = 0x7fff_f000;
/// Most buffers of a vectored call (`UIO_MAXIOV`).
pub(crate) const IOV_MAX: u64 = 1024;
/// Longest path, with its terminating zero.
pub(crate) const PATH_MAX: usize = 4096;
/// Longest name in a path.
pub(crate) const NAME_MAX: usize = 255;

/// Rounds up to a page; `None` past the end of the address space.
pub(crate) fn page_up(bytes: u64) -> Option<u64> {
    bytes.checked_add(PAGE - 1).map(|sum| sum & !(PAGE - 1))
}

/// Rounds down to a page.
pub(crate) const fn page_down(bytes: u64) -> u64 {
    bytes & !(PAGE - 1)
}

/// Writes a structure, little-endian, with explicit padding.
#[derive(Debug, Default)]
pub(crate) struct Writer(Vec<u8>);

const NS_PER_S: u64 = 1_000_000_000;

impl Writer {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    pub(crate) fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub(crate) fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn i32(self, value: i32) -> Self {
        self.u32(value as u32)
    }

    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn i64(self, value: i64) -> Self {
        self.u64(value as u64)
    }

    /// A `timespec`: seconds and nanoseconds.
    pub(crate) fn timespec(self, ns: u64) -> Self {
        self.u64(ns / NS_PER_S).u64(ns % NS_PER_S)
    }

    /// A `timeval`: seconds and microseconds.
    pub(crate) fn timeval(self, ns: u64) -> Self {
        self.u64(ns / NS_PER_S).u64(ns % NS_PER_S / 1000)
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Zeros up to `size` bytes in all.
    pub(crate) fn pad_to(mut self, size: usize) -> Self {
        debug_assert!(self.0.len() <= size);
        self.0.resize(size, 0);
        self
    }

    pub(crate) fn done(self) -> Vec<u8> {
        self.0
    }
}

/// Reads fields of a structure that has been copied in.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    bytes
        .get(at..at + 2)
        .map_or(0, |raw| u16::from_le_bytes([raw[0], raw[1]]))
}

/// See [`u16_at`].
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|raw| raw.try_into().ok())
        .map_or(0, u32::from_le_bytes)
}

/// See [`u16_at`].
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|raw| raw.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// See [`u16_at`].
pub(crate) fn i32_at(bytes: &[u8], at: usize) -> i32 {
    u32_at(bytes, at) as i32
}

/// See [`u16_at`].
pub(crate) fn i64_at(bytes: &[u8], at: usize) -> i64 {
    u64_at(bytes, at) as i64
}

/// A bit for a signal in a mask.
pub(crate) const fn signal_bit(signal: u32) -> u64 {
    1 << (signal - 1)
}
