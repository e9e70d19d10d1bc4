//! The network interfaces, as `ioctl` on a socket tells of them; [`super::netlink`] tells the same.
//!
//! There are two, always: `lo`, and `eth0` with addresses of its link. What a guest sends to an address of either comes
//! back to it. `eth0` is what programs look for before they ask a resolver for addresses of a family "that the machine
//! has" (`AI_ADDRCONFIG`); whether there is a way out is not its matter (see [`super::outside`]).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{
    abi::{Writer, i32_at, u32_at, u64_at},
    errno::{EFAULT, EINVAL, ENODEV, ENOTTY, EPERM, Errno},
    kernel::{Cx, Flow, Kernel, SysResult},
};

/// Bytes of an interface's name in a request, its zero included.
const NAME_BYTES: usize = 16;
/// Bytes of `struct ifreq`.
const REQUEST_BYTES: usize = 40;

/// An interface.
#[derive(Debug)]
pub(crate) struct Interface {
    pub(crate) name: &'static str,
    pub(crate) index: i32,
    /// As netlink has them; `ioctl` tells the lower half.
    pub(crate) flags: u32,
    pub(crate) mtu_bytes: u32,
    /// `ARPHRD_*`
    pub(crate) hardware: u16,
    pub(crate) hardware_address: [u8; 6],
    pub(crate) addresses: &'static [InterfaceAddress],
}

/// An address of an interface.
#[derive(Debug)]
pub(crate) struct InterfaceAddress {
    pub(crate) address: IpAddr,
    pub(crate) prefix_bits: u8,
    /// `RT_SCOPE_*`
    pub(crate) scope: u8,
}

const fn own(address: IpAddr, prefix_bits: u8, scope: u8) -> InterfaceAddress {
    InterfaceAddress {
        address,
        prefix_bits,
        scope,
    }
}

const UP: u32 = (libc::IFF_UP | libc::IFF_RUNNING | libc::IFF_LOWER_UP) as u32;

/// All interfaces.
pub(crate) const INTERFACES: [Interface; 2] = [
    Interface {
        name: "lo",
        index: 1,
        flags: UP | libc::IFF_LOOPBACK as u32,
        mtu_bytes: 65_536,
        hardware: libc::ARPHRD_LOOPBACK,
        hardware_address: [0; 6],
        addresses: &[
            own(IpAddr::V4(Ipv4Addr::LOCALHOST), 8, libc::RT_SCOPE_HOST),
            own(IpAddr::V6(Ipv6Addr::LOCALHOST), 128, libc::RT_SCOPE_HOST),
        ],
    },
    Interface {
        name: "eth0",
        index: 2,
        flags: UP | (libc::IFF_BROADCAST | libc::IFF_MULTICAST) as u32,
        mtu_bytes: 1500,
        hardware: libc::ARPHRD_ETHER,
        hardware_address: [2, 0, 0, 0, 0, 1],
        addresses: &[
            own(
                IpAddr::V4(Ipv4Addr::new(169, 254, 76, 5)),
                30,
                libc::RT_SCOPE_LINK,
            ),
            own(
                IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 1)),
                64,
                libc::RT_SCOPE_LINK,
            ),
        ],
    },
];

impl Interface {
    /// The one of this name, which may be followed by a zero and anything.
    pub(crate) fn named(raw: &[u8]) -> Option<&'static Self> {
        let name = raw.split(|byte| *byte == 0).next().unwrap_or_default();
        INTERFACES.iter().find(|one| one.name.as_bytes() == name)
    }

    /// The one of this number.
    pub(crate) fn numbered(index: i32) -> Option<&'static Self> {
        INTERFACES.iter().find(|one| one.index == index)
    }

    /// The one that has an address.
    pub(crate) fn with_address(address: IpAddr) -> Option<&'static Self> {
        let has = |one: &&Self| one.addresses.iter().any(|own| own.address == address);
        INTERFACES.iter().find(has)
    }

    /// A `struct ifreq` with the name and this value.
    fn request(&self, value: &[u8]) -> Vec<u8> {
        Writer::with_capacity(REQUEST_BYTES)
            .bytes(self.name.as_bytes())
            .pad_to(NAME_BYTES)
            .bytes(value)
            .pad_to(REQUEST_BYTES)
            .done()
    }

    /// The first IPv4 address and the mask of its network, each as a `sockaddr_in`.
    fn internet_address(&self) -> Result<(Vec<u8>, Vec<u8>), Errno> {
        let mut found = self.addresses.iter().filter_map(|own| match own.address {
            IpAddr::V4(address) => Some((address, own.prefix_bits)),
            IpAddr::V6(_) => None,
        });
        let (address, prefix_bits) = found.next().ok_or(crate::errno::EADDRNOTAVAIL)?;
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix_bits)).unwrap_or(0);
        Ok((
            socket_address(address.octets()),
            socket_address(mask.to_be_bytes()),
        ))
    }
}

/// Whether an address is one of an interface.
pub(crate) fn is_own(address: IpAddr) -> bool {
    let own = |interface: &Interface| interface.addresses.iter().any(|own| own.address == address);
    address.is_loopback() || INTERFACES.iter().any(own)
}

fn socket_address(octets: [u8; 4]) -> Vec<u8> {
    Writer::with_capacity(16)
        .u16(libc::AF_INET as u16)
        .u16(0)
        .bytes(&octets)
        .pad_to(16)
        .done()
}

impl Kernel {
    /// Answers requests about interfaces.
    pub(crate) fn interface_ioctl(&mut self, cx: &mut Cx<'_>, number: u64, at: u64) -> SysResult {
        if number == libc::SIOCGIFCONF {
            return self.list_interfaces(cx, at);
        }
        let known = [
            libc::SIOCGIFNAME,
            libc::SIOCGIFINDEX,
            libc::SIOCGIFFLAGS,
            libc::SIOCGIFADDR,
            libc::SIOCGIFNETMASK,
            libc::SIOCGIFMTU,
            libc::SIOCGIFHWADDR,
            libc::SIOCGIFMETRIC,
            libc::SIOCGIFTXQLEN,
        ];
        let settable = [
            libc::SIOCSIFFLAGS,
            libc::SIOCSIFADDR,
            libc::SIOCSIFNETMASK,
            libc::SIOCSIFMTU,
            libc::SIOCSIFHWADDR,
        ];
        if settable.contains(&number) {
            return Err(EPERM);
        }
        if !known.contains(&number) {
            return Err(ENOTTY);
        }
        let raw: [u8; REQUEST_BYTES] = self.copy_in_array(cx, at)?;
        let interface = if number == libc::SIOCGIFNAME {
            Interface::numbered(i32_at(&raw, NAME_BYTES))
        } else {
            Interface::named(&raw[..NAME_BYTES])
        };
        let interface = interface.ok_or(ENODEV)?;
        let int = |value: i32| value.to_le_bytes().to_vec();
        let value = match number {
            libc::SIOCGIFNAME | libc::SIOCGIFINDEX => int(interface.index),
            libc::SIOCGIFFLAGS => (interface.flags as u16).to_le_bytes().to_vec(),
            libc::SIOCGIFADDR => interface.internet_address()?.0,
            libc::SIOCGIFNETMASK => interface.internet_address()?.1,
            libc::SIOCGIFMTU => int(interface.mtu_bytes as i32),
            libc::SIOCGIFHWADDR => Writer::with_capacity(16)
                .u16(interface.hardware)
                .bytes(&interface.hardware_address)
                .pad_to(16)
                .done(),
            libc::SIOCGIFTXQLEN => int(1000),
            _ => int(0),
        };
        self.copy_out(cx, at, &interface.request(&value))?;
        Ok(Flow::Done(0))
    }

    /// `SIOCGIFCONF`: fills a buffer with whole records, or tells how much they need.
    fn list_interfaces(&mut self, cx: &mut Cx<'_>, at: u64) -> SysResult {
        let raw: [u8; 16] = self.copy_in_array(cx, at)?;
        let (room, buffer) = (u32_at(&raw, 0) as i32, u64_at(&raw, 8));
        if room < 0 {
            return Err(EINVAL);
        }
        let mut records = Vec::new();
        for interface in &INTERFACES {
            records.extend(interface.request(&interface.internet_address()?.0));
        }
        if buffer != 0 {
            let whole = room as usize / REQUEST_BYTES * REQUEST_BYTES;
            records.truncate(whole);
            self.copy_out(cx, buffer, &records).map_err(|_| EFAULT)?;
        }
        self.copy_out(cx, at, &(records.len() as u32).to_le_bytes())?;
        Ok(Flow::Done(0))
    }
}
