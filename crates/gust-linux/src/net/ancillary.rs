//! What travels beside the bytes of UNIX sockets: open files and credentials (`SCM_RIGHTS`, `SCM_CREDENTIALS`). Of internet
//! sockets see [`super::packet`].
//!
//! A file in flight is a reference to an open file; who receives it gets a descriptor for it. There is one process, so
//! both ends are its own: threads and event loops hand files to each other this way.

use serde::{Deserialize, Serialize};

use crate::{
    abi::{Writer, i32_at, u32_at, u64_at},
    errno::{EBADF, EINVAL, ENOBUFS, EPERM, Errno},
    kernel::{Cx, Kernel},
    net::{
        Domain, Socket,
        packet::{Packet, Wishes, put_control},
    },
};

/// Most bytes of control data that one message is sent with (`net.core.optmem_max`).
const CONTROL_BYTES_MAX: u64 = 128 << 10;
/// Most files of one message (`SCM_MAX_FD`).
const FILES_MAX: usize = 253;
/// Bytes of `struct cmsghdr`.
pub(crate) const CONTROL_HEADER_BYTES: usize = 16;
/// What an id that nobody has told is shown as (`overflowuid`).
const NOBODY: u32 = 65_534;

/// Who sent a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Credentials {
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Credentials {
    /// `struct ucred`
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        Writer::with_capacity(12)
            .u32(self.pid)
            .u32(self.uid)
            .u32(self.gid)
            .done()
    }
}

/// What a message carries. Its files are counted as references once it has been sent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ancillary {
    /// Numbers of open files.
    pub(crate) files: Vec<u32>,
    pub(crate) credentials: Option<Credentials>,
    /// Of an internet datagram: what its sender wants its headers to be.
    pub(crate) wishes: Wishes,
    /// Its headers, once it has been sent.
    pub(crate) packet: Option<Packet>,
}

/// Bytes of a stream that were sent with the same.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(crate) bytes: usize,
    pub(crate) ancillary: Ancillary,
}

/// What a receiving call has taken beside bytes.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) files: Vec<u32>,
    /// Credentials of the first byte; the inner `None`: they were sent with none.
    pub(crate) credentials: Option<Option<Credentials>>,
    /// The files stay with the message, too.
    pub(crate) peeked: bool,
    /// Headers of an internet datagram.
    pub(crate) packet: Option<Packet>,
}

/// Where a receiver wants control data.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ControlRoom {
    pub(crate) at: u64,
    pub(crate) bytes: u64,
    /// `MSG_CMSG_CLOEXEC`
    pub(crate) close_on_exec: bool,
}

/// Bytes of a control message, padding included (`CMSG_ALIGN`).
pub(crate) fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(8)
}

fn header(bytes: usize, kind: i32) -> Writer {
    Writer::with_capacity(bytes)
        .u64(bytes as u64)
        .i32(libc::SOL_SOCKET)
        .i32(kind)
}

impl Socket {
    /// Whether it wants to know who sends.
    pub(crate) fn passes_credentials(&self) -> bool {
        self.option_is_set(libc::SOL_SOCKET, libc::SO_PASSCRED)
    }
}

impl Kernel {
    /// Credentials of the process.
    pub(crate) fn credentials(&self) -> Credentials {
        Credentials {
            pid: self.process.pid,
            uid: self.process.uid,
            gid: self.process.gid,
        }
    }

    /// Reads the control data of a message that is to be sent.
    pub(crate) fn copy_in_control(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        at: u64,
        bytes: u64,
    ) -> Result<Ancillary, Errno> {
        let mut ancillary = Ancillary::default();
        if at == 0 || bytes == 0 {
            return Ok(ancillary);
        }
        if bytes > CONTROL_BYTES_MAX {
            return Err(ENOBUFS);
        }
        let raw = self.copy_in_vec(cx, at, bytes as usize)?;
        let domain = self.socket(number)?.domain;
        let unix = domain == Domain::Unix;
        let mut at = 0;
        while at + CONTROL_HEADER_BYTES <= raw.len() {
            let length = u64_at(&raw, at);
            if length < CONTROL_HEADER_BYTES as u64 || length > (raw.len() - at) as u64 {
                return Err(EINVAL);
            }
            let length = length as usize;
            let data = &raw[at + CONTROL_HEADER_BYTES..at + length];
            let (level, kind) = (i32_at(&raw, at + 8), i32_at(&raw, at + 12));
            if [libc::IPPROTO_IP, libc::IPPROTO_IPV6].contains(&level) && domain.is_internet() {
                ancillary.wishes.take(domain, level, kind, data)?;
            }
            if level == libc::SOL_SOCKET {
                match kind {
                    libc::SCM_RIGHTS if unix => self.take_files(&mut ancillary, data)?,
                    libc::SCM_CREDENTIALS if unix => {
                        ancillary.credentials = Some(self.checked_credentials(data)?);
                    }
                    _ => return Err(EINVAL),
                }
            }
            at += aligned(length);
        }
        Ok(ancillary)
    }

    fn take_files(&self, ancillary: &mut Ancillary, data: &[u8]) -> Result<(), Errno> {
        let fds = data.chunks_exact(4);
        if ancillary.files.len() + fds.len() > FILES_MAX {
            return Err(EINVAL);
        }
        for fd in fds {
            let number = self.files.number(u64::from(u32_at(fd, 0))).ok_or(EBADF)?;
            ancillary.files.push(number);
        }
        Ok(())
    }

    /// Nobody sends in another's name.
    fn checked_credentials(&self, data: &[u8]) -> Result<Credentials, Errno> {
        if data.len() != 12 {
            return Err(EINVAL);
        }
        let told = Credentials {
            pid: u32_at(data, 0),
            uid: u32_at(data, 4),
            gid: u32_at(data, 8),
        };
        let mine =
            self.process.is_me(told.pid) && told.uid == self.process.uid && told.gid == self.process.gid;
        if mine { Ok(told) } else { Err(EPERM) }
    }

    /// Adds the sender's credentials when either end asks for them.
    pub(crate) fn stamp(&self, ancillary: &mut Ancillary, sender: u32, receiver: u32) {
        let asks = |number: u32| {
            self.network
                .sockets
                .get(number)
                .is_some_and(Socket::passes_credentials)
        };
        if ancillary.credentials.is_none() && (asks(sender) || asks(receiver)) {
            ancillary.credentials = Some(self.credentials());
        }
    }

    /// Gives a receiver what it has room for. Gives the bytes of control data and the flags to tell.
    pub(crate) fn deliver_control(
        &mut self,
        cx: &mut Cx<'_>,
        number: u32,
        room: ControlRoom,
        taken: Taken,
    ) -> Result<(u64, i32), Errno> {
        let wants_credentials = self.socket(number)?.passes_credentials();
        let credentials = taken.credentials.filter(|_| wants_credentials);
        let room_bytes = if room.at == 0 {
            0
        } else {
            room.bytes.min(CONTROL_BYTES_MAX) as usize
        };
        let (mut out, mut told) = (Vec::new(), 0);
        if let Some(packet) = &taken.packet {
            for (level, kind, data) in self.socket(number)?.told_of(packet) {
                if put_control(&mut out, room_bytes, level, kind, &data) {
                    told |= libc::MSG_CTRUNC;
                }
            }
        }
        if let Some(credentials) = credentials {
            let credentials = credentials.unwrap_or(Credentials {
                pid: 0,
                uid: NOBODY,
                gid: NOBODY,
            });
            let data = credentials.to_bytes();
            if put_control(
                &mut out,
                room_bytes,
                libc::SOL_SOCKET,
                libc::SCM_CREDENTIALS,
                &data,
            ) {
                told |= libc::MSG_CTRUNC;
            }
        }
        let fits = (room_bytes - out.len()).saturating_sub(CONTROL_HEADER_BYTES) / 4;
        let wanted = taken.files.len();
        let fds = self.install_files(&taken.files[..fits.min(wanted)], room.close_on_exec);
        if fds.len() < wanted {
            told |= libc::MSG_CTRUNC;
        }
        if !fds.is_empty() {
            let bytes = CONTROL_HEADER_BYTES + 4 * fds.len();
            let message = fds
                .iter()
                .fold(header(bytes, libc::SCM_RIGHTS), |out, fd| out.u32(*fd as u32))
                .done();
            let padded = aligned(bytes).min(room_bytes - out.len());
            out.extend_from_slice(&message);
            let end = out.len() - bytes + padded;
            out.resize(end, 0);
        }
        if !taken.peeked {
            self.release_files(taken.files);
        }
        if let Err(errno) = self.copy_out(cx, room.at, &out) {
            for fd in fds {
                self.close(fd)?;
            }
            return Err(errno);
        }
        Ok((out.len() as u64, told))
    }

    /// Descriptors for open files, as many as there is room for.
    fn install_files(&mut self, files: &[u32], close_on_exec: bool) -> Vec<u64> {
        files
            .iter()
            .map_while(|file| self.files.name_file(*file, close_on_exec).ok())
            .collect()
    }
}
