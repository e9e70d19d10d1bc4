//! IPv4 multicast groups that sockets have joined, as `/proc/net/igmp` tells of them. Nobody sends to one.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::{
    abi::i32_at,
    errno::{EADDRINUSE, EADDRNOTAVAIL, EINVAL, ENOBUFS, ENODEV, Errno},
    kernel::Kernel,
    net::{
        Socket,
        interfaces::{INTERFACES, Interface},
    },
};

/// Most groups of one socket (`net.ipv4.igmp_max_memberships`).
const GROUPS_MAX: usize = 20;
/// Every host's group, joined by every interface: `224.0.0.1`.
const ALL_HOSTS: [u8; 4] = [224, 0, 0, 1];

/// A group at an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Membership {
    group: [u8; 4],
    interface: i32,
}

impl Membership {
    /// Reads `struct ip_mreqn`, or the shorter `ip_mreq`. An interface that is not named is the first.
    fn read(raw: &[u8]) -> Result<Self, Errno> {
        const SHORT_BYTES: usize = 8;
        const BYTES: usize = 12;
        const MULTICAST: std::ops::RangeInclusive<u8> = 224..=239;
        if raw.len() < SHORT_BYTES || !MULTICAST.contains(&raw[0]) {
            return Err(EINVAL);
        }
        let index = if raw.len() >= BYTES {
            i32_at(raw, SHORT_BYTES)
        } else {
            0
        };
        let interface = match (index, &raw[4..SHORT_BYTES]) {
            (0, [0, 0, 0, 0]) => INTERFACES.first(),
            (0, &[a, b, c, d]) => Interface::with_address([a, b, c, d].into()),
            (index, _) => Interface::numbered(index),
        };
        Ok(Self {
            group: [raw[0], raw[1], raw[2], raw[3]],
            interface: interface.ok_or(ENODEV)?.index,
        })
    }
}

impl Socket {
    /// Joins (`IP_ADD_MEMBERSHIP`) or leaves (`IP_DROP_MEMBERSHIP`) a group.
    ///
    /// # Errors
    /// `EINVAL`: no group; `ENODEV`: no such interface; `EADDRINUSE`: joined already; `ENOBUFS`: it is in as many as it
    /// may be; `EADDRNOTAVAIL`: not joined.
    pub(crate) fn change_groups(&mut self, name: i32, raw: &[u8]) -> Result<(), Errno> {
        let membership = Membership::read(raw)?;
        let at = self.groups.iter().position(|joined| *joined == membership);
        match (name == libc::IP_ADD_MEMBERSHIP, at) {
            (true, Some(_)) => Err(EADDRINUSE),
            (true, None) if self.groups.len() >= GROUPS_MAX => Err(ENOBUFS),
            (true, None) => {
                self.groups.push(membership);
                Ok(())
            }
            (false, Some(at)) => {
                self.groups.remove(at);
                Ok(())
            }
            (false, None) => Err(EADDRNOTAVAIL),
        }
    }
}

impl Kernel {
    /// `/proc/net/igmp`
    pub(crate) fn igmp_text(&self) -> String {
        let mut text = String::from("Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n");
        for interface in &INTERFACES {
            let mut groups = vec![(ALL_HOSTS, 1)];
            let sockets = self.network.sockets.iter();
            for joined in sockets.flat_map(|(_, socket)| &socket.groups) {
                if joined.interface != interface.index {
                    continue;
                }
                match groups.iter_mut().find(|(group, _)| *group == joined.group) {
                    Some((_, users)) => *users += 1,
                    None => groups.push((joined.group, 1)),
                }
            }
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{}\t{:<10}: {:5} {:>7}",
                interface.index,
                interface.name,
                groups.len(),
                "V3"
            );
            for (group, users) in groups {
                let number = u32::from_le_bytes(group);
                let _ = writeln!(text, "\t\t\t\t{number:08X} {users:5} 0:00000000\t\t0");
            }
        }
        text
    }
}
