//! Values of socket options: which are taken, what they become, and what an option is before it has been set.
//!
//! What most of them steer does not exist on loopback; programs still check that they took, and that wrong values are
//! refused.

use crate::{
    abi::u32_at,
    errno::{EINVAL, ENOENT, ENOPROTOOPT, Errno},
    net::{Socket, SocketKind},
};

/// How an option of four bytes is read and what it may be.
enum Rule {
    /// On or off.
    Switch,
    /// One of these numbers.
    Range(i32, i32),
    /// One of these numbers, or -1 for this one.
    RangeOr(i32, i32, i32),
    /// The lowest eight bits count, of a stream without the two of congestion notification.
    ServiceType,
    /// Not below zero.
    NotNegative,
}

fn rule(level: i32, name: i32) -> Option<Rule> {
    use Rule::{NotNegative, Range, RangeOr, ServiceType, Switch};
    const IP_NODEFRAG: i32 = 22;
    const MAXSEG_MIN: i32 = 88;
    const MAXSEG_MAX: i32 = 32_767;
    Some(match (level, name) {
        (
            libc::SOL_SOCKET,
            libc::SO_REUSEADDR
            | libc::SO_REUSEPORT
            | libc::SO_KEEPALIVE
            | libc::SO_BROADCAST
            | libc::SO_PASSCRED
            | libc::SO_TIMESTAMP
            | libc::SO_OOBINLINE
            | libc::SO_DONTROUTE
            | libc::SO_NO_CHECK,
        ) => Switch,
        (libc::IPPROTO_IP, libc::IP_TTL) => RangeOr(1, 255, 64),
        (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL) => RangeOr(0, 255, 1),
        (libc::IPPROTO_IP, libc::IP_TOS) => ServiceType,
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER) | (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER) => {
            Range(0, 5)
        }
        (
            libc::IPPROTO_IP,
            libc::IP_MULTICAST_LOOP
            | libc::IP_RECVTOS
            | libc::IP_RECVTTL
            | libc::IP_PKTINFO
            | libc::IP_RECVERR
            | libc::IP_HDRINCL
            | libc::IP_RECVORIGDSTADDR
            | libc::IP_FREEBIND
            | IP_NODEFRAG,
        ) => Switch,
        (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => RangeOr(0, 255, 0),
        (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) => RangeOr(0, 255, 64),
        (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS) => RangeOr(0, 255, 1),
        (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP) => Range(0, 1),
        (
            libc::IPPROTO_IPV6,
            libc::IPV6_V6ONLY
            | libc::IPV6_RECVTCLASS
            | libc::IPV6_RECVHOPLIMIT
            | libc::IPV6_RECVPKTINFO
            | libc::IPV6_RECVORIGDSTADDR
            | libc::IPV6_RECVERR,
        ) => Switch,
        (libc::IPPROTO_TCP, libc::TCP_NODELAY | libc::TCP_CORK | libc::TCP_QUICKACK) => Switch,
        (libc::IPPROTO_TCP, libc::TCP_SYNCNT | libc::TCP_KEEPCNT) => Range(1, 127),
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE | libc::TCP_KEEPINTVL) => Range(1, 32_767),
        (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => NotNegative,
        (libc::IPPROTO_TCP, libc::TCP_MAXSEG) => Range(MAXSEG_MIN, MAXSEG_MAX),
        _ => return None,
    })
}

/// Whether the kernel of an option of this level also takes it as a single byte.
fn takes_bytes(level: i32) -> bool {
    level == libc::IPPROTO_IP
}

/// What is kept of a value that a program sets.
pub(crate) fn accepted(socket: &Socket, level: i32, name: i32, raw: Vec<u8>) -> Result<Vec<u8>, Errno> {
    const SO_DETACH_FILTER: i32 = 27;
    match (level, name) {
        // No filter is ever attached.
        (libc::SOL_SOCKET, SO_DETACH_FILTER) => return Err(ENOENT),
        (libc::IPPROTO_TCP, libc::TCP_CONGESTION) => return congestion_control(&raw),
        _ => {}
    }
    let Some(rule) = rule(level, name) else {
        return Ok(raw);
    };
    let value = match raw.len() {
        4.. => u32_at(&raw, 0) as i32,
        1..=3 if takes_bytes(level) => i32::from(raw[0]),
        0 if (level, name) == (libc::IPPROTO_IP, libc::IP_TOS) => 0,
        _ => return Err(EINVAL),
    };
    let kept = match rule {
        Rule::Switch => i32::from(value != 0),
        Rule::Range(least, most) if (least..=most).contains(&value) => value,
        Rule::RangeOr(_, _, default) if value == -1 => default,
        Rule::RangeOr(least, most, _) if (least..=most).contains(&value) => value,
        Rule::NotNegative if value >= 0 => value,
        Rule::ServiceType => {
            const CONGESTION_BITS: i32 = 3;
            let value = value & 0xff;
            if socket.kind == SocketKind::Stream {
                value & !CONGESTION_BITS
            } else {
                value
            }
        }
        Rule::Range(..) | Rule::RangeOr(..) | Rule::NotNegative => return Err(EINVAL),
    };
    Ok(kept.to_le_bytes().to_vec())
}

fn congestion_control(raw: &[u8]) -> Result<Vec<u8>, Errno> {
    const NAME_BYTES: usize = 16;
    let name = raw.split(|byte| *byte == 0).next().unwrap_or_default();
    if name != b"cubic" && name != b"reno" {
        return Err(ENOENT);
    }
    let mut kept = name.to_vec();
    kept.resize(NAME_BYTES, 0);
    Ok(kept)
}

/// What an option is before it has been set.
pub(crate) fn initial(level: i32, name: i32) -> Result<Vec<u8>, Errno> {
    const SO_DETACH_FILTER: i32 = 27;
    let value: i32 = match (level, name) {
        (libc::SOL_SOCKET, SO_DETACH_FILTER) => return Err(ENOPROTOOPT),
        (libc::IPPROTO_TCP, libc::TCP_CONGESTION) => return congestion_control(b"cubic"),
        (libc::IPPROTO_TCP, libc::TCP_SYNCNT) => 6,
        (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE) => 7200,
        (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL) => 75,
        (libc::IPPROTO_TCP, libc::TCP_KEEPCNT) => 9,
        (libc::IPPROTO_TCP, libc::TCP_LINGER2) => 60,
        (libc::IPPROTO_TCP, libc::TCP_QUICKACK) => 1,
        (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS) => 64,
        (libc::IPPROTO_IP, libc::IP_MULTICAST_TTL | libc::IP_MULTICAST_LOOP) => 1,
        (libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS | libc::IPV6_MULTICAST_LOOP) => 1,
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER) | (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER) => 1,
        (libc::IPPROTO_IP, libc::IP_MTU) => 65_535,
        (libc::SOL_SOCKET, libc::SO_RCVLOWAT | libc::SO_SNDLOWAT) => 1,
        _ => 0,
    };
    Ok(value.to_le_bytes().to_vec())
}

/// The bytes that a program with this much room is given: a small number of the IP level fits one byte.
pub(crate) fn told(level: i32, raw: &[u8], room: usize) -> &[u8] {
    let short = takes_bytes(level) && raw.len() == 4 && (1..4).contains(&room);
    if short && raw[1..] == [0; 3] {
        &raw[..1]
    } else {
        &raw[..raw.len().min(room)]
    }
}
