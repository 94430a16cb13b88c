//! The guard in front of every webhook: checks the host of an address, and resolves names for the HTTP client in its own way,
//! so that the address which is checked is the one which is connected to.
//!
//! Refuses to show a host in an error: it comes from a message.

use super::{HostPattern, address::special};
use futures_util::{FutureExt, future::BoxFuture};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};
use tokio::{net::lookup_host, time::timeout};
use url::{Host, Url};

/// How long a task waits to hear where its webhooks would go.
const LOOKUP_TIME: Duration = Duration::from_secs(5);
/// Names under which clouds offer a machine its credentials.
const METADATA: [&str; 7] = [
    "instance-data",
    "instance-data.ec2.internal",
    "metadata",
    "metadata.azure.internal",
    "metadata.goog",
    "metadata.google.internal",
    "metadata.tencentyun.com",
];

/// A host that webhooks may not go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is a list, and it is not on it.
    #[error("`webhook_url` names a host that is not among those of --webhook-hosts (EASEL_WEBHOOK_HOSTS)")]
    Unlisted,
    /// There is no list, and it is not public.
    #[error(
        "`webhook_url` leads to {0} address, must be public, listed by --webhook-hosts (EASEL_WEBHOOK_HOSTS) or allowed by \
         --allow-private-webhooks (EASEL_ALLOW_PRIVATE_WEBHOOKS)"
    )]
    Private(&'static str),
}

type Lookup = dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync;

/// Which hosts webhooks may go to.
#[derive(Clone)]
pub struct Guard {
    reach: Reach,
    lookup: Arc<Lookup>,
}

#[derive(Debug, Clone)]
enum Reach {
    /// These hosts, wherever they are: a service of the same cluster has a private address.
    Listed(Vec<HostPattern>),
    /// Any host with a public address.
    Public,
    /// Any host.
    Anywhere,
}

impl Guard {
    /// Lets webhooks go to these hosts and no others; where none is listed, to public addresses, or to all if that is allowed.
    pub fn new(hosts: &[HostPattern], allow_private: bool) -> Self {
        let reach = match (hosts, allow_private) {
            ([], false) => Reach::Public,
            ([], true) => Reach::Anywhere,
            (hosts, _) => Reach::Listed(hosts.to_vec()),
        };
        let lookup = |name: String| async move { Ok(lookup_host((name, 0)).await?.collect()) }.boxed();
        Self { reach, lookup: Arc::new(lookup) }
    }

    /// Looks names up in another way.
    #[cfg(test)]
    pub(crate) fn with_lookup(
        mut self,
        lookup: impl Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync + 'static,
    ) -> Self {
        self.lookup = Arc::new(lookup);
        self
    }

    /// Checks what an address says by itself: its host's name, or the IP address in its place.
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
    /// It may not be called.
    pub fn check(&self, url: &Url) -> Result<(), Refused> {
        match &self.reach {
            Reach::Anywhere => Ok(()),
            Reach::Listed(hosts) if hosts.iter().any(|host| host.matches(url)) => Ok(()),
            Reach::Listed(_) => Err(Refused::Unlisted),
            Reach::Public => match url.host() {
                Some(Host::Domain(name)) => special_name(name).map_or(Ok(()), |kind| Err(Refused::Private(kind))),
                Some(Host::Ipv4(address)) => public(address.into()),
                Some(Host::Ipv6(address)) => public(address.into()),
                None => Err(Refused::Private("no")),
            },
        }
    }

    /// Checks an address before work is put into its task: also what its name resolves to now. A name that does not resolve
    /// now may do so later.
    ///
    /// # Errors
    /// It may not be called.
    pub async fn check_ahead(&self, url: &Url) -> Result<(), Refused> {
        self.check(url)?;
        let (Reach::Public, Some(Host::Domain(name))) = (&self.reach, url.host()) else { return Ok(()) };
        match timeout(LOOKUP_TIME, (self.lookup)(name.to_string())).await {
            Ok(Ok(found)) => self.sift(found).map(drop),
            Ok(Err(_)) | Err(_) => Ok(()),
        }
    }

    /// Leaves the addresses that may be connected to.
    fn sift(&self, mut found: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        if let Reach::Public = self.reach {
            let refused = found.iter().find_map(|address| special(address.ip()));
            found.retain(|address| special(address.ip()).is_none());
            if let (Some(kind), true) = (refused, found.is_empty()) {
                return Err(Refused::Private(kind));
            }
        }
        Ok(found)
    }
}

/// The client asks here for every connection to a name. It asks nobody for an IP address in an address's place: see `check`.
impl Resolve for Guard {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.clone();
        async move {
            let found = (guard.lookup)(name.as_str().to_string()).await?;
            Ok(Box::new(guard.sift(found)?.into_iter()) as Addrs)
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
        // The root alone is no host, nor is what has nothing between two dots; a resolver may make of it what it likes.
        _ if name.split('.').any(str::is_empty) => Some("no"),
        _ => METADATA.contains(&name).then_some("a metadata"),
    }
}
