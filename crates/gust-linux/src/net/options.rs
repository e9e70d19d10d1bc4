//! Socket options. Those that mean something on loopback are honoured; others are remembered and given back, since
//! programs check that they took.

use crate::{
    abi::{Writer, i64_at, u32_at},
    errno::{EDOM, EINVAL, ENOPROTOOPT, EOPNOTSUPP, EPERM, Errno},
    kernel::{Cx, Flow, Kernel, SysResult},
    net::{
        Domain, STREAM_BYTES, Socket, SocketKind, SocketState, ancillary::Credentials, buffer_bytes,
        option_values,
    },
};

/// Longest option value.
const VALUE_BYTES_MAX: i32 = 1024;
/// Most options that are remembered for a socket.
const OPTIONS_MAX: usize = 64;

pub(crate) fn sys_setsockopt(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [fd, level, name, value, bytes, _] = *args;
    let (number, _) = k.socket_number(fd)?;
    let (level, name, bytes) = (level as i32, name as i32, bytes as i32);
    let least = i32::from(level != libc::IPPROTO_IP);
    if !(least..=VALUE_BYTES_MAX).contains(&bytes) {
        return Err(EINVAL);
    }
    check_level(k.socket(number)?, level)?;
    check_settable(level, name)?;
    let raw = k.copy_in_vec(cx, value, bytes as usize)?;
    if level == libc::SOL_SOCKET && raw.len() < 4 {
        return Err(EINVAL);
    }
    if level == libc::IPPROTO_IP && [libc::IP_ADD_MEMBERSHIP, libc::IP_DROP_MEMBERSHIP].contains(&name) {
        k.socket_mut(number)?.change_groups(name, &raw)?;
        return Ok(Flow::Done(0));
    }
    let mut raw = option_values::accepted(k.socket(number)?, level, name, raw)?;
    let socket = k.socket_mut(number)?;
    if level == libc::SOL_SOCKET && (name == libc::SO_RCVTIMEO || name == libc::SO_SNDTIMEO) {
        let timeout = timeval_ns(&raw)?;
        if timeout == NO_WAIT_NS {
            raw.fill(0);
        }
        if name == libc::SO_RCVTIMEO {
            socket.receive_timeout_ns = timeout;
        } else {
            socket.send_timeout_ns = timeout;
        }
    }
    if socket.options.len() < OPTIONS_MAX || socket.options.contains_key(&(level, name)) {
        socket.options.insert((level, name), raw);
    }
    Ok(Flow::Done(0))
}

/// The time-out that a negative one becomes: no waiting at all, where zero is waiting for ever.
const NO_WAIT_NS: u64 = 1;

/// Names of `SOL_SOCKET` that exist, and whether an unprivileged process may set them.
fn check_settable(level: i32, name: i32) -> Result<(), Errno> {
    /// Highest option number of Linux 6.1.
    const NAME_MAX: i32 = 76;
    if level != libc::SOL_SOCKET {
        return Ok(());
    }
    match name {
        libc::SO_SNDBUFFORCE | libc::SO_RCVBUFFORCE => Err(EPERM),
        libc::SO_TYPE
        | libc::SO_DOMAIN
        | libc::SO_PROTOCOL
        | libc::SO_ERROR
        | libc::SO_ACCEPTCONN
        | libc::SO_PEERCRED
        | libc::SO_PEERSEC => Err(ENOPROTOOPT),
        1..=NAME_MAX => Ok(()),
        _ => Err(ENOPROTOOPT),
    }
}

fn timeval_ns(raw: &[u8]) -> Result<u64, Errno> {
    if raw.len() < 16 {
        return Err(EINVAL);
    }
    let (seconds, microseconds) = (i64_at(raw, 0), i64_at(raw, 8));
    if !(0..1_000_000).contains(&microseconds) {
        return Err(EDOM);
    }
    if seconds < 0 {
        return Ok(NO_WAIT_NS);
    }
    Ok((seconds as u64)
        .saturating_mul(1_000_000_000)
        .saturating_add(microseconds as u64 * 1000))
}

fn check_level(socket: &Socket, level: i32) -> Result<(), Errno> {
    let known = match level {
        libc::SOL_SOCKET => true,
        libc::IPPROTO_TCP => socket.domain.is_internet() && socket.kind == SocketKind::Stream,
        libc::IPPROTO_UDP => socket.domain.is_internet() && socket.kind == SocketKind::Datagram,
        libc::IPPROTO_UDPLITE => socket
            .options
            .contains_key(&(libc::SOL_SOCKET, libc::SO_PROTOCOL)),
        libc::IPPROTO_IP => socket.domain.is_internet(),
        libc::SOL_NETLINK => socket.domain == Domain::Netlink,
        libc::IPPROTO_IPV6 => socket.domain == Domain::Inet6,
        _ => false,
    };
    match (known, socket.domain) {
        (true, _) => Ok(()),
        (false, Domain::Unix) => Err(EOPNOTSUPP),
        (false, Domain::Inet4 | Domain::Inet6 | Domain::Netlink) => Err(ENOPROTOOPT),
    }
}

impl Kernel {
    fn socket_option(&mut self, number: u32, level: i32, name: i32) -> Result<Vec<u8>, Errno> {
        let socket = self.socket_mut(number)?;
        check_level(socket, level)?;
        let int = |value: i32| value.to_le_bytes().to_vec();
        if level == libc::SOL_SOCKET {
            match name {
                libc::SO_ERROR => return Ok(int(socket.take_error().map_or(0, Errno::number))),
                libc::SO_TYPE => return Ok(int(socket.kind.number())),
                libc::SO_DOMAIN => return Ok(int(socket.domain.number())),
                libc::SO_PROTOCOL => {
                    if let Some(other) = socket.options.get(&(level, name)) {
                        return Ok(other.clone());
                    }
                    return Ok(int(match (socket.domain, socket.kind) {
                        (Domain::Unix | Domain::Netlink, _) => 0,
                        (_, SocketKind::Stream) => libc::IPPROTO_TCP,
                        (_, SocketKind::Datagram | SocketKind::Sequenced) => libc::IPPROTO_UDP,
                    }));
                }
                libc::SO_ACCEPTCONN => {
                    return Ok(int(i32::from(matches!(
                        socket.state,
                        SocketState::Listening { .. }
                    ))));
                }
                libc::SO_SNDBUF | libc::SO_RCVBUF => {
                    // Linux doubles what was asked for, and tells the doubled value.
                    let set = socket
                        .options
                        .get(&(level, name))
                        .map(|raw| u32_at(raw, 0) as i32);
                    return Ok(int(
                        set.map_or(STREAM_BYTES as i32, |asked| buffer_bytes(name, asked))
                    ));
                }
                libc::SO_PEERCRED => {
                    const UNKNOWN: Credentials = Credentials {
                        pid: 0,
                        uid: u32::MAX,
                        gid: u32::MAX,
                    };
                    return Ok(socket.peer_credentials.unwrap_or(UNKNOWN).to_bytes());
                }
                name if check_settable(level, name) == Err(ENOPROTOOPT) => return Err(ENOPROTOOPT),
                libc::SO_LINGER if !socket.options.contains_key(&(level, name)) => return Ok(vec![0; 8]),
                libc::SO_RCVTIMEO | libc::SO_SNDTIMEO if !socket.options.contains_key(&(level, name)) => {
                    return Ok(vec![0; 16]);
                }
                _ => {}
            }
        }
        if let Some(value) = socket.options.get(&(level, name)) {
            return Ok(value.clone());
        }
        match (level, name) {
            (libc::IPPROTO_TCP, libc::TCP_MAXSEG) => {
                let connected = matches!(socket.state, SocketState::Connected(_));
                Ok(int(if connected { 65_483 } else { 536 }))
            }
            // State, and zeros for counters that loopback does not keep.
            (libc::IPPROTO_TCP, libc::TCP_INFO) => {
                const ESTABLISHED: u8 = 1;
                const CLOSED: u8 = 7;
                let state = if matches!(socket.state, SocketState::Connected(_) | SocketState::Outside(_)) {
                    ESTABLISHED
                } else {
                    CLOSED
                };
                Ok(Writer::with_capacity(104).u8(state).pad_to(104).done())
            }
            _ => option_values::initial(level, name),
        }
    }
}

pub(crate) fn sys_getsockopt(k: &mut Kernel, cx: &mut Cx<'_>, args: &[u64; 6]) -> SysResult {
    let [fd, level, name, value, bytes_at, _] = *args;
    let (number, _) = k.socket_number(fd)?;
    let room = k.copy_in_u32(cx, bytes_at)? as i32;
    if room < 0 {
        return Err(EINVAL);
    }
    let raw = k.socket_option(number, level as i32, name as i32)?;
    let told = option_values::told(level as i32, &raw, room as usize);
    k.copy_out(cx, value, told)?;
    k.copy_out(cx, bytes_at, &(told.len() as u32).to_le_bytes())?;
    Ok(Flow::Done(0))
}
