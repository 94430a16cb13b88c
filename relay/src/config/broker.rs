//! The broker's options: `--amqp-url` with one or more hosts, TLS, timeouts, and what `--declare` creates.
//!
//! An error names the option, or a URL by its number, and never repeats a value: it may hold a password.

use std::{fmt, fs, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, value_parser};
use lapin::uri::{AMQPScheme, AMQPUri};
use rustls_connector::{RustlsConnector, RustlsConnectorConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use url::{Host, Url};

use crate::{
    amqp::{Broker, MIN_FRAME_MAX},
    error::ConfigError,
    id_source::MAX_SHORT_STRING_BYTES,
};

const URL: &str = "--amqp-url";
const URL_FORM: &str = "it must be amqp://user:password@host:port/vhost or amqps://…";
const CA: &str = "--amqp-ca";
const CERT: &str = "--amqp-client-cert";
const KEY: &str = "--amqp-client-key";
const BIND: &str = "--bind";

/// The value of `--amqp-url`, with its passwords. It is checked after clap has parsed the options, because clap's
/// errors repeat a bad value.
#[derive(Clone)]
pub struct AmqpUrl(String);

impl AmqpUrl {
    /// All hosts. The first entry is a URL. A later one may be host:port; the rest is then that of the first.
    pub(super) fn parse(&self) -> Result<Vec<AMQPUri>, ConfigError> {
        let mut hosts: Vec<AMQPUri> = Vec::new();
        let entries = split(&self.0);
        for (index, entry) in entries.iter().enumerate() {
            let parsed = match hosts.first() {
                Some(first) if !entry.contains("://") => inherit(first, entry),
                _ => parse(entry),
            };
            let place = if entries.len() > 1 { format!("entry {} ", index + 1) } else { String::new() };
            hosts.push(parsed.map_err(|problem| invalid(URL, format!("{place}{problem}; {URL_FORM}")))?);
        }
        Ok(hosts)
    }
}

impl From<String> for AmqpUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl fmt::Debug for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without a scheme it is unclear where the password begins.
        f.write_str(&if self.0.contains("://") { redact(&self.0) } else { "***".to_owned() })
    }
}

/// How to reach the broker, and what to create there.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Broker")]
pub struct BrokerOptions {
    /// Certificates that an amqps:// broker must be signed by, a PEM file; instead of the system's
    #[arg(long, env = "AMQP_CA", value_name = "FILE")]
    pub amqp_ca: Option<PathBuf>,
    /// The certificate that the relay shows to an amqps:// broker, a PEM file
    #[arg(long, env = "AMQP_CLIENT_CERT", value_name = "FILE")]
    pub amqp_client_cert: Option<PathBuf>,
    /// The private key for it, a PEM file
    #[arg(long, env = "AMQP_CLIENT_KEY", value_name = "FILE")]
    pub amqp_client_key: Option<PathBuf>,
    /// How long one host of the broker may take to open a connection, in seconds
    #[arg(long, env = "AMQP_CONNECT_TIMEOUT", default_value_t = 10, value_parser = value_parser!(u64).range(1..=3_600))]
    pub connect_timeout: u64,
    /// Seconds between heartbeats; a heartbeat in the URL wins
    #[arg(long, env = "AMQP_HEARTBEAT", default_value_t = 10, value_parser = value_parser!(u16).range(1..))]
    pub heartbeat: u16,
    /// What --declare creates
    #[arg(long, env = "AMQP_QUEUE_TYPE", value_enum, default_value_t = QueueType::Quorum)]
    pub queue_type: QueueType,
    /// Bind the queue to this exchange, which must exist; needs --declare
    #[arg(long, env = "AMQP_BIND", value_name = "EXCHANGE:ROUTING_KEY", value_delimiter = ',')]
    pub bind: Vec<String>,
}

/// The type of a queue in RabbitMQ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QueueType {
    /// Replicated.
    Quorum,
    /// On one node.
    Classic,
}

/// An exchange, and a routing key from it to the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binding {
    pub(crate) exchange: String,
    pub(crate) routing_key: String,
}

impl BrokerOptions {
    /// The broker at `hosts`. Reads the files.
    pub(super) fn broker(&self, hosts: Vec<AMQPUri>) -> Result<Broker, ConfigError> {
        let wants_tls = hosts.iter().any(|uri| matches!(uri.scheme, AMQPScheme::AMQPS));
        Ok(Broker::new(hosts, self.tls(wants_tls)?, Duration::from_secs(self.connect_timeout), self.heartbeat))
    }

    /// The bindings to create. A routing key may contain colons, an exchange may not.
    pub(super) fn bindings(&self, declare: bool) -> Result<Vec<Binding>, ConfigError> {
        if !declare && !self.bind.is_empty() {
            return Err(invalid(BIND, "needs --declare"));
        }
        let binding = |text: &String| {
            let (exchange, routing_key) =
                text.split_once(':').ok_or_else(|| invalid(BIND, "must be EXCHANGE:ROUTING_KEY"))?;
            check_name(BIND, exchange)?;
            if !routing_key.is_empty() {
                check_name(BIND, routing_key)?;
            }
            Ok(Binding { exchange: exchange.to_owned(), routing_key: routing_key.to_owned() })
        };
        self.bind.iter().map(binding).collect()
    }

    /// `None` if no host and no option is for TLS. Without `--amqp-ca`, the system's root certificates count.
    fn tls(&self, wants_tls: bool) -> Result<Option<RustlsConnector>, ConfigError> {
        let identity = match (&self.amqp_client_cert, &self.amqp_client_key) {
            (Some(cert), Some(key)) => Some((certificates(CERT, cert)?, private_key(key)?)),
            (None, None) => None,
            (Some(_), None) => return Err(invalid(KEY, "is missing: --amqp-client-cert needs it")),
            (None, Some(_)) => return Err(invalid(CERT, "is missing: --amqp-client-key needs it")),
        };
        let option = if identity.is_some() { CERT } else { CA };
        let roots = match &self.amqp_ca {
            Some(path) => RustlsConnectorConfig::default().with_parsable_certificates(certificates(CA, path)?),
            None if identity.is_none() && !wants_tls => return Ok(None),
            None => RustlsConnectorConfig::new_with_native_certs()
                .map_err(|err| invalid(CA, format!("is not set, and the system has no roots: {err}")))?,
        };
        let connector = match identity {
            Some((certs, key)) => roots.connector_with_single_cert(certs, key),
            None => roots.connector_with_no_client_auth(),
        };
        connector.map(Some).map_err(|err| invalid(option, format!("cannot be used: {err}")))
    }
}

fn read(option: &'static str, path: &PathBuf) -> Result<Vec<u8>, ConfigError> {
    fs::read(path).map_err(|err| invalid(option, format!("{}: {err}", path.display())))
}

fn certificates(option: &'static str, path: &PathBuf) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let pem = read(option, path)?;
    let certs: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certs {
        Ok(certs) if !certs.is_empty() => Ok(certs),
        Ok(_) => Err(invalid(option, format!("{}: holds no PEM certificate", path.display()))),
        Err(err) => Err(invalid(option, format!("{}: is no PEM: {err}", path.display()))),
    }
}

fn private_key(path: &PathBuf) -> Result<PrivateKeyDer<'static>, ConfigError> {
    // The parser's error could contain parts of the key.
    let problem = |_| invalid(KEY, format!("{}: holds no PEM private key without a passphrase", path.display()));
    PrivateKeyDer::from_pem_slice(&read(KEY, path)?).map_err(problem)
}

/// Splits at commas, except those in a password: after such a comma an `@` comes before the next URL.
fn split(list: &str) -> Vec<String> {
    let mut entries: Vec<Vec<&str>> = Vec::new();
    for piece in list.split(',') {
        let url = entries.iter().rposition(|entry| entry.first().is_some_and(|piece| piece.contains("://")));
        match url {
            Some(url) if !piece.contains("://") && piece.contains('@') => {
                let cut: Vec<&str> = entries.drain(url + 1..).flatten().collect();
                entries[url].extend(cut);
                entries[url].push(piece);
            }
            _ => entries.push(vec![piece]),
        }
    }
    entries.into_iter().map(|pieces| pieces.join(",").trim().to_owned()).collect()
}

fn parse(entry: &str) -> Result<AMQPUri, String> {
    let url = Url::parse(entry).map_err(|err| format!("is no URL: {err}"))?;
    // The client repeats the whole URL in some of its errors.
    let mut uri: AMQPUri = entry.parse().map_err(|err: String| redact(&err.replace(entry, "***")))?;
    // The client does not recognize an IPv6 address and would connect to localhost.
    match url.host() {
        Some(Host::Ipv6(address)) => uri.authority.host = address.to_string(),
        Some(_) => {}
        None => return Err("names no host".to_owned()),
    }
    // Strictly, a lone slash means the virtual host with the empty name, which nobody uses.
    if uri.vhost.is_empty() {
        uri.vhost = "/".to_owned();
    }
    if uri.query.heartbeat == Some(0) {
        return Err("has heartbeat=0: a dead connection would never be noticed".to_owned());
    }
    if let Some(bytes @ 1..MIN_FRAME_MAX) = uri.query.frame_max {
        return Err(format!("has frame_max={bytes}: AMQP clients need {MIN_FRAME_MAX}; leave it out"));
    }
    Ok(uri)
}

fn inherit(first: &AMQPUri, entry: &str) -> Result<AMQPUri, String> {
    let url = Url::parse(&format!("amqp://{entry}")).map_err(|err| format!("is neither a URL nor host:port: {err}"))?;
    let bare = url.username().is_empty() && url.password().is_none() && url.path().trim_matches('/').is_empty();
    if !bare || url.query().is_some() || url.fragment().is_some() {
        return Err("is neither a URL nor host:port".to_owned());
    }
    let mut uri = first.clone();
    uri.authority.host = match url.host() {
        Some(Host::Ipv6(address)) => address.to_string(),
        Some(host) => host.to_string(),
        None => return Err("names no host".to_owned()),
    };
    uri.authority.port = url.port().unwrap_or_else(|| first.scheme.default_port());
    Ok(uri)
}

/// Hides everything from the first `://` to the last `@`: a password may contain any character.
pub(super) fn redact(text: &str) -> String {
    match (text.find("://"), text.rfind('@')) {
        (Some(start), Some(end)) if start < end => format!("{}://***{}", &text[..start], &text[end..]),
        _ => text.to_owned(),
    }
}

pub(super) fn check_name(option: &'static str, name: &str) -> Result<(), ConfigError> {
    match name.len() {
        0 => Err(invalid(option, "must not be empty")),
        1..=MAX_SHORT_STRING_BYTES => Ok(()),
        bytes => Err(invalid(option, format!("has {bytes} bytes, AMQP takes {MAX_SHORT_STRING_BYTES}"))),
    }
}

pub(super) fn invalid(option: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { option, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(list: &str) -> Vec<String> {
        let hosts = AmqpUrl::from(list.to_owned()).parse().expect(list);
        let show = |uri: &AMQPUri| {
            let (user, host) = (&uri.authority.userinfo, &uri.authority.host);
            let (scheme, port, vhost) = (uri.scheme.clone(), uri.authority.port, &uri.vhost);
            format!("{scheme}|{}|{}|{host}|{port}|{vhost}", user.username, user.password)
        };
        hosts.iter().map(show).collect()
    }

    #[test]
    fn urls_mean_what_people_expect() {
        for (list, wanted) in [
            ("amqp://h", vec!["amqp|guest|guest|h|5672|/"]),
            ("amqp://h/", vec!["amqp|guest|guest|h|5672|/"]),
            ("amqp://h/%2f", vec!["amqp|guest|guest|h|5672|/"]),
            ("amqp://h:1/v", vec!["amqp|guest|guest|h|1|v"]),
            ("amqp://127.0.0.1/v", vec!["amqp|guest|guest|127.0.0.1|5672|v"]),
            ("amqp://[::1]:5672", vec!["amqp|guest|guest|::1|5672|/"]),
            ("amqps://u:p@a/v,b:1,[::2]", vec!["amqps|u|p|a|5671|v", "amqps|u|p|b|1|v", "amqps|u|p|::2|5671|v"]),
            ("amqp://u:p@a, amqp://w:q@b/v", vec!["amqp|u|p|a|5672|/", "amqp|w|q|b|5672|v"]),
            ("amqp://u:p,q,r@a,b", vec!["amqp|u|p,q,r|a|5672|/", "amqp|u|p,q,r|b|5672|/"]),
            (
                "amqp://a:1,b:2,amqp://u:p,q@c",
                vec!["amqp|guest|guest|a|1|/", "amqp|guest|guest|b|2|/", "amqp|u|p,q|c|5672|/"],
            ),
        ] {
            assert_eq!(hosts(list), wanted, "{list}");
        }
    }

    #[test]
    fn a_bad_entry_is_named_by_its_number_and_shows_no_password() {
        for (list, wanted) in [
            ("amqp://u:secret@a,", "entry 2 "),
            ("amqp://u:secret@a,b:port", "entry 2 is neither a URL nor host:port"),
            ("amqp://u:secret@a,b/v", "entry 2 is neither"),
            ("amqp://u:secret@a,b,http://u:secret@c", "entry 3 "),
            ("amqp://u:secret@a,amqp://u:secret@b:port", "entry 2 is no URL"),
            ("amqp://u:secret@a?heartbeat=0", "heartbeat=0"),
            ("amqp://u:secret@a?frame_max=4096", "frame_max=4096: AMQP clients need 8192"),
            ("u:secret@a", "--amqp-url: "),
            ("amqp:secret", "--amqp-url: "),
        ] {
            let text = AmqpUrl::from(list.to_owned()).parse().expect_err(list).to_string();
            assert!(text.contains(wanted) && text.contains(URL), "{list}: {text}");
            assert!(!text.contains("secret"), "{list}: {text}");
            let shown = format!("{:?}", AmqpUrl::from(list.to_owned()));
            assert!(!shown.contains("secret@"), "{shown}");
        }
    }

    #[test]
    fn no_password_of_a_list_is_shown() {
        let shown = format!("{:?}", AmqpUrl::from("amqp://u:secret@a,amqps://v:secret@b,c:1".to_owned()));
        assert_eq!(shown, "amqp://***@b,c:1");
    }
}
