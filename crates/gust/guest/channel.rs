//! The program that `gust bench sidechannel` runs in two guests: one sends bits to the other by what it does to caches and
//! memory, and by nothing else.
//!
//! It is a function on the runtime's device (`docs/runtime-device.md`). An event's body is seven little-endian words of
//! eight bytes:
//!
//! | word | meaning |
//! |---|---|
//! | role | 0 receives, 1 sends |
//! | means | 0: a line of a page that both may have; 1: banks of memory that each has of its own |
//! | start | time-stamp counter at the start of the first slot |
//! | slot | ticks of a slot; each carries one bit |
//! | bits | how many |
//! | seed | of the bits: what is sent follows from it |
//! | own | anything: written into memory of its own, so that two instances differ |
//!
//! The receiver's answer has four bytes for each slot: the ticks of its loads. The sender's answer is empty. Both have the same
//! counter, since a guest's is the host's.
//!
//! It stands alone: no library, statically linked. Exit status 1: the device; 5: no memory.

#![no_std]
#![no_main]

mod bare;

use core::{
    arch::x86_64::{_mm_clflush, _mm_mfence, _mm_pause},
    ptr::{read_volatile, write_volatile},
};

use bare::{call, exit, map, ticks};

const READ: usize = 0;
const WRITE: usize = 1;
const OPEN: usize = 2;

const BITS_MAX: usize = 1 << 16;
const BODY_MAX: usize = 1 << 16;
const HEADER: usize = 16;
const EVENT: u32 = 2;
/// Memory that banks are kept busy with: more than a core's own caches hold.
const BANKS_BYTES: usize = 8 << 20;
const LINE: usize = 64;

/// A page of the program's text and data: nothing writes to it, so every instance of a snapshot has the same.
#[repr(align(4096))]
struct Page([u8; 4096]);
static SHARED: Page = Page([0x5a; 4096]);
/// The line that is looked at: in the middle, where no prefetcher comes by.
const SHARED_LINE: usize = 2048;

fn wait_until(tick: u64) {
    while ticks() < tick {
        // SAFETY: a hint.
        unsafe { _mm_pause() };
    }
}

/// Ticks of a load.
///
/// # Safety
/// `at` must be readable.
unsafe fn load(at: *const u8) -> u64 {
    let before = ticks();
    // SAFETY: as the caller says.
    unsafe { read_volatile(at) };
    ticks() - before
}

/// # Safety
/// `at` must be mapped.
unsafe fn flush(at: *const u8) {
    // SAFETY: as the caller says.
    unsafe {
        _mm_clflush(at);
        _mm_mfence();
    }
}

/// A stream of numbers that follows from its seed, as the bench has it, too.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bit(&mut self) -> bool {
        self.next() >> 33 & 1 != 0
    }
}

struct Job {
    shares: bool,
    start: u64,
    slot: u64,
    bits: usize,
    seed: u64,
}

/// Keeps something busy in the slots of ones.
fn send(job: &Job, banks: *mut u8) {
    let line = &raw const SHARED.0[SHARED_LINE];
    let mut bits = Numbers(job.seed);
    let mut places = Numbers(job.seed ^ 0x5555 | 1);
    for n in 0..job.bits as u64 {
        let end = job.start + (n + 1) * job.slot;
        wait_until(end - job.slot);
        if !bits.bit() {
            wait_until(end);
            continue;
        }
        while ticks() < end {
            // SAFETY: both are memory of this program.
            unsafe {
                if job.shares {
                    read_volatile(line);
                } else {
                    for _ in 0..16 {
                        let at = banks.add(places.next() as usize % (BANKS_BYTES / LINE) * LINE);
                        _mm_clflush(at);
                        read_volatile(at);
                    }
                }
            }
        }
    }
}

/// Takes the time of loads in each slot.
fn receive(job: &Job, banks: *mut u8, out: *mut u32) {
    let line = &raw const SHARED.0[SHARED_LINE];
    let mut places = Numbers(job.seed ^ 0x3333 | 1);
    for n in 0..job.bits {
        let begin = job.start + n as u64 * job.slot;
        wait_until(begin);
        // SAFETY: memory of this program; there is room for as many answers as bits.
        unsafe {
            let took = if job.shares {
                flush(line);
                wait_until(begin + job.slot / 4 * 3);
                load(line)
            } else {
                let (mut sum, mut loads) = (0, 0);
                while ticks() < begin + job.slot / 8 * 7 {
                    let at = banks.add(places.next() as usize % (BANKS_BYTES / LINE) * LINE);
                    flush(at);
                    // What an interruption took says nothing of a bank.
                    let took = load(at);
                    if took < 4000 {
                        (sum, loads) = (sum + took, loads + 1);
                    }
                }
                // In sixteenths, since it is the mean that tells.
                sum * 16 / if loads == 0 { 1 } else { loads }
            };
            write_volatile(out.add(n), took as u32);
        }
    }
}

/// Reads all of a buffer from the device.
fn read_all(device: usize, to: *mut u8, bytes: usize) {
    let mut done = 0;
    while done < bytes {
        // SAFETY: within the buffer.
        let got = unsafe { call(READ, [device, to as usize + done, bytes - done, 0, 0, 0]) };
        if got <= 0 {
            exit(1);
        }
        done += got as usize;
    }
}

fn write_all(device: usize, from: *const u8, bytes: usize) {
    let mut done = 0;
    while done < bytes {
        // SAFETY: within the buffer.
        let put = unsafe { call(WRITE, [device, from as usize + done, bytes - done, 0, 0, 0]) };
        if put <= 0 {
            exit(1);
        }
        done += put as usize;
    }
}

/// Does what an event says; gives the bytes of the answer.
///
/// # Safety
/// `body` must have seven words, `banks` and `out` their room.
unsafe fn work(body: *const u8, banks: *mut u8, out: *mut u32) -> usize {
    // SAFETY: as the caller says.
    let word = |n: usize| unsafe { body.add(n * 8).cast::<u64>().read_unaligned() };
    let job = Job {
        shares: word(1) == 0,
        start: word(2),
        slot: word(3),
        bits: (word(4) as usize).min(BITS_MAX),
        seed: word(5),
    };
    for page in 0..BANKS_BYTES / 4096 {
        // SAFETY: within the banks; brings each page in, with contents of its own.
        unsafe { write_volatile(banks.add(page * 4096), word(6) as u8) };
    }
    // SAFETY: brings the page in without writing to it.
    unsafe { read_volatile(&raw const SHARED.0[SHARED_LINE]) };
    if word(0) == 1 {
        send(&job, banks);
        0
    } else {
        receive(&job, banks, out);
        job.bits * 4
    }
}

extern "C" fn main() -> ! {
    const READ_WRITE: usize = 2;
    // SAFETY: the path is terminated.
    let device = unsafe { call(OPEN, [c"/dev/gust".as_ptr() as usize, READ_WRITE, 0, 0, 0, 0]) };
    if device < 0 {
        exit(1);
    }
    let device = device as usize;
    let message = map(HEADER + 2 * BODY_MAX);
    let out = map(BITS_MAX * 4).cast::<u32>();
    let banks = map(BANKS_BYTES);
    // SAFETY: brought in before the snapshot, so that it is part of it.
    unsafe { read_volatile(&raw const SHARED.0[SHARED_LINE]) };
    loop {
        read_all(device, message, HEADER);
        // SAFETY: the header has four words, and the buffer has room for what follows it.
        let field = |n: usize| unsafe { message.add(n * 4).cast::<u32>().read_unaligned() };
        let (kind, meta, body) = (field(0), field(1) as usize, field(2) as usize);
        if meta > BODY_MAX || body > BODY_MAX {
            exit(1);
        }
        // SAFETY: within the buffer, as just checked.
        let payload = unsafe { message.add(HEADER) };
        read_all(device, payload, meta + body);
        if kind != EVENT || body != 56 {
            continue;
        }
        // SAFETY: the body has seven words; the others have the room that they need.
        let bytes = unsafe { work(payload.add(meta), banks, out) };
        let mut header = [0u8; HEADER];
        header[..4].copy_from_slice(&1u32.to_le_bytes());
        header[4..8].copy_from_slice(&(bytes as u32).to_le_bytes());
        write_all(device, header.as_ptr(), HEADER);
        write_all(device, out.cast(), bytes);
    }
}
