//! `send` and `recv` in their forms.

use crate::{
    abi::{u32_at, u64_at},
    errno::{EAGAIN, EINVAL, EMSGSIZE, EOPNOTSUPP, Errno},
    kernel::{Cx, Flow, Kernel, SysResult},
    net::{SocketKind, address::Address, stream::Manner},
    user::UserSlice,
};

/// Bytes of `struct msghdr`.
const HEADER_BYTES: usize = 56;
/// Bytes of `struct mmsghdr`.
const LONG_HEADER_BYTES: u64 = 64;
/// Most messages of one `sendmmsg` or `recvmmsg`.
const MESSAGES_MAX: u64 = 1024;

fn manner(flags: u64, nonblocking: bool) -> Result<Manner, Errno> {
    let flags = flags as i32;
    if flags & libc::MSG_OOB != 0 {
        return Err(EOPNOTSUPP);
    }
    if flags & libc::MSG_ERRQUEUE != 0 {
        return Err(EAGAIN);
    }
    Ok(Manner {
        nonblocking: nonblocking || flags & libc::MSG_DONTWAIT != 0,
        peek: flags & libc::MSG_PEEK != 0,
        wait_all: flags & libc::MSG_WAITALL != 0,
        no_signal: flags & libc::MSG_NOSIGNAL != 0,
        full_size: flags & libc::MSG_TRUNC != 0,
    })
}

pub(crate) fn sys_sendto(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [fd, buffer, bytes, flags, address, address_bytes] = *args;
    let (number, nonblocking) = k.socket_number(fd)?;
    let domain = k.socket(number)?.domain;
    let to = if address == 0 {
        None
    } else {
        Some(k.copy_in_address(cx, domain, address, address_bytes)?)
    };
    let slices = [UserSlice { at: buffer, bytes }];
    k.send_any(cx, number, to, &slices, manner(flags, nonblocking)?)
}

/// A `msghdr`: address, buffers, control data, flags.
struct Header {
    name: u64,
    name_bytes: u32,
    slices: Vec<UserSlice>,
    control_bytes: u64,
}

impl Kernel {
    fn copy_in_header(&mut self, cx: &mut Cx<'_>, at: u64) -> Result<Header, Errno> {
        let raw: [u8; HEADER_BYTES] = self.copy_in_array(cx, at)?;
        let count = u64_at(&raw, 24);
        if count > crate::abi::IOV_MAX {
            return Err(EMSGSIZE);
        }
        Ok(Header {
            name: u64_at(&raw, 0),
            name_bytes: u32_at(&raw, 8),
            slices: self.copy_in_iovec(cx, u64_at(&raw, 16), count)?,
            control_bytes: u64_at(&raw, 40),
        })
    }

    fn send_header(&mut self, cx: &mut Cx<'_>, fd: u64, at: u64, flags: u64) -> SysResult {
        let (number, nonblocking) = self.socket_number(fd)?;
        let header = self.copy_in_header(cx, at)?;
        if header.control_bytes > 0 {
            // Passing descriptors to oneself is what control data could do here.
            return Err(EOPNOTSUPP);
        }
        let domain = self.socket(number)?.domain;
        let to = if header.name == 0 {
            None
        } else {
            Some(self.copy_in_address(cx, domain, header.name, u64::from(header.name_bytes))?)
        };
        self.send_any(cx, number, to, &header.slices, manner(flags, nonblocking)?)
    }

    /// Receives into a header's buffers; gives the bytes, and tells the header about sender and truncation.
    fn receive_header(&mut self, cx: &mut Cx<'_>, fd: u64, at: u64, flags: u64) -> SysResult {
        let (number, nonblocking) = self.socket_number(fd)?;
        let manner = manner(flags, nonblocking)?;
        let header = self.copy_in_header(cx, at)?;
        let mut told = 0;
        let (bytes, from) = if self.socket(number)?.kind == SocketKind::Stream {
            match self.receive_stream(cx, number, &header.slices, manner)? {
                Flow::Done(bytes) => (bytes, None),
                other => return Ok(other),
            }
        } else {
            match self.receive_message(cx, number, &header.slices, manner)? {
                Some(received) => {
                    if received.full > received.copied {
                        told |= libc::MSG_TRUNC;
                    }
                    let bytes = if manner.full_size {
                        received.full
                    } else {
                        received.copied
                    };
                    (bytes, Some(received.from))
                }
                None => return self.no_message_yet(cx, number, manner.nonblocking),
            }
        };
        let domain = self.socket(number)?.domain;
        let name_bytes = match from {
            Some(from) if header.name != 0 && from != Address::None => {
                let raw = from.to_bytes(domain);
                let copied = raw.len().min(header.name_bytes as usize);
                self.copy_out(cx, header.name, &raw[..copied])?;
                raw.len() as u32
            }
            _ => 0,
        };
        self.copy_out(cx, at + 8, &name_bytes.to_le_bytes())?;
        self.copy_out(cx, at + 40, &0u64.to_le_bytes())?;
        self.copy_out(cx, at + 48, &told.to_le_bytes())?;
        Ok(Flow::Done(bytes))
    }
}

pub(crate) fn sys_sendmsg(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.send_header(cx, args[0], args[1], args[2])
}

pub(crate) fn sys_recvmsg(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    k.receive_header(cx, args[0], args[1], args[2])
}

pub(crate) fn sys_recvfrom(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [fd, buffer, bytes, flags, address, address_bytes] = *args;
    let (number, nonblocking) = k.socket_number(fd)?;
    let manner = manner(flags, nonblocking)?;
    let slices = [UserSlice {
        at: buffer,
        bytes: bytes.min(crate::abi::RW_BYTES_MAX),
    }];
    let socket = k.socket(number)?;
    let domain = socket.domain;
    if socket.kind == SocketKind::Stream {
        let flow = k.receive_stream(cx, number, &slices, manner)?;
        if let (Flow::Done(_), true) = (&flow, address != 0) {
            k.copy_out(cx, address_bytes, &0u32.to_le_bytes())?;
        }
        return Ok(flow);
    }
    match k.receive_message(cx, number, &slices, manner)? {
        Some(received) => {
            let raw = if received.from == Address::None {
                Vec::new()
            } else {
                received.from.to_bytes(domain)
            };
            k.copy_out_address(cx, &raw, address, address_bytes)?;
            Ok(Flow::Done(if manner.full_size {
                received.full
            } else {
                received.copied
            }))
        }
        None => k.no_message_yet(cx, number, manner.nonblocking),
    }
}

pub(crate) fn sys_sendmmsg(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [fd, at, count, flags, ..] = *args;
    let mut sent = 0;
    while sent < count.min(MESSAGES_MAX) {
        let header = at + sent * LONG_HEADER_BYTES;
        // Only the first message may wait: what has been sent must be told.
        let flags = if sent == 0 {
            flags
        } else {
            flags | libc::MSG_DONTWAIT as u64
        };
        match k.send_header(cx, fd, header, flags) {
            Ok(Flow::Done(bytes)) => {
                k.copy_out(cx, header + HEADER_BYTES as u64, &(bytes as u32).to_le_bytes())?;
            }
            Ok(other) => return Ok(other),
            Err(errno) if sent == 0 => return Err(errno),
            Err(_) => break,
        }
        sent += 1;
    }
    Ok(Flow::Done(sent))
}

pub(crate) fn sys_recvmmsg(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [fd, at, count, flags, timeout, _] = *args;
    if timeout != 0 {
        k.copy_in_timespec(cx, timeout)?;
    }
    let mut received = 0;
    while received < count.min(MESSAGES_MAX) {
        let header = at + received * LONG_HEADER_BYTES;
        let flags = if received == 0 {
            flags
        } else {
            flags | libc::MSG_DONTWAIT as u64
        };
        match k.receive_header(cx, fd, header, flags) {
            Ok(Flow::Done(bytes)) => {
                k.copy_out(cx, header + HEADER_BYTES as u64, &(bytes as u32).to_le_bytes())?;
            }
            Ok(other) => return Ok(other),
            Err(errno) if received == 0 => return Err(errno),
            Err(_) => break,
        }
        received += 1;
    }
    Ok(Flow::Done(received))
}

impl Kernel {
    /// Requests on sockets that are not about files in general: no interface can be looked at but by its name.
    pub(crate) fn socket_ioctl(&mut self, _cx: &mut Cx<'_>, fd: u64, _request: u64, _arg: u64) -> SysResult {
        match self.socket_number(fd) {
            Ok(_) => Err(EINVAL),
            Err(_) => Err(crate::errno::ENOTTY),
        }
    }
}
