//! What travels beside the bytes of internet datagrams: hop limits, service types, and where a datagram was sent to
//! (RFC 3542, and `ip(7)` for IPv4).
//!
//! A sender says it by options of its socket or by control data of one message; a receiver is told what it asked for by
//! options. Streams have none of it: on the wire there is no header of one message.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::{
    abi::{Writer, i32_at},
    errno::{EINVAL, Errno},
    net::{
        Domain, Socket,
        address::{Address, Host},
        ancillary::{CONTROL_HEADER_BYTES, aligned},
        option_values,
    },
};

/// Number of the interface that datagrams of loopback come in at.
const INTERFACE: i32 = 1;

/// Headers of a datagram, as its receiver may ask for them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Packet {
    /// Time to live, or hop limit.
    pub(crate) hops: u8,
    /// Type of service, or traffic class.
    pub(crate) service: u8,
    /// The port that it was sent to, of this host.
    pub(crate) port: u16,
}

/// What control data of one message says about its headers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wishes {
    hops: Option<u8>,
    service: Option<u8>,
}

/// Reads a number of control data; -1 is the socket's own value.
fn number(data: &[u8], least: i32) -> Result<Option<u8>, Errno> {
    if data.len() != 4 {
        return Err(EINVAL);
    }
    match i32_at(data, 0) {
        -1 => Ok(None),
        value if value >= least => u8::try_from(value).map(Some).map_err(|_| EINVAL),
        _ => Err(EINVAL),
    }
}

impl Wishes {
    /// Takes a control message of an internet level. Of packet information it is only checked that it is whole: there is
    /// one way that a datagram can take.
    ///
    /// # Errors
    /// `EINVAL`: unknown, of a wrong size, or out of range.
    pub(crate) fn take(&mut self, domain: Domain, level: i32, kind: i32, data: &[u8]) -> Result<(), Errno> {
        const PACKET_BYTES: usize = 12;
        const PACKET_6_BYTES: usize = 20;
        match (domain, level, kind) {
            (_, libc::IPPROTO_IP, libc::IP_TTL) => {
                self.hops = Some(number(data, 1)?.ok_or(EINVAL)?);
            }
            (_, libc::IPPROTO_IP, libc::IP_TOS) => {
                self.service = match data {
                    [service] => Some(*service),
                    data => Some(number(data, 0)?.ok_or(EINVAL)?),
                }
            }
            (_, libc::IPPROTO_IP, libc::IP_PKTINFO) if data.len() == PACKET_BYTES => {}
            (Domain::Inet6, libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => self.hops = number(data, 0)?,
            (Domain::Inet6, libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => self.service = number(data, 0)?,
            (Domain::Inet6, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) if data.len() >= PACKET_6_BYTES => {}
            _ => return Err(EINVAL),
        }
        Ok(())
    }
}

impl Socket {
    /// The low eight bits of an option, as it was set or as it is at first.
    fn header_option(&self, level: i32, name: i32) -> u8 {
        let raw = self.options.get(&(level, name)).cloned();
        let raw = raw.or_else(|| option_values::initial(level, name).ok());
        raw.and_then(|raw| raw.first().copied()).unwrap_or(0)
    }

    /// Headers of a datagram that it sends.
    pub(crate) fn packet(&self, wishes: Wishes, port: u16) -> Packet {
        let (level, hops, service) = match self.domain {
            Domain::Inet6 => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, libc::IPV6_TCLASS),
            Domain::Inet4 | Domain::Unix | Domain::Netlink => (libc::IPPROTO_IP, libc::IP_TTL, libc::IP_TOS),
        };
        Packet {
            hops: wishes.hops.unwrap_or_else(|| self.header_option(level, hops)),
            service: wishes
                .service
                .unwrap_or_else(|| self.header_option(level, service)),
            port,
        }
    }

    /// What it asked to be told of a datagram: level, kind and data of each control message, in Linux's order.
    pub(crate) fn told_of(&self, packet: &Packet) -> Vec<(i32, i32, Vec<u8>)> {
        let int = |value: i32| value.to_le_bytes().to_vec();
        let (hops, service) = (i32::from(packet.hops), i32::from(packet.service));
        let to = Address::Inet {
            host: Host::Loopback,
            port: packet.port,
        };
        let to = to.to_bytes(self.domain);
        let six = self.domain == Domain::Inet6;
        let level = if six { libc::IPPROTO_IPV6 } else { libc::IPPROTO_IP };
        let all = if six {
            vec![
                (libc::IPV6_RECVPKTINFO, libc::IPV6_PKTINFO, information_6()),
                (libc::IPV6_RECVHOPLIMIT, libc::IPV6_HOPLIMIT, int(hops)),
                (libc::IPV6_RECVTCLASS, libc::IPV6_TCLASS, int(service)),
                (libc::IPV6_RECVORIGDSTADDR, libc::IPV6_ORIGDSTADDR, to),
            ]
        } else {
            vec![
                (libc::IP_PKTINFO, libc::IP_PKTINFO, information()),
                (libc::IP_RECVTTL, libc::IP_TTL, int(hops)),
                (libc::IP_RECVTOS, libc::IP_TOS, vec![packet.service]),
                (libc::IP_RECVORIGDSTADDR, libc::IP_ORIGDSTADDR, to),
            ]
        };
        all.into_iter()
            .filter(|(option, ..)| self.option_is_set(level, *option))
            .map(|(_, kind, data)| (level, kind, data))
            .collect()
    }
}

/// `struct in_pktinfo`
fn information() -> Vec<u8> {
    let to = Ipv4Addr::LOCALHOST.octets();
    let writer = Writer::with_capacity(12).i32(INTERFACE);
    writer.bytes(&to).bytes(&to).done()
}

/// `struct in6_pktinfo`
fn information_6() -> Vec<u8> {
    Writer::with_capacity(20)
        .bytes(&Ipv6Addr::LOCALHOST.octets())
        .i32(INTERFACE)
        .done()
}

/// Appends a control message to `out` as far as `room` bytes go; true: it was cut off.
pub(crate) fn put_control(out: &mut Vec<u8>, room: usize, level: i32, kind: i32, data: &[u8]) -> bool {
    let left = room - out.len();
    if left < CONTROL_HEADER_BYTES {
        return true;
    }
    let full = CONTROL_HEADER_BYTES + data.len();
    let bytes = full.min(left);
    out.extend((bytes as u64).to_le_bytes());
    out.extend(level.to_le_bytes());
    out.extend(kind.to_le_bytes());
    out.extend(&data[..bytes - CONTROL_HEADER_BYTES]);
    let padded = aligned(full).min(left) - bytes;
    out.resize(out.len() + padded, 0);
    bytes < full
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_data_is_cut_off_where_the_room_ends() {
        let data = [1, 2, 3, 4];
        for (room, used, cut) in [(0, 0, true), (15, 0, true), (16, 16, true), (19, 19, true)] {
            let mut out = Vec::new();
            assert_eq!(put_control(&mut out, room, 41, 52, &data), cut, "{room}");
            assert_eq!(out.len(), used, "{room}");
        }
        for (room, used) in [(20, 20), (23, 23), (24, 24), (100, 24)] {
            let mut out = Vec::new();
            assert!(!put_control(&mut out, room, 41, 52, &data), "{room}");
            assert_eq!(out.len(), used, "{room}");
        }
    }

    #[test]
    fn wishes_are_checked() {
        let mut wishes = Wishes::default();
        let (six, level) = (Domain::Inet6, libc::IPPROTO_IPV6);
        for wrong in [256i32, -2] {
            let raw = wrong.to_le_bytes();
            assert_eq!(wishes.take(six, level, libc::IPV6_HOPLIMIT, &raw), Err(EINVAL));
        }
        assert_eq!(wishes.take(six, level, libc::IPV6_HOPLIMIT, &[1; 5]), Err(EINVAL));
        let raw = 7i32.to_le_bytes();
        assert_eq!(
            wishes.take(Domain::Inet4, level, libc::IPV6_TCLASS, &raw),
            Err(EINVAL)
        );
        let four = libc::IPPROTO_IP;
        assert_eq!(
            wishes.take(Domain::Inet4, four, libc::IP_TTL, &[0; 4]),
            Err(EINVAL)
        );
        assert_eq!(wishes, Wishes::default());
        assert_eq!(wishes.take(six, level, libc::IPV6_HOPLIMIT, &raw), Ok(()));
        assert_eq!(wishes.take(six, level, libc::IPV6_HOPLIMIT, &[0xff; 4]), Ok(()));
        assert_eq!(wishes, Wishes::default(), "-1 takes it back");
    }
}
