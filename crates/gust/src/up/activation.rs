//! Sockets that whoever started the server has opened for it: systemd's socket activation (sd_listen_fds(3)).
//!
//! `LISTEN_FDS` descriptors from 3 on are listening sockets, if `LISTEN_PID` is this process; `LISTEN_FDNAMES` has their names.
//! The one that is named `cluster` is for nodes, the other for the API, whatever its name. They are used instead of
//! `--listen` and `--cluster-listen`.
//!
//! A descriptor that is known by its number alone belongs to nobody whom the compiler could ask. Each is therefore
//! duplicated by way of a descriptor of this process itself, and the first one stays open for as long as it runs: what
//! arrives while a server stops waits for the next one.

use std::{
    env, io,
    net::{SocketAddr, TcpListener},
    os::fd::{OwnedFd, RawFd},
};

use anyhow::{Context, Result, bail};
use rustix::{
    net::sockopt::socket_acceptconn,
    process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open},
};

use super::UpConfig;

/// Number of the first descriptor.
const FIRST: RawFd = 3;

/// Most descriptors: more than there are uses for, so that all can be named in an error.
const SOCKETS_MAX: usize = 8;

/// Name of the socket for nodes.
const CLUSTER: &str = "cluster";

/// Sockets that were given.
#[derive(Debug, Default)]
pub struct Given {
    /// Where the API is.
    pub api: Option<TcpListener>,
    /// Where nodes link.
    pub cluster: Option<TcpListener>,
}

impl Given {
    /// Takes what this process was given; mostly nothing.
    ///
    /// # Errors
    /// When what was given is none of it, or too much.
    pub fn take() -> Result<Self> {
        let said = |name: &str| env::var(name).ok();
        let is_ours = said("LISTEN_PID").is_some_and(|pid| pid == std::process::id().to_string());
        let Some(count) = said("LISTEN_FDS").filter(|_| is_ours) else {
            return Ok(Self::default());
        };
        let uses = uses(&count, &said("LISTEN_FDNAMES").unwrap_or_default())?;
        let mut given = Self::default();
        for (number, is_cluster) in (FIRST..).zip(uses) {
            let listener = socket(number)
                .and_then(listener)
                .with_context(|| format!("use descriptor {number}, a socket according to LISTEN_FDS"))?;
            match is_cluster {
                true => given.cluster = Some(listener),
                false => given.api = Some(listener),
            }
        }
        Ok(given)
    }

    /// A configuration with the addresses of these sockets.
    ///
    /// # Errors
    /// When a socket has no address.
    pub fn configure(&self, config: &mut UpConfig) -> Result<()> {
        let address = |listener: &TcpListener| -> Result<SocketAddr> {
            listener.local_addr().context("read a socket's address")
        };
        if let Some(api) = &self.api {
            config.listen = address(api)?;
        }
        if let Some(cluster) = &self.cluster {
            config.cluster_listen = Some(address(cluster)?);
        }
        Ok(())
    }
}

/// Of each socket, whether it is for nodes.
fn uses(count: &str, names: &str) -> Result<Vec<bool>> {
    let count: usize = match count.parse() {
        Ok(count) if count <= SOCKETS_MAX => count,
        Ok(_) | Err(_) => bail!("LISTEN_FDS is {count:?}, and not a number of sockets up to {SOCKETS_MAX}"),
    };
    // Sockets without names are there as well.
    let names = names.split(':').chain(std::iter::repeat(""));
    let uses: Vec<bool> = names.take(count).map(|name| name == CLUSTER).collect();
    for (is_cluster, of) in [(false, "the API"), (true, "nodes")] {
        let number = uses.iter().filter(|one| **one == is_cluster).count();
        if number > 1 {
            bail!(
                "there are {number} sockets for {of}, and can be one (the one for nodes has \
                 FileDescriptorName={CLUSTER})"
            );
        }
    }
    Ok(uses)
}

/// A descriptor of this process, duplicated; no other process gets it.
fn socket(number: RawFd) -> io::Result<OwnedFd> {
    let own = pidfd_open(getpid(), PidfdFlags::empty())?;
    Ok(pidfd_getfd(own, number, PidfdGetfdFlags::empty())?)
}

fn listener(socket: OwnedFd) -> io::Result<TcpListener> {
    if !socket_acceptconn(&socket)? {
        return Err(io::Error::other("it does not listen"));
    }
    let listener = TcpListener::from(socket);
    // It may be one of another kind.
    listener.local_addr()?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_told_apart_by_their_names() {
        let check = |count: &str, names: &str, expected: &[bool]| {
            assert_eq!(uses(count, names).unwrap(), expected, "{count} {names}");
        };
        check("0", "", &[]);
        check("1", "", &[false]);
        check("1", "gust.socket", &[false]);
        check("1", "cluster", &[true]);
        check("2", "cluster:api", &[true, false]);
        check("2", "gust.socket:cluster", &[false, true]);
        for (count, names) in [
            ("x", ""),
            ("-1", ""),
            ("9", ""),
            ("2", ""),
            ("2", "cluster:cluster"),
        ] {
            assert!(uses(count, names).is_err(), "{count} {names}");
        }
    }
}
