//! A second thread of a guest, for machines without a processor.
//!
//! A guest with two threads changes what a system call's arguments point to while the call is answered. A [`Racer`] does
//! that at the worst moment: right after bytes have been copied in, so that whoever reads them again reads others. It
//! follows from its seed alone what it does, so that a failure can be repeated.

use std::cell::Cell;

/// Writes to guest memory right after it has been read.
#[derive(Debug)]
pub struct Racer {
    state: Cell<u64>,
    /// Reads for each write, on average.
    one_in: u64,
}

/// What becomes of a byte.
pub(crate) type Change = fn(u8) -> u8;

impl Racer {
    /// A racer that writes after one in `one_in` reads (0 is taken for 1).
    pub fn new(seed: u64, one_in: u64) -> Self {
        Self {
            // The generator stays at zero for ever if it starts there.
            state: Cell::new(seed | 1),
            one_in: one_in.max(1),
        }
    }

    /// Xorshift: all that is asked of it is that it goes everywhere.
    fn next(&self) -> u64 {
        let mut state = self.state.get();
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        self.state.set(state);
        state
    }

    /// What to change among `bytes` bytes that have been read: an offset, and how.
    pub(crate) fn turn(&self, bytes: usize) -> Option<(u64, Change)> {
        const CHANGES: [Change; 4] = [|_| 0, |_| 0xff, |byte| byte ^ 0x80, |byte| byte.wrapping_add(1)];
        if bytes == 0 || !self.next().is_multiple_of(self.one_in) {
            return None;
        }
        let offset = self.next() % bytes as u64;
        let change = CHANGES[(self.next() % CHANGES.len() as u64) as usize];
        Some((offset, change))
    }
}

#[cfg(test)]
mod tests {
    use crate::{PageRange, Populate, Prot, Racer, Vm};

    const AT: u64 = 0x10_0000;

    fn read_twice(racer: Option<Racer>, prot: Prot) -> ([u8; 64], [u8; 64]) {
        let mut vm = Vm::detached().unwrap();
        let page = PageRange::new(AT, AT + 4096);
        vm.space_mut().map(page, prot, Populate::OnTouch).unwrap();
        if let Some(racer) = racer {
            vm.race(racer);
        }
        let (mut first, mut second) = ([1; 64], [1; 64]);
        vm.space().read(AT, &mut first).unwrap();
        vm.space().read(AT, &mut second).unwrap();
        (first, second)
    }

    #[test]
    fn what_is_read_twice_has_changed() {
        // Of four changes one leaves a zero as it is.
        let (first, second) = (0..16)
            .map(|seed| read_twice(Some(Racer::new(seed, 1)), Prot::READ_WRITE))
            .find(|(first, second)| first != second)
            .expect("a racer changes something");
        assert_eq!(first, [0; 64]);
        assert_eq!(second.iter().filter(|byte| **byte != 0).count(), 1);
    }

    #[test]
    fn without_a_racer_or_a_right_to_write_nothing_changes() {
        assert_eq!(read_twice(None, Prot::READ_WRITE), ([0; 64], [0; 64]));
        for seed in 0..16 {
            let racer = Some(Racer::new(seed, 1));
            assert_eq!(read_twice(racer, Prot::READ), ([0; 64], [0; 64]));
        }
    }
}
