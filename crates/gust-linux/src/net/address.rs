//! Socket addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::{
    abi::{Writer, u16_at, u32_at},
    errno::{EAFNOSUPPORT, EINVAL, Errno},
    net::Domain,
};

/// Longest socket address that is looked at (`struct sockaddr_storage`).
pub(crate) const ADDRESS_BYTES_MAX: u64 = 128;
/// Longest name of a UNIX socket.
const UNIX_NAME_MAX: usize = 108;
/// Bytes of `struct sockaddr_nl`.
const NETLINK_BYTES: usize = 12;

/// An internet address as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Host {
    /// `0.0.0.0` or `::`
    Any,
    /// `127.0.0.0/8`, `::1`, or another address of an interface of the guest
    Loopback,
    /// Anything else: outside. Never an IPv4 address in IPv6 clothes.
    Elsewhere(IpAddr),
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Address {
    /// None yet.
    None,
    /// Internet.
    Inet {
        /// Which host.
        host: Host,
        /// Which port.
        port: u16,
    },
    /// A name in the file tree (without its zero), or an abstract one (with its leading zero).
    Unix(Vec<u8>),
    /// Of a netlink socket.
    Netlink {
        /// Which socket; zero is the kernel.
        port: u32,
    },
}

impl Address {
    /// Reads a `sockaddr` of a socket's domain.
    pub(crate) fn parse(domain: Domain, raw: &[u8]) -> Result<Self, Errno> {
        if raw.len() < 2 {
            return Err(EINVAL);
        }
        let family = i32::from(u16_at(raw, 0));
        match domain {
            Domain::Inet4 if family == libc::AF_INET => parse_v4(raw),
            Domain::Inet6 if family == libc::AF_INET6 => parse_v6(raw),
            // Linux takes IPv4's addresses for datagrams of an IPv6 socket, and shows them mapped afterwards. Here
            // they are refused, as on a socket that is IPv6's alone, since programs (getaddrinfo) cope with that.
            Domain::Unix if family == libc::AF_UNIX => parse_unix(raw),
            Domain::Netlink if family == libc::AF_NETLINK => parse_netlink(raw),
            Domain::Unix | Domain::Netlink => Err(EINVAL),
            Domain::Inet4 | Domain::Inet6 => Err(EAFNOSUPPORT),
        }
    }

    /// Writes a `sockaddr` of a socket's domain.
    pub(crate) fn to_bytes(&self, domain: Domain) -> Vec<u8> {
        let (host, port) = match self {
            Self::Inet { host, port } => (*host, *port),
            Self::None | Self::Unix(_) | Self::Netlink { .. } => (Host::Any, 0),
        };
        match domain {
            Domain::Inet4 => {
                let octets = match host {
                    Host::Any | Host::Elsewhere(IpAddr::V6(_)) => [0; 4],
                    Host::Loopback => [127, 0, 0, 1],
                    Host::Elsewhere(IpAddr::V4(address)) => address.octets(),
                };
                Writer::with_capacity(16)
                    .u16(libc::AF_INET as u16)
                    .u16(port.to_be())
                    .bytes(&octets)
                    .pad_to(16)
                    .done()
            }
            Domain::Inet6 => {
                let octets = match host {
                    Host::Any => Ipv6Addr::UNSPECIFIED.octets(),
                    Host::Loopback => Ipv6Addr::LOCALHOST.octets(),
                    Host::Elsewhere(IpAddr::V4(address)) => address.to_ipv6_mapped().octets(),
                    Host::Elsewhere(IpAddr::V6(address)) => address.octets(),
                };
                Writer::with_capacity(28)
                    .u16(libc::AF_INET6 as u16)
                    .u16(port.to_be())
                    .u32(0)
                    .bytes(&octets)
                    .u32(0)
                    .done()
            }
            Domain::Unix => {
                let out = Writer::with_capacity(2).u16(libc::AF_UNIX as u16);
                match self {
                    Self::Unix(name) if name.first() == Some(&0) => out.bytes(name).done(),
                    Self::Unix(name) => out.bytes(name).u8(0).done(),
                    Self::None | Self::Inet { .. } | Self::Netlink { .. } => out.done(),
                }
            }
            Domain::Netlink => {
                let port = match self {
                    Self::Netlink { port } => *port,
                    Self::None | Self::Inet { .. } | Self::Unix(_) => 0,
                };
                Writer::with_capacity(NETLINK_BYTES)
                    .u32(libc::AF_NETLINK as u32)
                    .u32(port)
                    .u32(0)
                    .done()
            }
        }
    }
}

fn parse_v4(raw: &[u8]) -> Result<Address, Errno> {
    if raw.len() < 16 {
        return Err(EINVAL);
    }
    let octets = [raw[4], raw[5], raw[6], raw[7]];
    Ok(Address::Inet {
        host: Host::of(Ipv4Addr::from(octets).into()),
        port: u16::from_be(u16_at(raw, 2)),
    })
}

fn parse_v6(raw: &[u8]) -> Result<Address, Errno> {
    const SMALLEST: usize = 24;
    if raw.len() < SMALLEST {
        return Err(EINVAL);
    }
    let mut octets = [0; 16];
    octets.copy_from_slice(&raw[8..24]);
    Ok(Address::Inet {
        host: Host::of(Ipv6Addr::from(octets).into()),
        port: u16::from_be(u16_at(raw, 2)),
    })
}

/// Groups to listen to are not looked at: nothing is ever announced.
fn parse_netlink(raw: &[u8]) -> Result<Address, Errno> {
    if raw.len() < NETLINK_BYTES {
        return Err(EINVAL);
    }
    Ok(Address::Netlink { port: u32_at(raw, 4) })
}

fn parse_unix(raw: &[u8]) -> Result<Address, Errno> {
    let name = &raw[2..];
    if name.len() > UNIX_NAME_MAX {
        return Err(EINVAL);
    }
    match name.first() {
        None => Ok(Address::None),
        Some(0) => Ok(Address::Unix(name.to_vec())),
        Some(_) => {
            let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
            Ok(Address::Unix(name[..end].to_vec()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internet_addresses_round_trip() {
        for domain in [Domain::Inet4, Domain::Inet6] {
            let elsewhere = Host::Elsewhere([192, 0, 2, 7].into());
            for host in [Host::Any, Host::Loopback, elsewhere] {
                let address = Address::Inet { host, port: 9001 };
                assert_eq!(Address::parse(domain, &address.to_bytes(domain)), Ok(address));
            }
        }
    }

    #[test]
    fn unix_addresses_round_trip() {
        for name in [b"/tmp/s".to_vec(), b"\0hidden".to_vec()] {
            let address = Address::Unix(name);
            assert_eq!(
                Address::parse(Domain::Unix, &address.to_bytes(Domain::Unix)),
                Ok(address)
            );
        }
    }

    #[test]
    fn short_and_foreign_addresses_are_refused() {
        assert_eq!(Address::parse(Domain::Inet4, &[2, 0, 0, 80]), Err(EINVAL));
        assert_eq!(
            Address::parse(Domain::Inet4, &[10, 0, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            Err(EAFNOSUPPORT)
        );
        assert_eq!(Address::parse(Domain::Unix, &[1]), Err(EINVAL));
    }
}
