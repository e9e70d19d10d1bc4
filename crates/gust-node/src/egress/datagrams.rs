//! Datagrams of one socket of a guest. Where they may go is asked of the policy for each; what comes back is taken only
//! from where the guest has sent something.

use std::{
    collections::VecDeque,
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{fd::OwnedFd, unix::net},
};

use gust_worker::{
    datagram::{self, DATAGRAM_BYTES_MAX, HEADER_BYTES},
    protocol::{Destination, OutsideAnswer},
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::{
    net::{UdpSocket, UnixDatagram},
    sync::oneshot,
};

use super::{Policies, Teller, policy::address_of};

/// Places that one socket's answers are taken from: the last ones that it sent to.
const PEERS_MAX: usize = 256;

/// Name servers that are asked in turn, as in resolv.conf(5).
const NAMESERVERS_MAX: usize = 3;

/// Where this machine's resolvers are named.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Longest such file that is read, in bytes.
const RESOLV_CONF_BYTES_MAX: usize = 64 << 10;

/// The port of name servers.
const DNS_PORT: u16 = 53;

/// This machine's name servers, as resolv.conf(5) has them.
pub(super) async fn nameservers() -> Vec<SocketAddr> {
    let read = tokio::task::spawn_blocking(|| fs::read(RESOLV_CONF)).await;
    let mut text = read.ok().and_then(Result::ok).unwrap_or_default();
    text.truncate(RESOLV_CONF_BYTES_MAX);
    parse_nameservers(&String::from_utf8_lossy(&text))
}

fn parse_nameservers(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| {
        let mut words = line.split_whitespace();
        let ip: IpAddr = (words.next()? == "nameserver")
            .then(|| words.next()?.parse().ok())
            .flatten()?;
        Some(SocketAddr::new(ip, DNS_PORT))
    };
    let mut found: Vec<SocketAddr> = text.lines().filter_map(address).take(NAMESERVERS_MAX).collect();
    if found.is_empty() {
        // What resolv.conf(5) has when nothing is said.
        found.push((Ipv4Addr::LOCALHOST, DNS_PORT).into());
    }
    found
}

/// Carries one socket's datagrams until the guest has closed it.
pub(super) async fn serve(policies: &Policies, teller: &Teller, closed: oneshot::Receiver<()>) {
    let made = pair();
    let (ours, theirs) = match made {
        Ok(pair) => pair,
        Err(error) => return teller.failed(&error).await,
    };
    teller.tell(OutsideAnswer::Datagrams, vec![theirs]).await;
    let mut relay = Relay {
        policies,
        ours,
        version_4: None,
        version_6: None,
        peers: VecDeque::new(),
        resolver: None,
        asked: 0,
    };
    tokio::select! {
        () = relay.run() => {}
        _ = closed => {}
    }
    // What the guest sent before it closed is here already.
    relay.drain().await;
}

/// Of kind `SOCK_SEQPACKET`, which ends when the other side does, and for which the runtime has no type.
fn pair() -> io::Result<(UnixDatagram, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let ours = UnixDatagram::from_std(net::UnixDatagram::from(ours))?;
    Ok((ours, theirs))
}

struct Relay<'a> {
    policies: &'a Policies,
    ours: UnixDatagram,
    version_4: Option<UdpSocket>,
    version_6: Option<UdpSocket>,
    /// Where the guest has sent to, last first, and what it calls the place.
    peers: VecDeque<(SocketAddr, Destination)>,
    /// A socket to a name server, and which.
    resolver: Option<(UdpSocket, SocketAddr)>,
    /// Questions since the last answer: an unanswered one goes to the next name server.
    asked: usize,
}

impl Relay<'_> {
    async fn run(&mut self) {
        let mut packet = vec![0; HEADER_BYTES + DATAGRAM_BYTES_MAX];
        let mut buffers = [vec![0; DATAGRAM_BYTES_MAX], vec![0; DATAGRAM_BYTES_MAX]];
        let mut answer = vec![0; DATAGRAM_BYTES_MAX];
        let [buffer_4, buffer_6] = &mut buffers;
        loop {
            tokio::select! {
                sent = self.ours.recv(&mut packet) => match sent {
                    Ok(0) | Err(_) => return,
                    Ok(count) => self.send(&packet[..count]).await,
                },
                came = receive(self.version_4.as_ref(), buffer_4) => {
                    self.came(came, buffer_4).await;
                }
                came = receive(self.version_6.as_ref(), buffer_6) => {
                    self.came(came, buffer_6).await;
                }
                came = receive(self.resolver.as_ref().map(|(socket, _)| socket), &mut answer) => {
                    if let Ok((count, _)) = came {
                        self.asked = 0;
                        self.give(Destination::Resolver, &answer[..count]).await;
                    }
                }
            }
        }
    }

    /// Sends on what is there, without waiting for more.
    async fn drain(&mut self) {
        let mut packet = vec![0; HEADER_BYTES + DATAGRAM_BYTES_MAX];
        while let Ok(count @ 1..) = self.ours.try_recv(&mut packet) {
            self.send(&packet[..count]).await;
        }
    }

    /// Sends a datagram of the guest's, if it may go there. What cannot be sent is lost, as on any network.
    async fn send(&mut self, packet: &[u8]) {
        let Some((to, data)) = datagram::decode(packet) else {
            return;
        };
        if !self.policies.allow(to) {
            return;
        }
        let sent = match address_of(to) {
            Some(address) => self.send_to(address, to, data).await,
            None => self.ask(data).await,
        };
        if let Err(error) = sent {
            tracing::debug!(?to, %error, "a datagram could not be sent");
        }
    }

    async fn send_to(&mut self, address: SocketAddr, to: Destination, data: &[u8]) -> io::Result<()> {
        self.peers.retain(|(known, _)| *known != address);
        self.peers.push_front((address, to));
        self.peers.truncate(PEERS_MAX);
        let (place, any): (_, IpAddr) = match address {
            SocketAddr::V4(_) => (&mut self.version_4, Ipv4Addr::UNSPECIFIED.into()),
            SocketAddr::V6(_) => (&mut self.version_6, Ipv6Addr::UNSPECIFIED.into()),
        };
        let socket = match place {
            Some(socket) => socket,
            None => place.insert(UdpSocket::bind((any, 0)).await?),
        };
        socket.send_to(data, address).await.map(|_| ())
    }

    /// Asks a name server: the first, and after each question without an answer the next.
    async fn ask(&mut self, question: &[u8]) -> io::Result<()> {
        /// Questions that are on their way together: for both kinds of addresses.
        const TOGETHER: usize = 2;
        let servers = nameservers().await;
        let server = servers[(self.asked / TOGETHER) % servers.len()];
        self.asked += 1;
        if self
            .resolver
            .as_ref()
            .is_none_or(|(_, current)| *current != server)
        {
            let any: IpAddr = match server {
                SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let socket = UdpSocket::bind((any, 0)).await?;
            socket.connect(server).await?;
            self.resolver = Some((socket, server));
        }
        match &self.resolver {
            Some((socket, _)) => socket.send(question).await.map(|_| ()),
            None => Ok(()),
        }
    }

    async fn came(&self, came: io::Result<(usize, Option<SocketAddr>)>, buffer: &[u8]) {
        // An error is told of an earlier datagram; the guest hears nothing, as behind most networks.
        let Ok((count, Some(from))) = came else { return };
        if let Some((_, name)) = self.peers.iter().find(|(known, _)| *known == from) {
            self.give(*name, &buffer[..count]).await;
        }
    }

    /// Gives the guest a datagram; one that it does not take in time is lost.
    async fn give(&self, from: Destination, data: &[u8]) {
        let _ = self.ours.try_send(&datagram::encode(from, data));
    }
}

/// The next datagram of a socket that there may be.
async fn receive(socket: Option<&UdpSocket>, buffer: &mut [u8]) -> io::Result<(usize, Option<SocketAddr>)> {
    match socket {
        Some(socket) => {
            let (count, from) = socket.recv_from(buffer).await?;
            Ok((count, Some(from)))
        }
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_are_read_as_resolv_conf_has_them() {
        let text = "# nameserver 9.9.9.9\nsearch example\nnameserver 10.0.0.2\nnameserver ::1 # x\nnameserver nonsense\n";
        let expected: Vec<SocketAddr> = vec!["10.0.0.2:53".parse().unwrap(), "[::1]:53".parse().unwrap()];
        assert_eq!(parse_nameservers(text), expected);
        assert_eq!(
            parse_nameservers("nameserver 1.1.1.1\n".repeat(9).as_str()).len(),
            NAMESERVERS_MAX
        );
        assert_eq!(parse_nameservers(""), vec!["127.0.0.1:53".parse().unwrap()]);
    }
}
