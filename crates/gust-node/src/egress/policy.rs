//! Where guests may connect to: rules in words, and a pure decision.
//!
//! Everything is refused that no rule allows. A rule for a range never covers addresses that mean something on this
//! machine or its link: loopback, link-local (where clouds keep their metadata), multicast, and the machine's own. Such an
//! address has to be named alone. Rules go by address; names are the resolver's affair.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
};

use gust_worker::protocol::{Destination, FORWARDED_MAX};

/// Most rules of a policy.
pub const RULES_MAX: usize = 256;

/// Every port.
const PORTS: RangeInclusive<u16> = 0..=u16::MAX;

/// A rule that cannot be understood, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Not one of the forms.
    #[error(
        "{0:?} is no rule: public, dns, none, host:PORT, or ADDRESS[/PREFIX][:PORT[-PORT]] with IPv6 addresses in brackets"
    )]
    Form(String),
    /// Bits of the address lie behind the prefix.
    #[error("{0:?} has bits behind its prefix; did you mean {1}?")]
    Prefix(String, String),
    /// Too many of them.
    #[error("there are {0} {1}, and at most {2} can be given")]
    TooMany(usize, &'static str, usize),
}

/// What one rule allows.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    /// Every address that is reachable from everywhere, and the resolver.
    Public,
    /// The resolver.
    Dns,
    /// A port of this machine's loopback.
    HostPort(u16),
    /// Addresses and ports.
    Range {
        network: IpAddr,
        prefix: u8,
        ports: RangeInclusive<u16>,
    },
}

/// Where guests may connect to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EgressPolicy {
    rules: Vec<Rule>,
    /// Everything is allowed; for one of several policies that must all allow.
    unbounded: bool,
}

impl EgressPolicy {
    /// Nowhere: guests have no way out at all.
    pub const NONE: Self = Self {
        rules: Vec::new(),
        unbounded: false,
    };

    /// No bound of its own: another policy decides.
    pub const fn unbounded() -> Self {
        Self {
            rules: Vec::new(),
            unbounded: true,
        }
    }

    /// A policy of these rules: `public`, `dns`, `none`, `host:PORT`, `ADDRESS`, `ADDRESS/PREFIX`, with `:PORT` or
    /// `:FIRST-LAST` behind an address.
    ///
    /// # Errors
    /// When one is no rule, or there are too many.
    pub fn parse<'a>(rules: impl IntoIterator<Item = &'a str>) -> Result<Self, RuleError> {
        let rules: Vec<Rule> = rules
            .into_iter()
            .filter(|rule| *rule != "none")
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        let too_many = |count, what, most| (count > most).then_some(RuleError::TooMany(count, what, most));
        let forwarded = rules
            .iter()
            .filter(|rule| matches!(rule, Rule::HostPort(_)))
            .count();
        match too_many(rules.len(), "rules", RULES_MAX)
            .or_else(|| too_many(forwarded, "ports of the host", FORWARDED_MAX))
        {
            Some(error) => Err(error),
            None => Ok(Self {
                rules,
                unbounded: false,
            }),
        }
    }

    /// Whether there is anything that guests may connect to.
    pub fn is_none(&self) -> bool {
        self.rules.is_empty() && !self.unbounded
    }

    /// Whether a port of the machine's loopback may be reached.
    pub(crate) fn forwards(&self, port: u16) -> bool {
        self.unbounded || self.rules.contains(&Rule::HostPort(port))
    }

    /// The ports of the machine's loopback that are named.
    pub(crate) fn forwarded(&self) -> impl Iterator<Item = u16> {
        self.rules.iter().filter_map(|rule| match rule {
            Rule::HostPort(port) => Some(*port),
            Rule::Public | Rule::Dns | Rule::Range { .. } => None,
        })
    }

    /// Whether a guest may go there. `is_own` tells whether an address is one of this machine's.
    pub(crate) fn allows(&self, to: Destination, is_own: impl Fn(IpAddr) -> bool) -> bool {
        match to {
            _ if self.unbounded => true,
            Destination::HostPort(port) => self.forwards(port),
            Destination::Resolver => self.rules.iter().any(|rule| match rule {
                Rule::Public | Rule::Dns => true,
                Rule::HostPort(_) | Rule::Range { .. } => false,
            }),
            Destination::Address(address) => {
                let (ip, port) = (address.ip().to_canonical(), address.port());
                let special = is_special(ip) || is_own(ip);
                self.rules.iter().any(|rule| match rule {
                    Rule::Public => !special && is_public(ip),
                    Rule::Dns | Rule::HostPort(_) => false,
                    Rule::Range {
                        network,
                        prefix,
                        ports,
                    } => {
                        let alone = *prefix == bits(ip);
                        covers(*network, *prefix, ip) && ports.contains(&port) && (alone || !special)
                    }
                })
            }
        }
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let wrong = || RuleError::Form(text.to_owned());
        match text {
            "public" => return Ok(Self::Public),
            "dns" => return Ok(Self::Dns),
            _ => {}
        }
        if let Some(port) = text.strip_prefix("host:") {
            return port.parse().map(Self::HostPort).map_err(|_| wrong());
        }
        let (range, ports) = match text.rsplit_once(':') {
            // The last colon of a bare IPv6 address parts no port.
            Some((range, ports)) if !range.contains(':') || range.ends_with(']') => (range, Some(ports)),
            Some(_) | None => (text, None),
        };
        let range = range
            .strip_prefix('[')
            .and_then(|range| range.strip_suffix(']'))
            .unwrap_or(range);
        let (network, prefix) = match range.split_once('/') {
            Some((network, prefix)) => (network, Some(prefix)),
            None => (range, None),
        };
        let network: IpAddr = network.parse().map_err(|_| wrong())?;
        let prefix = match prefix {
            Some(prefix) => prefix
                .parse()
                .ok()
                .filter(|prefix| *prefix <= bits(network))
                .ok_or_else(wrong)?,
            None => bits(network),
        };
        let masked = mask(network, prefix);
        if masked != network {
            return Err(RuleError::Prefix(text.to_owned(), format!("{masked}/{prefix}")));
        }
        let ports = ports.map_or(Some(PORTS), parse_ports).ok_or_else(wrong)?;
        Ok(Self::Range {
            network,
            prefix,
            ports,
        })
    }
}

impl fmt::Display for EgressPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, rule) in self.rules.iter().enumerate() {
            let comma = if position > 0 { ", " } else { "" };
            match rule {
                Rule::Public => write!(f, "{comma}public")?,
                Rule::Dns => write!(f, "{comma}dns")?,
                Rule::HostPort(port) => write!(f, "{comma}host:{port}")?,
                Rule::Range {
                    network,
                    prefix,
                    ports,
                } => write!(f, "{comma}[{network}/{prefix}]:{}-{}", ports.start(), ports.end())?,
            }
        }
        match (self.is_none(), self.unbounded) {
            (true, _) => f.write_str("none"),
            (false, true) => f.write_str("no bound"),
            (false, false) => Ok(()),
        }
    }
}

fn parse_ports(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..=last)
}

fn bits(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => 32,
        IpAddr::V6(_) => 128,
    }
}

fn mask(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
            Ipv4Addr::from_bits(ip.to_bits() & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX
                .checked_shl(128 - u32::from(prefix.min(128)))
                .unwrap_or(0);
            Ipv6Addr::from_bits(ip.to_bits() & mask).into()
        }
    }
}

fn covers(network: IpAddr, prefix: u8, ip: IpAddr) -> bool {
    bits(network) == bits(ip) && mask(ip, prefix) == network
}

/// Whether an address means something on this machine or its link only.
fn is_special(ip: IpAddr) -> bool {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        // Cloud metadata over IPv6 has an address of its own among the unique local ones.
        IpAddr::V6(ip) => {
            ip.is_unicast_link_local() || ip == Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)
        }
    };
    link_local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()
}

/// Ranges of IPv4 that are not reachable from everywhere (IANA's registry of special-purpose addresses).
const V4_NOT_PUBLIC: [(Ipv4Addr, u8); 14] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    // Multicast, reserved and broadcast.
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// What is reachable from everywhere in IPv6 is in here, and not in what follows: the latter carries IPv4 addresses of any
/// kind (NAT64 lies outside the former), or documents.
const V6_GLOBAL: (Ipv6Addr, u8) = (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3);
const V6_NOT_PUBLIC: [(Ipv6Addr, u8); 4] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => !V4_NOT_PUBLIC
            .iter()
            .any(|(network, prefix)| covers((*network).into(), *prefix, ip)),
        IpAddr::V6(_) => {
            covers(V6_GLOBAL.0.into(), V6_GLOBAL.1, ip)
                && !V6_NOT_PUBLIC
                    .iter()
                    .any(|(network, prefix)| covers((*network).into(), *prefix, ip))
        }
    }
}

/// Where a destination is connected to; `None` for the resolver.
pub(crate) fn address_of(to: Destination) -> Option<SocketAddr> {
    match to {
        Destination::Address(address) => Some(address),
        Destination::HostPort(port) => Some((Ipv4Addr::LOCALHOST, port).into()),
        Destination::Resolver => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(rules: &[&str]) -> EgressPolicy {
        EgressPolicy::parse(rules.iter().copied()).unwrap()
    }

    fn address(text: &str) -> Destination {
        Destination::Address(text.parse().unwrap())
    }

    /// This machine has one address.
    fn own(ip: IpAddr) -> bool {
        ip == IpAddr::from([198, 0, 0, 7]) || ip == IpAddr::from([10, 0, 0, 7])
    }

    fn check(rules: &[&str], allowed: &[&str], refused: &[&str]) {
        let policy = policy(rules);
        for to in allowed {
            assert!(policy.allows(address(to), own), "{rules:?} refuse {to}");
        }
        for to in refused {
            assert!(!policy.allows(address(to), own), "{rules:?} allow {to}");
        }
    }

    #[test]
    fn the_public_is_what_is_reachable_from_everywhere() {
        check(
            &["public"],
            &[
                "1.1.1.1:53",
                "8.8.8.8:443",
                "172.32.0.1:80",
                "[2606:4700::1111]:443",
                "198.0.0.8:1",
            ],
            &[
                "10.1.2.3:80",
                "172.16.0.1:80",
                "192.168.1.1:80",
                "100.64.0.1:80",
                "127.0.0.1:4566",
                "169.254.169.254:80",
                "0.0.0.0:80",
                "224.0.0.1:80",
                "255.255.255.255:80",
                "198.0.0.7:4566",
                "[::1]:80",
                "[::ffff:10.0.0.1]:80",
                "[::ffff:169.254.169.254]:80",
                "[fe80::1]:80",
                "[fd00:ec2::254]:80",
                "[fc00::1]:80",
                "[64:ff9b::a00:1]:80",
                "[2002:a00:1::]:80",
                "[2001:db8::1]:80",
            ],
        );
    }

    #[test]
    fn special_addresses_have_to_be_named_alone() {
        let special = ["169.254.169.254:80", "10.0.0.7:80", "[fe80::1]:80"];
        check(
            &["0.0.0.0/0", "[::/0]", "10.0.0.0/8"],
            &["10.0.0.8:80", "192.168.1.1:1"],
            &special,
        );
        check(
            &["169.254.169.254", "10.0.0.7:80", "[fe80::1]:80"],
            &special,
            &["10.0.0.7:81"],
        );
    }

    #[test]
    fn ports_and_prefixes_bound_a_rule() {
        check(
            &["10.1.0.0/16:80-90", "[fd12::/16]:443", "fd13::1"],
            &["10.1.255.1:80", "10.1.0.0:90", "[fd12:1::]:443", "[fd13::1]:5"],
            &[
                "10.2.0.1:80",
                "10.1.0.1:79",
                "10.1.0.1:91",
                "[fd12::1]:444",
                "[fd13::2]:5",
            ],
        );
    }

    #[test]
    fn the_host_and_the_resolver_have_rules_of_their_own() {
        let host = Destination::HostPort(9000);
        assert!(policy(&["host:9000"]).allows(host, own));
        for rules in [
            &["public"][..],
            &["0.0.0.0/0"],
            &["127.0.0.1"],
            &["host:9001"],
            &["none"],
            &[],
        ] {
            assert!(!policy(rules).allows(host, own), "{rules:?}");
        }
        for (rules, allowed) in [
            ("dns", true),
            ("public", true),
            ("host:53", false),
            ("0.0.0.0/0", false),
        ] {
            assert_eq!(
                policy(&[rules]).allows(Destination::Resolver, own),
                allowed,
                "{rules}"
            );
        }
    }

    #[test]
    fn what_is_no_rule_is_refused_with_its_text() {
        for text in [
            "",
            "all",
            "host:",
            "host:x",
            "host:70000",
            "10.0.0.0/33",
            "10.0.0.0/8:",
            "10.0.0.0/8:9-8",
            "::/129",
            "10.0.0.0/8:70000",
            "example.com",
            "10.0.0.1/8",
            "[::1",
            "1.2.3.4:1-2-3",
        ] {
            let error = EgressPolicy::parse([text]).unwrap_err();
            assert!(error.to_string().contains(text), "{error}");
        }
        assert!(policy(&["none"]).is_none() && policy(&[]).is_none());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = EgressPolicy::parse([text.as_str()]);
        }

        #[test]
        fn no_range_covers_what_is_special(ip: u32, port: u16, prefix in 0u8..32) {
            let ip = IpAddr::from(Ipv4Addr::from_bits(ip));
            let rule = format!("{}/{prefix}", mask(ip, prefix));
            let policy = policy(&[&rule, "public"]);
            let to = Destination::Address((ip, port).into());
            prop_assert_eq!(policy.allows(to, |_| false), !is_special(ip));
            prop_assert!(!policy.allows(to, |_| true));
        }
    }
}
