//! The one network interface, `lo`, as `ioctl` on a socket tells of it.

use crate::{
    abi::{Writer, i32_at, u32_at, u64_at},
    errno::{EFAULT, EINVAL, ENODEV, ENOTTY, EPERM, Errno},
    kernel::{Cx, Flow, Kernel, SysResult},
};

/// Bytes of an interface's name in a request, its zero included.
const NAME_BYTES: usize = 16;
/// Bytes of `struct ifreq`.
const REQUEST_BYTES: usize = 40;
const NAME: &[u8] = b"lo";
const INDEX: i32 = 1;
const MTU: i32 = 65_536;

/// A `sockaddr_in` of `127.0.0.1`, or of the mask of its network.
fn address(octets: [u8; 4]) -> Vec<u8> {
    Writer::with_capacity(16)
        .u16(libc::AF_INET as u16)
        .u16(0)
        .bytes(&octets)
        .pad_to(16)
        .done()
}

/// A `struct ifreq` with the name and this value.
fn request(value: &[u8]) -> Vec<u8> {
    Writer::with_capacity(REQUEST_BYTES)
        .bytes(NAME)
        .pad_to(NAME_BYTES)
        .bytes(value)
        .pad_to(REQUEST_BYTES)
        .done()
}

fn names_loopback(raw: &[u8]) -> Result<(), Errno> {
    let name = raw[..NAME_BYTES]
        .split(|byte| *byte == 0)
        .next()
        .unwrap_or_default();
    if name == NAME { Ok(()) } else { Err(ENODEV) }
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
        if number == libc::SIOCGIFNAME {
            if i32_at(&raw, NAME_BYTES) != INDEX {
                return Err(ENODEV);
            }
        } else {
            names_loopback(&raw)?;
        }
        let int = |value: i32| value.to_le_bytes().to_vec();
        let value = match number {
            libc::SIOCGIFNAME | libc::SIOCGIFINDEX => int(INDEX),
            libc::SIOCGIFFLAGS => int(libc::IFF_UP | libc::IFF_LOOPBACK | libc::IFF_RUNNING),
            libc::SIOCGIFADDR => address([127, 0, 0, 1]),
            libc::SIOCGIFNETMASK => address([255, 0, 0, 0]),
            libc::SIOCGIFMTU => int(MTU),
            libc::SIOCGIFHWADDR => Writer::with_capacity(16)
                .u16(libc::ARPHRD_LOOPBACK)
                .pad_to(16)
                .done(),
            libc::SIOCGIFTXQLEN => int(1000),
            _ => int(0),
        };
        self.copy_out(cx, at, &request(&value))?;
        Ok(Flow::Done(0))
    }

    /// `SIOCGIFCONF`: fills a buffer with whole records, or tells how much they need.
    fn list_interfaces(&mut self, cx: &mut Cx<'_>, at: u64) -> SysResult {
        let raw: [u8; 16] = self.copy_in_array(cx, at)?;
        let (room, buffer) = (u32_at(&raw, 0) as i32, u64_at(&raw, 8));
        if room < 0 {
            return Err(EINVAL);
        }
        let told = if buffer == 0 {
            REQUEST_BYTES
        } else if (room as usize) < REQUEST_BYTES {
            0
        } else {
            self.copy_out(cx, buffer, &request(&address([127, 0, 0, 1])))
                .map_err(|_| EFAULT)?;
            REQUEST_BYTES
        };
        self.copy_out(cx, at, &(told as u32).to_le_bytes())?;
        Ok(Flow::Done(0))
    }
}
