//! The options of the broker's side beside its URLs: TLS, times, and what `--declare` creates.
//!
//! Refuses to start with a certificate or key that cannot be used, and names its option.

use std::{fs, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, value_parser};
use lapin::{
    tcp::{RustlsConnector, RustlsConnectorConfig},
    uri::AMQPUri,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::{ConfigError, check_name, invalid};
use crate::amqp::Broker;

const CA: &str = "--amqp-ca";
const CERT: &str = "--amqp-client-cert";
const KEY: &str = "--amqp-client-key";
const BIND: &str = "--bind";

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

/// What RabbitMQ keeps a queue in.
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
        Ok(Broker::new(hosts, self.tls()?, Duration::from_secs(self.connect_timeout), self.heartbeat))
    }

    /// The bindings asked for. The routing key may hold colons, the exchange not.
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

    /// `None` when nothing is asked for: then the client takes the system's roots.
    fn tls(&self) -> Result<Option<RustlsConnector>, ConfigError> {
        let identity = match (&self.amqp_client_cert, &self.amqp_client_key) {
            (Some(cert), Some(key)) => Some((certificates(CERT, cert)?, private_key(key)?)),
            (None, None) => None,
            (Some(_), None) => return Err(invalid(KEY, "is missing: --amqp-client-cert needs it")),
            (None, Some(_)) => return Err(invalid(CERT, "is missing: --amqp-client-key needs it")),
        };
        let option = if identity.is_some() { CERT } else { CA };
        let roots = match &self.amqp_ca {
            Some(path) => RustlsConnectorConfig::default().with_parsable_certificates(certificates(CA, path)?),
            None if identity.is_none() => return Ok(None),
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
    // The error could hold parts of the key.
    let problem = |_| invalid(KEY, format!("{}: holds no PEM private key without a passphrase", path.display()));
    PrivateKeyDer::from_pem_slice(&read(KEY, path)?).map_err(problem)
}
