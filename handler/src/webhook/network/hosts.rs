//! Entries of the list of webhook hosts: a host, or all hosts under a domain, at any port or at one.
//!
//! Refuses to match on text: both sides are hosts as the URL standard normalises them, so case, encodings and ways to write an
//! address make no difference.

use std::str::FromStr;
use url::{Host, Url};

/// `api.example.org`, `.example.org`, `10.0.0.7` or `[fd00::1]`, each with `:port` or without.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern {
    host: Host<String>,
    /// Whether hosts under it are meant, and not itself.
    under: bool,
    port: Option<u16>,
}

impl HostPattern {
    /// Whether an address is at this host.
    pub fn matches(&self, url: &Url) -> bool {
        let right_port = self.port.is_none_or(|port| url.port_or_known_default() == Some(port));
        right_port
            && match (url.host(), &self.host) {
                (Some(Host::Domain(name)), Host::Domain(listed)) => {
                    // "example.org." is the same host, written out to the root.
                    let name = name.strip_suffix('.').unwrap_or(name);
                    match self.under {
                        false => name == listed,
                        // There is a label in front of the dot.
                        true => name
                            .strip_suffix(listed.as_str())
                            .is_some_and(|front| front.len() > 1 && front.ends_with('.')),
                    }
                }
                (Some(Host::Ipv4(address)), Host::Ipv4(listed)) => address == *listed,
                (Some(Host::Ipv6(address)), Host::Ipv6(listed)) => address == *listed,
                _ => false,
            }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted =
            "must be a host (api.example.org), a domain's hosts (.example.org) or an address, with :port or without";
        let text = text.trim();
        let (under, rest) = text.strip_prefix('.').map_or((false, text), |rest| (true, rest));
        let plain = |character: char| character.is_alphanumeric() || "-._:[]".contains(character);
        if rest.is_empty() || rest.starts_with('.') || !rest.chars().all(plain) {
            return Err(wanted.into());
        }
        let (name, port) = match rest.rsplit_once(':') {
            Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
            _ => (rest, None),
        };
        let port = port.map(|port| port.parse::<u16>().ok().filter(|port| *port > 0).ok_or(wanted)).transpose()?;
        let host = Host::parse(name.strip_suffix('.').unwrap_or(name)).map_err(|_| wanted)?;
        match (&host, under) {
            (Host::Domain(_), _) | (_, false) => Ok(Self { host, under, port }),
            _ => Err(wanted.into()),
        }
    }
}
