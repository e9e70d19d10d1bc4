//! Datagrams between a worker and its node: packets on a socket pair that keeps their boundaries.
//!
//! ```text
//!   kind (1 byte)  address (16 bytes, IPv4 in the last 4)  port (2 bytes, big-endian)  the datagram
//! ```
//!
//! The address is where the guest sends to, or where what it gets comes from. Neither side believes a length or a kind.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use gust_linux::Destination;

/// Bytes before a datagram.
pub const HEADER_BYTES: usize = 19;

/// Longest datagram, in bytes: what UDP over IPv4 can carry.
pub const DATAGRAM_BYTES_MAX: usize = 65_507;

const VERSION_4: u8 = 4;
const VERSION_6: u8 = 6;
const HOST_PORT: u8 = b'h';
const RESOLVER: u8 = b'r';

/// A packet with a datagram.
pub fn encode(destination: Destination, data: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(HEADER_BYTES + data.len());
    let (kind, octets, port) = match destination {
        Destination::Address(address) => match address.ip() {
            IpAddr::V4(ip) => (VERSION_4, padded(ip), address.port()),
            IpAddr::V6(ip) => (VERSION_6, ip.octets(), address.port()),
        },
        Destination::HostPort(port) => (HOST_PORT, [0; 16], port),
        Destination::Resolver => (RESOLVER, [0; 16], 0),
    };
    packet.push(kind);
    packet.extend_from_slice(&octets);
    packet.extend_from_slice(&port.to_be_bytes());
    packet.extend_from_slice(data);
    packet
}

fn padded(ip: Ipv4Addr) -> [u8; 16] {
    let mut octets = [0; 16];
    octets[12..].copy_from_slice(&ip.octets());
    octets
}

/// The datagram in a packet; `None` when it is none.
pub fn decode(packet: &[u8]) -> Option<(Destination, &[u8])> {
    let (header, data) = packet.split_at_checked(HEADER_BYTES)?;
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[1..17]);
    let port = u16::from_be_bytes([header[17], header[18]]);
    let destination = match header[0] {
        VERSION_4 => {
            let ip = Ipv4Addr::new(octets[12], octets[13], octets[14], octets[15]);
            Destination::Address(SocketAddr::new(ip.into(), port))
        }
        VERSION_6 => Destination::Address(SocketAddr::new(Ipv6Addr::from(octets).into(), port)),
        HOST_PORT => Destination::HostPort(port),
        RESOLVER => Destination::Resolver,
        _ => return None,
    };
    (data.len() <= DATAGRAM_BYTES_MAX).then_some((destination, data))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_round_trip() {
        let destinations = [
            Destination::Address("192.0.2.1:53".parse().unwrap()),
            Destination::Address("[2001:db8::1]:65535".parse().unwrap()),
            Destination::HostPort(9000),
            Destination::Resolver,
        ];
        for destination in destinations {
            for data in [&b""[..], b"query", &[7; DATAGRAM_BYTES_MAX]] {
                assert_eq!(decode(&encode(destination, data)), Some((destination, data)));
            }
        }
    }

    #[test]
    fn what_is_no_packet_is_none() {
        assert_eq!(decode(b""), None);
        assert_eq!(decode(&[VERSION_4; HEADER_BYTES - 1]), None);
        assert_eq!(decode(&[0; HEADER_BYTES]), None);
        assert_eq!(decode(&[RESOLVER; HEADER_BYTES + DATAGRAM_BYTES_MAX + 1]), None);
    }
}
