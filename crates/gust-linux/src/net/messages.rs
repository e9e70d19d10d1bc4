//! `send` and `recv` in their forms.

use crate::{
    abi::{u32_at, u64_at},
    errno::{EAGAIN, EMSGSIZE, ENOTTY, EOPNOTSUPP, Errno},
    kernel::{Cx, Flow, Kernel, SysResult},
    net::{
        Domain, SocketKind, SocketState,
        address::Address,
        ancillary::{Ancillary, ControlRoom, Taken},
        stream::Manner,
    },
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
    let manner = manner(flags, nonblocking)?;
    k.send_any(cx, number, to, &slices, manner, Ancillary::default())
}

/// A `msghdr`: address, buffers, control data, flags.
struct Header {
    name: u64,
    name_bytes: u32,
    slices: Vec<UserSlice>,
    control: u64,
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
            control: u64_at(&raw, 32),
            control_bytes: u64_at(&raw, 40),
        })
    }

    fn send_header(&mut self, cx: &mut Cx<'_>, fd: u64, at: u64, flags: u64) -> SysResult {
        let (number, nonblocking) = self.socket_number(fd)?;
        let header = self.copy_in_header(cx, at)?;
        let ancillary = self.copy_in_control(cx, number, header.control, header.control_bytes)?;
        let domain = self.socket(number)?.domain;
        let to = if header.name == 0 {
            None
        } else {
            Some(self.copy_in_address(cx, domain, header.name, u64::from(header.name_bytes))?)
        };
        let manner = manner(flags, nonblocking)?;
        self.send_any(cx, number, to, &header.slices, manner, ancillary)
    }

    /// Receives into a header's buffers; gives the bytes, and tells the header about sender and truncation.
    fn receive_header(&mut self, cx: &mut Cx<'_>, fd: u64, at: u64, flags: u64) -> SysResult {
        let (number, nonblocking) = self.socket_number(fd)?;
        let manner = manner(flags, nonblocking)?;
        let header = self.copy_in_header(cx, at)?;
        let mut told = flags as i32 & libc::MSG_CMSG_CLOEXEC;
        let mut taken = Taken::default();
        let (bytes, from) = if self.socket(number)?.kind == SocketKind::Stream {
            match self.receive_stream(cx, number, &header.slices, manner, &mut taken) {
                Ok(Flow::Done(bytes)) => (bytes, self.stream_sender(number)?),
                other => return other,
            }
        } else {
            match self.receive_message(cx, number, &header.slices, manner)? {
                Some(received) => {
                    if received.full > received.copied {
                        told |= libc::MSG_TRUNC;
                    }
                    taken = received.taken;
                    let bytes = if manner.full_size {
                        received.full
                    } else {
                        received.copied
                    };
                    (bytes, received.from)
                }
                None => return self.no_message_yet(cx, number, manner.nonblocking),
            }
        };
        let room = ControlRoom {
            at: header.control,
            bytes: header.control_bytes,
            close_on_exec: flags as i32 & libc::MSG_CMSG_CLOEXEC != 0,
        };
        let (control_bytes, control_told) = self.deliver_control(cx, number, room, taken)?;
        let domain = self.socket(number)?.domain;
        let name_bytes = if header.name != 0 && from != Address::None {
            let raw = from.to_bytes(domain);
            let copied = raw.len().min(header.name_bytes as usize);
            self.copy_out(cx, header.name, &raw[..copied])?;
            raw.len() as u32
        } else {
            0
        };
        self.copy_out(cx, at + 8, &name_bytes.to_le_bytes())?;
        self.copy_out(cx, at + 40, &control_bytes.to_le_bytes())?;
        self.copy_out(cx, at + 48, &(told | control_told).to_le_bytes())?;
        Ok(Flow::Done(bytes))
    }

    /// Whose bytes a stream gives: the other end's name, for UNIX sockets only.
    fn stream_sender(&self, number: u32) -> Result<Address, Errno> {
        let socket = self.socket(number)?;
        if socket.domain != Domain::Unix {
            return Ok(Address::None);
        }
        let peer = match socket.state {
            SocketState::Connected(Some(peer)) => Some(self.socket(peer)?),
            SocketState::Connected(None)
            | SocketState::Idle
            | SocketState::Listening { .. }
            | SocketState::Service(_)
            | SocketState::Connecting(_)
            | SocketState::Outside(_) => None,
        };
        Ok(match peer.map(|peer| &peer.local) {
            Some(Address::None) | None => socket.remote.clone(),
            Some(local) => local.clone(),
        })
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
        let mut taken = Taken::default();
        let flow = k.receive_stream(cx, number, &slices, manner, &mut taken);
        if !taken.peeked {
            k.release_files(taken.files);
        }
        let flow = flow?;
        if let (Flow::Done(_), true) = (&flow, address != 0) {
            let sender = k.stream_sender(number)?;
            let raw = if sender == Address::None {
                Vec::new()
            } else {
                sender.to_bytes(domain)
            };
            k.copy_out_address(cx, &raw, address, address_bytes)?;
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
            if !received.taken.peeked {
                k.release_files(received.taken.files);
            }
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
    /// Requests on sockets that are not about files in general.
    pub(crate) fn socket_ioctl(&mut self, cx: &mut Cx<'_>, fd: u64, request: u64, arg: u64) -> SysResult {
        const FIOSETOWN: u64 = 0x8901;
        const SIOCSPGRP: u64 = 0x8902;
        const FIOGETOWN: u64 = 0x8903;
        const SIOCGPGRP: u64 = 0x8904;
        self.socket_number(fd).map_err(|_| ENOTTY)?;
        match request {
            FIOSETOWN | SIOCSPGRP => {
                let id = self.copy_in_u32(cx, arg)? as i32;
                return self.set_owner_id(fd, id);
            }
            FIOGETOWN | SIOCGPGRP => {
                let id = self.owner_id(fd)?;
                self.copy_out(cx, arg, &id.to_le_bytes())?;
                return Ok(Flow::Done(0));
            }
            _ => {}
        }
        self.interface_ioctl(cx, request, arg)
    }
}
