//! Reading choices from a fuzzer's bytes. At their end everything is zero, so that every input means something.

/// Bytes that choices are read from.
#[derive(Debug)]
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// All of an input.
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn u8(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// The next two bytes.
    pub fn u16(&mut self) -> u16 {
        u16::from(self.u8()) | u16::from(self.u8()) << 8
    }

    /// The next four bytes.
    pub fn u32(&mut self) -> u32 {
        u32::from(self.u16()) | u32::from(self.u16()) << 16
    }

    /// The next eight bytes.
    pub fn u64(&mut self) -> u64 {
        u64::from(self.u32()) | u64::from(self.u32()) << 32
    }

    /// At most so many of the bytes that are left.
    pub fn take(&mut self, bytes: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// Overwrites parts of a well-formed file, so that a fuzzer need not find the form of the whole first: each patch is an
/// offset, a length and bytes.
pub fn patch(file: &mut [u8], input: &[u8]) {
    let mut input = Bytes::new(input);
    while !input.is_empty() && !file.is_empty() {
        let at = usize::from(input.u16()) % file.len();
        let length = usize::from(input.u8() % 64);
        for (place, byte) in file[at..].iter_mut().zip(input.take(length)) {
            *place = *byte;
        }
    }
}
