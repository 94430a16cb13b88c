//! One way to connect to the broker, for the consuming and for the publishing side: several hosts, plain or TLS.
//!
//! Refuses the client's own recovery: an acknowledgement must never reach a channel that did not bring the delivery,
//! so a broken connection is thrown away and a new one is opened.

mod error;

pub use error::BrokerError;

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use lapin::{
    AsyncTcpStream, Channel, Connection, ConnectionProperties, ErrorKind,
    protocol::constants::FRAME_MIN_SIZE,
    tcp::{AMQPUriTcpExt, RustlsConnector},
    uri::{AMQPScheme, AMQPUri},
};
use tokio::{net::lookup_host, time::timeout};
use tracing::debug;

use crate::wire::{Notes, Wire, WireKit};

/// A close that is not answered in this time does not matter any more.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// For each thread. The client reads nested headers by recursion, on a thread of its own: with the system's 2 MiB, one header
/// of a few thousand levels would end the process, again after each restart. Only what is used takes memory.
pub const STACK_BYTES: usize = 64 * 1024 * 1024;

/// The client takes no smaller limit of frames, and RabbitMQ 4.1 gives none.
pub(crate) const SMALLEST_FRAME: u32 = FRAME_MIN_SIZE;

const REPLY_SUCCESS: u16 = 200;
const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;
const FRAME_ERROR: u16 = 501;
const NOT_ALLOWED: u16 = 530;

/// The hosts of one broker, and how to reach them.
#[derive(Debug)]
pub struct Broker {
    hosts: Vec<AMQPUri>,
    tls: Option<RustlsConnector>,
    connect_timeout: Duration,
    heartbeat: u16,
    /// Where the last connection was opened.
    good: AtomicUsize,
}

impl Broker {
    /// The broker at `hosts`. `tls` stands in for the system's roots; a heartbeat in a URL goes before `heartbeat`, in
    /// seconds: a silent connection is given up after twice this time.
    pub(crate) fn new(
        hosts: Vec<AMQPUri>,
        tls: Option<RustlsConnector>,
        connect_timeout: Duration,
        heartbeat: u16,
    ) -> Self {
        Self { hosts, tls, connect_timeout, heartbeat, good: AtomicUsize::new(0) }
    }

    /// How many hosts there are.
    pub(crate) fn len(&self) -> usize {
        self.hosts.len()
    }

    /// All hosts with their ports, for people.
    pub(crate) fn addresses(&self) -> String {
        self.hosts.iter().map(address).collect::<Vec<_>>().join(",")
    }

    /// One host with its port, for people.
    pub(crate) fn address(&self, host: usize) -> String {
        self.hosts.get(host).map(address).unwrap_or_default()
    }

    /// Opens a connection that the broker shows under `name`: to the last good host, or to the next one that takes it.
    pub(crate) async fn connect(&self, name: &str) -> Result<Connection, BrokerError> {
        self.connect_noting(name, &Notes::default()).await
    }

    /// The same; `notes` will say which of the connection's deliveries had strings that are not UTF-8.
    pub(crate) async fn connect_noting(&self, name: &str, notes: &Notes) -> Result<Connection, BrokerError> {
        let first = self.good.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for host in (first..first + self.len()).map(|host| host % self.len()) {
            match self.open(host, name, notes).await {
                Ok(connection) => {
                    self.good.store(host, Ordering::Relaxed);
                    return Ok(connection);
                }
                Err(error) => {
                    debug!(amqp.host = self.address(host), %error, "no connection");
                    failures.push((self.address(host), error));
                }
            }
        }
        Err(BrokerError::Connect(failures))
    }

    /// Opens a connection to one host.
    pub(crate) async fn connect_to(&self, host: usize, name: &str) -> Result<Connection, BrokerError> {
        self.open(host, name, &Notes::default()).await
    }

    async fn open(&self, host: usize, name: &str, notes: &Notes) -> Result<Connection, BrokerError> {
        let mut uri = self.hosts.get(host).cloned().unwrap_or_default();
        uri.query.heartbeat.get_or_insert(self.heartbeat);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let tls = self.tls.clone().filter(|_| matches!(uri.scheme, AMQPScheme::AMQPS));
        notes.forget_limit();
        let (seen, sockets) = (notes.clone(), WireKit::sockets());
        let dial = async move |uri: AMQPUri, _| {
            let socket = match &tls {
                None => uri.connect_async(&sockets).await?,
                // The client's own way adds the given roots to those of the system.
                Some(tls) => {
                    let host = (uri.authority.host.clone(), uri.authority.port);
                    let addresses: Vec<SocketAddr> = lookup_host(host).await?.collect();
                    let stream = AsyncTcpStream::connect(&sockets, addresses).await?;
                    stream.into_rustls(tls, &uri.authority.host).await?
                }
            };
            Ok(AsyncTcpStream::Plain(Wire::new(socket, seen.clone())))
        };
        let opening = Connection::connector(uri, WireKit::runtime(), dial, properties);
        // The client waits without end for a broker that takes the connection and says nothing.
        let opened = timeout(self.connect_timeout, opening).await;
        let opened = opened
            .map_err(|_| BrokerError::Timeout(self.connect_timeout))
            .and_then(|opened| opened.map_err(BrokerError::from));
        opened.map_err(|err| match notes.limit() {
            // The client asks for its least all the same, and the broker hangs up without a word.
            Some(bytes @ 1..SMALLEST_FRAME) => BrokerError::FrameMax(bytes),
            _ => err,
        })
    }
}

/// A connection with at most one channel.
#[derive(Debug)]
pub(crate) struct Channels<'a> {
    broker: &'a Broker,
    name: &'static str,
    notes: Notes,
    connection: Connection,
    channel: Option<Channel>,
    used: u16,
}

impl<'a> Channels<'a> {
    /// Connects to the broker, which shows the connection under `name`; `notes` are those of all its deliveries.
    pub(crate) async fn open(broker: &'a Broker, name: &'static str, notes: &Notes) -> Result<Self, BrokerError> {
        let connection = broker.connect_noting(name, notes).await?;
        Ok(Self::on(connection, broker, name, notes))
    }

    /// Those of a connection that has had none yet.
    pub(crate) fn on(connection: Connection, broker: &'a Broker, name: &'static str, notes: &Notes) -> Self {
        Self { broker, name, notes: notes.clone(), connection, channel: None, used: 0 }
    }

    /// The channel: that of before, if it is still open.
    pub(crate) async fn get(&mut self) -> Result<Channel, BrokerError> {
        if let Some(channel) = self.channel.as_ref().filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        if self.used >= self.connection.configuration().channel_max() {
            let next = self.broker.connect_noting(self.name, &self.notes).await?;
            close(std::mem::replace(&mut self.connection, next)).await;
            self.used = 0;
        }
        self.used += 1;
        let channel = self.connection.create_channel().await?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    /// The connection, with whatever was opened on it.
    pub(crate) fn into_connection(self) -> Connection {
        self.connection
    }
}

fn address(uri: &AMQPUri) -> String {
    let host = &uri.authority.host;
    if host.contains(':') {
        format!("[{host}]:{}", uri.authority.port)
    } else {
        format!("{host}:{}", uri.authority.port)
    }
}

/// Says goodbye. Unacknowledged deliveries go back to their queue, whether the broker answers or not.
pub(crate) async fn close(connection: Connection) {
    let goodbye = connection.close(REPLY_SUCCESS, "OK".into());
    // A connection that is already broken cannot be closed in order, and need not be.
    let _ = timeout(CLOSE_TIMEOUT, goodbye).await;
}

/// Closes a channel; what is unacknowledged there goes back to its queue.
pub(crate) async fn close_channel(channel: &Channel) {
    // One that is closed already is as good.
    let _ = timeout(CLOSE_TIMEOUT, channel.close(REPLY_SUCCESS, "OK".into())).await;
}

/// Whether the broker says that a queue or exchange is not there.
pub(crate) fn is_not_found(err: &lapin::Error) -> bool {
    reply_code(err) == Some(NOT_FOUND)
}

/// Whether the broker says that a queue does not allow what was asked of it.
pub(crate) fn is_precondition(err: &lapin::Error) -> bool {
    reply_code(err) == Some(PRECONDITION_FAILED)
}

/// Whether a frame came that is larger than both sides agreed on. The client says so: brokers cut bodies, but not headers.
pub(crate) fn is_frame_too_large(err: &lapin::Error) -> bool {
    reply_code(err) == Some(FRAME_ERROR) && err.to_string().contains("too large")
}

/// Whether the broker knows this user, this virtual host or this right not at all. A limit of connections, or another
/// consumer that has the queue for itself, passes.
pub(crate) fn is_refusal(err: &lapin::Error) -> bool {
    match reply_code(err) {
        Some(ACCESS_REFUSED) => !err.to_string().contains("exclusive use"),
        Some(NOT_ALLOWED) => !err.to_string().contains("limit"),
        _ => false,
    }
}

fn reply_code(err: &lapin::Error) -> Option<u16> {
    match err.kind() {
        ErrorKind::ProtocolError(cause) => Some(cause.get_id()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::STACK_BYTES;
    use lapin::types::parsing::parse_field_array;

    #[test]
    fn the_deepest_header_of_a_frame_fits_the_stack() {
        // An array is its length and what it holds; each level adds a letter and a length, until the frame is full.
        let levels = 128 * 1024 / 5;
        let mut bytes = 0_u32.to_be_bytes().to_vec();
        for _ in 1..levels {
            let mut outer = (bytes.len() as u32 + 1).to_be_bytes().to_vec();
            outer.push(b'A');
            outer.append(&mut bytes);
            bytes = outer;
        }
        let read = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(move || {
            let (rest, array) = parse_field_array(bytes.as_slice()).unwrap();
            (rest.is_empty(), array.as_slice().len(), array.clone() == array)
        });
        assert_eq!(read.unwrap().join().unwrap(), (true, 1, true));
    }
}
