//! The native function of a replay, as `bootstrap` of a function with the runtime `provided.al2023`: takes as long and touches as much
//! memory as its event asks for (`commands/replay/trace_function.py` says the same in Python).
//!
//! It speaks Lambda's Runtime API over one connection: asks for the next invocation, does its work, answers, and asks again. Of the event it
//! reads the numbers `ns`, `rounds` and `memory_mib` and the first letters of `work` (`spin`, `wall`, `wait`); the caller is trusted to
//! send them. Memory is kept between calls.
//!
//! It stands alone: no library, statically linked. Bytes are read and written one by one and volatile, because a
//! compiler would make calls of a library's `memcpy` of anything else. Exit status 2: no address of the Runtime API; 3: no connection
//! to it; 4: an answer that makes no sense; 5: no memory.

#![no_std]
#![no_main]

#[expect(dead_code, reason = "it has a clock of its own")]
mod bare;

use core::ptr::{read_volatile, write_volatile};

use bare::{call, exit, map};

const READ: usize = 0;
const WRITE: usize = 1;
const CLOSE: usize = 3;
const NANOSLEEP: usize = 35;
const SOCKET: usize = 41;
const CONNECT: usize = 42;
const CLOCK_GETTIME: usize = 228;

const AF_INET: usize = 2;
const SOCK_STREAM: usize = 1;
const CLOCK_MONOTONIC: usize = 1;

const PAGE: usize = 4096;
const NS_PER_S: u64 = 1_000_000_000;

/// Largest message in either direction: events are of some hundred bytes, and heads of a kilobyte.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Steps of work in a round.
const STEPS: u64 = 16;

/// Rounds between two looks at the clock.
const ROUNDS_BETWEEN_LOOKS: u64 = 2000;

/// Bytes in memory of their own, up to the largest message.
struct Buffer {
    at: *mut u8,
    length: usize,
}

impl Buffer {
    fn new() -> Self {
        let at = map(MESSAGE_BYTES_MAX);
        Self { at, length: 0 }
    }

    fn get(&self, index: usize) -> u8 {
        if index >= self.length {
            return 0;
        }
        // SAFETY: within what was written.
        unsafe { read_volatile(self.at.add(index)) }
    }

    fn push(&mut self, byte: u8) {
        if self.length == MESSAGE_BYTES_MAX {
            exit(4);
        }
        // SAFETY: within the buffer.
        unsafe { write_volatile(self.at.add(self.length), byte) };
        self.length += 1;
    }

    fn text(&mut self, text: &str) {
        for byte in text.bytes() {
            self.push(byte);
        }
    }

    fn number(&mut self, number: u64) {
        if number >= 10 {
            self.number(number / 10);
        }
        self.push(b'0' + (number % 10) as u8);
    }

    /// Where a text begins, from an index on and whatever the case of its letters; and where it ends.
    fn find(&self, from: usize, text: &str) -> Option<usize> {
        (from..self.length).find_map(|start| {
            let is_here = text
                .bytes()
                .enumerate()
                .all(|(offset, byte)| self.get(start + offset).eq_ignore_ascii_case(&byte));
            is_here.then_some(start + text.len())
        })
    }

    /// The number whose digits begin at an index or after what is no digit there.
    fn number_at(&self, mut index: usize) -> u64 {
        while index < self.length && !self.get(index).is_ascii_digit() {
            index += 1;
        }
        let mut number = 0_u64;
        while self.get(index).is_ascii_digit() {
            number = number
                .saturating_mul(10)
                .saturating_add(u64::from(self.get(index) - b'0'));
            index += 1;
        }
        number
    }

    /// The number that follows a text; 0 where the text is missing.
    fn number_after(&self, from: usize, text: &str) -> u64 {
        self.find(from, text).map_or(0, |end| self.number_at(end))
    }
}

/// Address of the Runtime API: an IPv4 address and a port, in the order of a network.
struct Api {
    address: [u8; 16],
    connection: usize,
}

impl Api {
    /// From `AWS_LAMBDA_RUNTIME_API=A.B.C.D:PORT` in the environment.
    fn of(value: &Buffer) -> Self {
        let mut address = [0; 16];
        address[0] = AF_INET as u8;
        let mut index = 0;
        for part in 0..5 {
            let number = value.number_at(index);
            if part < 4 {
                address[4 + part] = number as u8;
            } else {
                address[2] = (number >> 8) as u8;
                address[3] = number as u8;
            }
            while value.get(index).is_ascii_digit() {
                index += 1;
            }
            index += 1;
        }
        let mut api = Self {
            address,
            connection: 0,
        };
        api.connect();
        api
    }

    fn connect(&mut self) {
        // SAFETY: it takes numbers only.
        let socket = unsafe { call(SOCKET, [AF_INET, SOCK_STREAM, 0, 0, 0, 0]) };
        let address = self.address.as_ptr() as usize;
        // SAFETY: the address lives as long as the call; a socket that was refused is refused here.
        let connected = unsafe { call(CONNECT, [socket as usize, address, self.address.len(), 0, 0, 0]) };
        if socket < 0 || connected < 0 {
            exit(3);
        }
        self.connection = socket as usize;
    }

    /// Sends a request and reads the whole answer; where its body begins.
    fn exchange(&mut self, request: &Buffer, answer: &mut Buffer) -> usize {
        let mut sent = 0;
        while sent < request.length {
            let (at, left) = (request.at as usize + sent, request.length - sent);
            // SAFETY: within the buffer.
            let written = unsafe { call(WRITE, [self.connection, at, left, 0, 0, 0]) };
            if written <= 0 {
                exit(3);
            }
            sent += written as usize;
        }
        answer.length = 0;
        let (mut body, mut end) = (0, usize::MAX);
        while answer.length < end {
            let (at, left) = (
                answer.at as usize + answer.length,
                MESSAGE_BYTES_MAX - answer.length,
            );
            // SAFETY: within the buffer.
            let read = unsafe { call(READ, [self.connection, at, left, 0, 0, 0]) };
            if read <= 0 {
                exit(4);
            }
            answer.length += read as usize;
            if body == 0
                && let Some(head_end) = answer.find(0, "\r\n\r\n")
            {
                body = head_end;
                end = head_end + answer.number_after(0, "\r\ncontent-length:") as usize;
            }
        }
        if answer.find(0, "\r\nconnection: close").is_some_and(|at| at <= body) {
            // SAFETY: the descriptor is this program's own.
            unsafe { call(CLOSE, [self.connection, 0, 0, 0, 0, 0]) };
            self.connect();
        }
        body
    }
}

/// Nanoseconds since some moment.
fn now() -> u64 {
    let mut time = [0_u64; 2];
    // SAFETY: the memory for the answer lives as long as the call.
    unsafe { call(CLOCK_GETTIME, [CLOCK_MONOTONIC, time.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    time[0] * NS_PER_S + time[1]
}

/// A fixed amount of work.
fn spin(rounds: u64) {
    let mut value = 1_u64;
    for _ in 0..rounds {
        for _ in 0..STEPS {
            value = value.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        }
        // SAFETY: a variable of this function; read so that the work is done.
        value = unsafe { read_volatile(&value) };
    }
}

/// Memory that is kept between calls.
struct Memory(usize);

impl Memory {
    /// Has this much, every page of it written.
    fn touch(&mut self, mib: u64) {
        let bytes = (mib as usize) << 20;
        if bytes <= self.0 {
            return;
        }
        // What is there stays; only what is missing is added.
        let missing = bytes - self.0;
        let at = map(missing);
        for page in 0..missing / PAGE {
            // SAFETY: within what was mapped.
            unsafe { write_volatile(at.add(page * PAGE), 1) };
        }
        self.0 = bytes;
    }
}

/// Does what an event asks for; how long it took, in nanoseconds.
fn work(event: &Buffer, body: usize, memory: &mut Memory) -> u64 {
    let began = now();
    let wanted = event.number_after(body, "\"ns\":").max(1);
    memory.touch(event.number_after(body, "\"memory_mib\":"));
    let spent = now().saturating_sub(began);
    let is = |what: &str| event.find(body, what).is_some();
    if is("\"work\":\"spin") {
        let rounds = event.number_after(body, "\"rounds\":");
        spin(rounds);
    } else if is("\"work\":\"wall") {
        while now().saturating_sub(began) < wanted {
            spin(ROUNDS_BETWEEN_LOOKS);
        }
    } else if spent < wanted {
        let left = wanted - spent;
        let time = [left / NS_PER_S, left % NS_PER_S];
        // SAFETY: the time lives as long as the call.
        unsafe { call(NANOSLEEP, [time.as_ptr() as usize, 0, 0, 0, 0, 0]) };
    }
    now().saturating_sub(began)
}

/// The value of a variable of the environment, which follows the arguments on the stack.
fn variable(stack: *const usize, name: &str) -> Buffer {
    let mut value = Buffer::new();
    // SAFETY: the kernel has put there the count of arguments, these, a zero, the environment, and a zero.
    unsafe {
        let mut entry = stack.add(read_volatile(stack) + 2);
        while read_volatile(entry) != 0 {
            let text = read_volatile(entry) as *const u8;
            let is_it = name
                .bytes()
                .enumerate()
                .all(|(offset, byte)| read_volatile(text.add(offset)) == byte);
            if is_it {
                let mut at = text.add(name.len());
                while read_volatile(at) != 0 {
                    value.push(read_volatile(at));
                    at = at.add(1);
                }
                return value;
            }
            entry = entry.add(1);
        }
    }
    exit(2)
}

extern "C" fn main(stack: *const usize) -> ! {
    let mut api = Api::of(&variable(stack, "AWS_LAMBDA_RUNTIME_API="));
    let (mut request, mut event, mut answer) = (Buffer::new(), Buffer::new(), Buffer::new());
    let mut memory = Memory(0);
    loop {
        request.length = 0;
        request.text("GET /2018-06-01/runtime/invocation/next HTTP/1.1\r\nhost: runtime\r\n\r\n");
        let body = api.exchange(&request, &mut event);
        let Some(mut id) = event.find(0, "\r\nlambda-runtime-aws-request-id:") else {
            exit(4)
        };
        let ns = work(&event, body, &mut memory);
        answer.length = 0;
        answer.text("{\"ns\":");
        answer.number(ns);
        answer.text("}");
        request.length = 0;
        request.text("POST /2018-06-01/runtime/invocation/");
        while event.get(id) == b' ' {
            id += 1;
        }
        while event.get(id) > b' ' {
            request.push(event.get(id));
            id += 1;
        }
        request.text("/response HTTP/1.1\r\nhost: runtime\r\ncontent-type: application/json\r\ncontent-length: ");
        request.number(answer.length as u64);
        request.text("\r\n\r\n");
        for index in 0..answer.length {
            request.push(answer.get(index));
        }
        api.exchange(&request, &mut event);
    }
}
