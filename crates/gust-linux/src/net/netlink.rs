//! `AF_NETLINK`, as far as `NETLINK_ROUTE` answers questions about interfaces and their addresses.
//!
//! A request is answered when it is sent: the answers wait in the socket like other messages. Nothing changes, so no
//! events come, and everything that would change something is refused with `EPERM`. Tables that a guest has not (routes,
//! neighbours, rules) are empty.

use std::net::IpAddr;

use crate::{
    abi::{Writer, i32_at, u16_at, u32_at},
    errno::{EADDRINUSE, EINVAL, ENOBUFS, ENODEV, EOPNOTSUPP, EPERM, Errno},
    kernel::Kernel,
    net::{
        DATAGRAMS_MAX, Datagram, Domain,
        address::Address,
        ancillary::Ancillary,
        interfaces::{INTERFACES, Interface, InterfaceAddress},
    },
};

/// Bytes of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// Bytes of `struct ifinfomsg`.
const LINK_BYTES: usize = 16;
/// The kernel's own address.
const KERNEL: Address = Address::Netlink { port: 0 };
/// Where addresses begin that sockets are given when the process's number is taken.
const FURTHER_PORTS: u32 = 0xffff_0000;

/// A request, without what follows its header.
#[derive(Clone, Copy)]
struct Header<'a> {
    raw: &'a [u8],
}

impl Header<'_> {
    fn kind(self) -> u16 {
        u16_at(self.raw, 4)
    }

    fn flags(self) -> i32 {
        i32::from(u16_at(self.raw, 6))
    }

    fn sequence(self) -> u32 {
        u32_at(self.raw, 8)
    }
}

/// A message of this kind to who sent `request` from `port`.
fn message(request: Header<'_>, port: u32, kind: u16, flags: i32, body: &[u8]) -> Vec<u8> {
    Writer::with_capacity(HEADER_BYTES + body.len())
        .u32((HEADER_BYTES + body.len()) as u32)
        .u16(kind)
        .u16(flags as u16)
        .u32(request.sequence())
        .u32(port)
        .bytes(body)
        .pad_to((HEADER_BYTES + body.len()).next_multiple_of(4))
        .done()
}

/// Adds an attribute (`struct rtattr`).
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    /// Bytes of its header.
    const ATTRIBUTE_BYTES: usize = 4;
    body.extend(((ATTRIBUTE_BYTES + value.len()) as u16).to_le_bytes());
    body.extend(kind.to_le_bytes());
    body.extend(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// `RTM_NEWLINK` of an interface.
fn link(interface: &Interface) -> Vec<u8> {
    /// `IF_OPER_UNKNOWN` and `IF_OPER_UP`; loopback has no state.
    const STATES: [u8; 2] = [0, 6];
    let loopback = interface.hardware == libc::ARPHRD_LOOPBACK;
    let mut body = Writer::with_capacity(128)
        .u16(libc::AF_UNSPEC as u16)
        .u16(interface.hardware)
        .i32(interface.index)
        .u32(interface.flags)
        .u32(0)
        .done();
    let name = [interface.name.as_bytes(), b"\0"].concat();
    attribute(&mut body, libc::IFLA_IFNAME, &name);
    attribute(&mut body, libc::IFLA_TXQLEN, &1000u32.to_le_bytes());
    attribute(&mut body, libc::IFLA_OPERSTATE, &[STATES[usize::from(!loopback)]]);
    attribute(&mut body, libc::IFLA_LINKMODE, &[0]);
    attribute(&mut body, libc::IFLA_MTU, &interface.mtu_bytes.to_le_bytes());
    attribute(&mut body, libc::IFLA_QDISC, b"noqueue\0");
    attribute(&mut body, libc::IFLA_ADDRESS, &interface.hardware_address);
    let broadcast = if loopback { [0; 6] } else { [0xff; 6] };
    attribute(&mut body, libc::IFLA_BROADCAST, &broadcast);
    body
}

/// `RTM_NEWADDR` of an address of an interface.
fn address(interface: &Interface, own: &InterfaceAddress) -> Vec<u8> {
    let (family, octets) = match own.address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let mut body = vec![
        family as u8,
        own.prefix_bits,
        libc::IFA_F_PERMANENT as u8,
        own.scope,
    ];
    body.extend(interface.index.to_le_bytes());
    attribute(&mut body, libc::IFA_ADDRESS, &octets);
    if let IpAddr::V4(four) = own.address {
        attribute(&mut body, libc::IFA_LOCAL, &octets);
        if interface.flags & libc::IFF_BROADCAST as u32 != 0 {
            let hosts = u32::MAX.checked_shr(u32::from(own.prefix_bits)).unwrap_or(0);
            let broadcast = (u32::from(four) | hosts).to_be_bytes();
            attribute(&mut body, libc::IFA_BROADCAST, &broadcast);
        }
        let label = [interface.name.as_bytes(), b"\0"].concat();
        attribute(&mut body, libc::IFA_LABEL, &label);
    }
    let forever = [u32::MAX, u32::MAX, 0, 0];
    let lifetimes: Vec<u8> = forever.iter().flat_map(|word| word.to_le_bytes()).collect();
    attribute(&mut body, libc::IFA_CACHEINFO, &lifetimes);
    attribute(&mut body, libc::IFA_FLAGS, &libc::IFA_F_PERMANENT.to_le_bytes());
    body
}

/// Kind and bodies of what a table has, of this family if one is asked for.
fn table(kind: u16, family: i32) -> (u16, Vec<Vec<u8>>) {
    match kind {
        libc::RTM_GETLINK => (libc::RTM_NEWLINK, INTERFACES.iter().map(link).collect()),
        libc::RTM_GETADDR => {
            let wanted = |own: &InterfaceAddress| match family {
                libc::AF_INET => own.address.is_ipv4(),
                libc::AF_INET6 => own.address.is_ipv6(),
                _ => true,
            };
            let of = |interface: &'static Interface| {
                let own = interface.addresses.iter().filter(|own| wanted(own));
                own.map(|own| address(interface, own)).collect::<Vec<_>>()
            };
            (libc::RTM_NEWADDR, INTERFACES.iter().flat_map(of).collect())
        }
        _ => (0, Vec::new()),
    }
}

/// The interface that a request for one names, by number or by name.
fn one_link(body: &[u8]) -> Result<&'static Interface, Errno> {
    if body.len() < LINK_BYTES {
        return Err(EINVAL);
    }
    let index = i32_at(body, 4);
    if index != 0 {
        return Interface::numbered(index).ok_or(ENODEV);
    }
    let mut rest = &body[LINK_BYTES..];
    while rest.len() >= 4 {
        let bytes = usize::from(u16_at(rest, 0));
        if bytes < 4 || bytes > rest.len() {
            break;
        }
        if u16_at(rest, 2) == libc::IFLA_IFNAME {
            return Interface::named(&rest[4..bytes]).ok_or(ENODEV);
        }
        rest = rest.get(bytes.next_multiple_of(4)..).unwrap_or_default();
    }
    Err(EINVAL)
}

/// Answers a request: datagrams, or the error that it ends with.
fn answer(request: Header<'_>, body: &[u8], port: u32) -> Result<Vec<Vec<u8>>, Errno> {
    const RTM_BASE: u16 = 16;
    const RTM_MAX: u16 = 123;
    /// The lowest bits of a kind: new, delete, get, set.
    const KIND_MASK: u16 = 3;
    const KIND_GET: u16 = 2;
    let kind = request.kind();
    if kind > RTM_MAX {
        return Err(EOPNOTSUPP);
    }
    if (kind - RTM_BASE) & KIND_MASK != KIND_GET {
        return Err(EPERM);
    }
    if body.is_empty() {
        return Err(EINVAL);
    }
    if request.flags() & libc::NLM_F_DUMP != 0 {
        let (told, bodies) = table(kind, i32::from(body[0]));
        let all: Vec<u8> = bodies
            .iter()
            .flat_map(|body| message(request, port, told, libc::NLM_F_MULTI, body))
            .collect();
        let done = message(
            request,
            port,
            libc::NLMSG_DONE as u16,
            libc::NLM_F_MULTI,
            &0i32.to_le_bytes(),
        );
        return Ok([all, done].into_iter().filter(|part| !part.is_empty()).collect());
    }
    if kind == libc::RTM_GETLINK {
        let body = link(one_link(body)?);
        return Ok(vec![message(request, port, libc::RTM_NEWLINK, 0, &body)]);
    }
    Err(EOPNOTSUPP)
}

impl Kernel {
    /// Gives a netlink socket its address; zero asks for any.
    pub(crate) fn bind_netlink(&mut self, number: u32, port: u32) -> Result<(), Errno> {
        let taken = |port: u32| {
            let mut sockets = self.network.sockets.iter();
            sockets.any(|(_, socket)| socket.local == Address::Netlink { port })
        };
        let port = match port {
            0 if taken(self.process.pid) => FURTHER_PORTS + number,
            0 => self.process.pid,
            port => port,
        };
        if taken(port) {
            return Err(EADDRINUSE);
        }
        self.socket_mut(number)?.local = Address::Netlink { port };
        Ok(())
    }

    /// Takes requests and puts the answers into the same socket. Gives the bytes that were taken.
    ///
    /// # Errors
    /// `ENOBUFS`: the socket holds so many answers that there is no room for these.
    pub(crate) fn ask_netlink(&mut self, number: u32, data: &[u8]) -> Result<u64, Errno> {
        if self.socket(number)?.local == Address::None {
            self.bind_netlink(number, 0)?;
        }
        let Address::Netlink { port } = self.socket(number)?.local else {
            return Err(EINVAL);
        };
        let mut rest = data;
        while rest.len() >= HEADER_BYTES {
            let bytes = u32_at(rest, 0) as usize;
            if bytes < HEADER_BYTES || bytes > rest.len() {
                break;
            }
            let request = Header {
                raw: &rest[..HEADER_BYTES],
            };
            let body = &rest[HEADER_BYTES..bytes];
            rest = rest.get(bytes.next_multiple_of(4)..).unwrap_or_default();
            for told in outcome(request, body, port) {
                self.tell_netlink(number, told)?;
            }
        }
        Ok(data.len() as u64)
    }

    fn tell_netlink(&mut self, number: u32, data: Vec<u8>) -> Result<(), Errno> {
        let socket = self.socket_mut(number)?;
        if socket.datagrams.len() >= DATAGRAMS_MAX {
            return Err(ENOBUFS);
        }
        debug_assert_eq!(socket.domain, Domain::Netlink);
        socket.datagrams.push_back(Datagram {
            from: KERNEL,
            sender: number,
            data,
            ancillary: Ancillary::default(),
        });
        self.wake_socket(number);
        Ok(())
    }
}

/// All that is said to a request: its answer, an error, an acknowledgement where one is asked for.
fn outcome(request: Header<'_>, body: &[u8], port: u32) -> Vec<Vec<u8>> {
    /// Messages below are netlink's own, not the protocol's.
    const KIND_MIN: u16 = 0x10;
    let wanted = request.flags() & libc::NLM_F_REQUEST != 0 && request.kind() >= KIND_MIN;
    let acknowledged = request.flags() & libc::NLM_F_ACK != 0;
    let error = |errno: i32| {
        let body = [&(-errno).to_le_bytes(), request.raw].concat();
        message(request, port, libc::NLMSG_ERROR as u16, 0, &body)
    };
    let answered = if wanted {
        answer(request, body, port)
    } else {
        Ok(Vec::new())
    };
    match answered {
        Ok(mut told) => {
            // The end of a table is its acknowledgement.
            if acknowledged && request.flags() & libc::NLM_F_DUMP == 0 {
                told.push(error(0));
            }
            told
        }
        Err(errno) => vec![error(errno.number())],
    }
}
