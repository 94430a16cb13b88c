//! Which hosts a webhook may go to. The token travels with every webhook and a message chooses the address, so the address is checked:
//! the host before anything is sent, and what its name resolves to on every connection. A host that is not known to be public is refused,
//! unless the operator listed it.

mod address;
#[cfg(test)]
mod tests;

use address::special;
use futures_util::{FutureExt, future::BoxFuture};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};
use tokio::{net::lookup_host, time::timeout};
use url::{Host, Url};

/// How long a task waits for the DNS lookup of its webhook host.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Names under which clouds serve a machine's credentials.
const METADATA_HOSTS: [&str; 7] = [
    "instance-data",
    "instance-data.ec2.internal",
    "metadata",
    "metadata.azure.internal",
    "metadata.goog",
    "metadata.google.internal",
    "metadata.tencentyun.com",
];

/// Why a host may not be called. Does not hold the host: it comes from a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is a list, and the host is not on it.
    #[error("`webhook_url` names a host that is not among those of --webhook-hosts (EASEL_WEBHOOK_HOSTS)")]
    Unlisted,
    /// There is no list, and the host is not public.
    #[error(
        "`webhook_url` leads to {0} address, must be public, listed by --webhook-hosts (EASEL_WEBHOOK_HOSTS) or allowed by \
         --allow-private-webhooks (EASEL_ALLOW_PRIVATE_WEBHOOKS)"
    )]
    Private(&'static str),
}

type Lookup = dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;

/// Checks every webhook address, and resolves names for the HTTP client, so that the address that was checked is the one that is
/// connected to.
#[derive(Clone)]
pub struct Guard {
    allowed: AllowedHosts,
    lookup: Arc<Lookup>,
}

#[derive(Debug, Clone)]
enum AllowedHosts {
    /// These hosts, whatever their addresses: a service of the same cluster has a private one.
    Listed(Vec<HostPattern>),
    /// Any host with a public address.
    Public,
    /// Any host.
    Any,
}

impl Guard {
    /// Allows these hosts only. An empty list allows public addresses, or all with `allow_private`.
    pub fn new(hosts: &[HostPattern], allow_private: bool) -> Self {
        let allowed = match (hosts, allow_private) {
            ([], false) => AllowedHosts::Public,
            ([], true) => AllowedHosts::Any,
            (hosts, _) => AllowedHosts::Listed(hosts.to_vec()),
        };
        let lookup = |name: String| async move { Ok(lookup_host((name, 0)).await?.collect()) }.boxed();
        Self { allowed, lookup: Arc::new(lookup) }
    }

    /// Replaces the DNS lookup.
    #[cfg(test)]
    pub(crate) fn with_lookup(
        mut self,
        lookup: impl Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync + 'static,
    ) -> Self {
        self.lookup = Arc::new(lookup);
        self
    }

    /// Checks the host of an address without a lookup: its name or its IP address.
    ///
    /// ```
    /// use handler::webhook::network::Guard;
    ///
    /// let guard = Guard::new(&[".example.org".parse().unwrap()], false);
    /// assert!(guard.check(&"https://api.example.org".parse().unwrap()).is_ok());
    /// assert!(guard.check(&"http://169.254.169.254".parse().unwrap()).is_err());
    /// ```
    ///
    /// # Errors
    /// The address may not be called.
    pub fn check(&self, url: &Url) -> Result<(), Refused> {
        match &self.allowed {
            AllowedHosts::Any => Ok(()),
            AllowedHosts::Listed(hosts) if hosts.iter().any(|host| host.matches(url)) => Ok(()),
            AllowedHosts::Listed(_) => Err(Refused::Unlisted),
            AllowedHosts::Public => match url.host() {
                Some(Host::Domain(name)) => special_name(name).map_or(Ok(()), |kind| Err(Refused::Private(kind))),
                Some(Host::Ipv4(address)) => public(address.into()),
                Some(Host::Ipv6(address)) => public(address.into()),
                None => Err(Refused::Private("no")),
            },
        }
    }

    /// Checks an address before its task is painted, with a lookup of its name. A name that does not resolve now passes: it may
    /// resolve later.
    ///
    /// # Errors
    /// The address may not be called.
    pub async fn check_ahead(&self, url: &Url) -> Result<(), Refused> {
        self.check(url)?;
        let (AllowedHosts::Public, Some(Host::Domain(name))) = (&self.allowed, url.host()) else { return Ok(()) };
        match timeout(LOOKUP_TIMEOUT, (self.lookup)(name.to_string())).await {
            Ok(Ok(found)) => self.filter(found).map(drop),
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }

    /// Keeps the addresses that may be connected to.
    fn filter(&self, mut found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        if let AllowedHosts::Public = self.allowed {
            let refused = found.iter().find_map(|address| special(address.ip()));
            found.retain(|address| special(address.ip()).is_none());
            if let (Some(kind), true) = (refused, found.is_empty()) {
                return Err(Refused::Private(kind));
            }
        }
        Ok(found)
    }
}

/// The client resolves a name here for every connection. It resolves nothing for an IP address: `check` covers that.
impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        async move {
            let found = (guard.lookup)(name.as_str().to_string()).await?;
            Ok(Box::new(guard.filter(found)?.into_iter()) as Addrs)
        }
        .boxed()
    }
}

fn public(address: IpAddr) -> Result<(), Refused> {
    special(address).map_or(Ok(()), |kind| Err(Refused::Private(kind)))
}

fn special_name(name: &str) -> Option<&'static str> {
    let name = name.strip_suffix('.').unwrap_or(name);
    match name {
        "localhost" => Some("a loopback"),
        _ if name.ends_with(".localhost") => Some("a loopback"),
        // The root alone and names with empty labels are not hosts; what a resolver makes of them is unknown.
        _ if name.split('.').any(str::is_empty) => Some("no"),
        _ => METADATA_HOSTS.contains(&name).then_some("a metadata"),
    }
}

/// An entry of the list of webhook hosts: `api.example.org`, `.example.org` (all hosts under it), `10.0.0.7` or `[fd00::1]`, each with
/// `:port` or without. Matches hosts as the URL standard normalises them, not text, so case and encodings make no difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPattern {
    host: Host<String>,
    /// Whether the hosts under `host` are meant, without itself.
    subdomains: bool,
    port: Option<u16>,
}

impl HostPattern {
    /// Whether the address is at this host and port.
    pub fn matches(&self, url: &Url) -> bool {
        let same_port = self.port.is_none_or(|port| url.port_or_known_default() == Some(port));
        same_port
            && match (url.host(), &self.host) {
                (Some(Host::Domain(name)), Host::Domain(listed)) => {
                    // "example.org." is the same host, as a fully qualified name.
                    let name = name.strip_suffix('.').unwrap_or(name);
                    match self.subdomains {
                        false => name == listed,
                        // At least one label must stand before the dot.
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
        let (subdomains, rest) = text.strip_prefix('.').map_or((false, text), |rest| (true, rest));
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
        match (&host, subdomains) {
            (Host::Domain(_), _) | (_, false) => Ok(Self { host, subdomains, port }),
            _ => Err(wanted.into()),
        }
    }
}
