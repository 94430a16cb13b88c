//! Connections and channels to the broker: one or more hosts, plain or TLS.
//!
//! The client's own recovery is not used: an acknowledgement must never reach a channel that did not bring the
//! delivery. So a broken connection is dropped and a new one is opened.

mod error;

pub use error::BrokerError;

use std::{
    io,
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use async_rs::traits::Reactor;
use futures_util::future::Either;
use lapin::{
    AsyncTcpStream, Channel, Connection, ConnectionProperties, ErrorKind,
    protocol::constants::FRAME_MIN_SIZE,
    uri::{AMQPScheme, AMQPUri},
};
use rustls_connector::RustlsConnector;
use tokio::{net::lookup_host, time::timeout};
use tracing::debug;

use crate::wire::{ConnectionNotes, Wire, WireKit};

/// How long to wait for the answer to a close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// The stack of each thread. The client parses nested headers by recursion, on a thread of its own: with the default of
/// 2 MiB, one header of a few thousand levels would end the process, again after each restart. Only the pages in use
/// take memory.
pub const STACK_BYTES: usize = 64 * 1024 * 1024;

/// The client takes no smaller `frame_max`, and RabbitMQ 4.1 offers none.
pub(crate) const MIN_FRAME_MAX: u32 = FRAME_MIN_SIZE;

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
    /// There if a host is `amqps`.
    tls: Option<RustlsConnector>,
    connect_timeout: Duration,
    heartbeat: u16,
    /// The host that the last connection went to.
    good: AtomicUsize,
}

impl Broker {
    /// The broker at `hosts`. `tls` is for those that are `amqps`. `heartbeat` is in seconds, unless a URL has one: a
    /// silent connection is given up after twice this time.
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

    /// All hosts with their ports, for logs.
    pub(crate) fn addresses(&self) -> String {
        self.hosts.iter().map(address).collect::<Vec<_>>().join(",")
    }

    /// One host with its port, for logs.
    pub(crate) fn address(&self, host: usize) -> String {
        self.hosts.get(host).map(address).unwrap_or_default()
    }

    /// Opens a connection that the broker lists under `name`: to the last good host, or else the next one that works.
    pub(crate) async fn connect(&self, name: &str) -> Result<Connection, BrokerError> {
        self.connect_with_notes(name, &ConnectionNotes::default()).await
    }

    /// The same. What is seen of the connection's deliveries goes to `notes`.
    pub(crate) async fn connect_with_notes(
        &self,
        name: &str,
        notes: &ConnectionNotes,
    ) -> Result<Connection, BrokerError> {
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
        self.open(host, name, &ConnectionNotes::default()).await
    }

    async fn open(&self, host: usize, name: &str, notes: &ConnectionNotes) -> Result<Connection, BrokerError> {
        let mut uri = self.hosts.get(host).cloned().unwrap_or_default();
        uri.query.heartbeat.get_or_insert(self.heartbeat);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let tls = self.tls.clone();
        notes.reset_frame_max();
        let seen = notes.clone();
        let dial = async move |uri: AMQPUri, _| Ok(AsyncTcpStream::Plain(dial(&uri, tls.as_ref(), &seen).await?));
        let opening = Connection::connector(uri, WireKit::runtime(), dial, properties);
        // The client has no timeout for a broker that accepts the connection and says nothing.
        let opened = timeout(self.connect_timeout, opening).await;
        let opened = opened
            .map_err(|_| BrokerError::Timeout(self.connect_timeout))
            .and_then(|opened| opened.map_err(BrokerError::from));
        opened.map_err(|err| match notes.frame_max() {
            // The client asks for its minimum anyway, and the broker closes the connection without an error.
            Some(bytes @ 1..MIN_FRAME_MAX) => BrokerError::FrameMax(bytes),
            _ => err,
        })
    }
}

/// Opens a socket to a host, with TLS if its scheme is `amqps`.
async fn dial(uri: &AMQPUri, tls: Option<&RustlsConnector>, notes: &ConnectionNotes) -> io::Result<Wire> {
    let host = &uri.authority.host;
    let addresses: Vec<SocketAddr> = lookup_host((host.as_str(), uri.authority.port)).await?.collect();
    let stream = WireKit::sockets().tcp_connect(addresses).await?;
    let socket = match (&uri.scheme, tls) {
        (AMQPScheme::AMQP, _) => Either::Left(stream),
        (AMQPScheme::AMQPS, Some(tls)) => Either::Right(tls.connect_async(host, stream).await?),
        (AMQPScheme::AMQPS, None) => return Err(io::Error::other("TLS is not set up")),
    };
    Ok(Wire::new(socket, notes.clone()))
}

/// A connection with one channel, and another in its place if the broker has closed it: AMQP answers a question for
/// what does not exist by closing the channel.
///
/// A broker may allow as few as one channel per connection (`channel_max`), and the client never uses a channel number
/// again. When the numbers are used up, a new connection replaces the first.
#[derive(Debug)]
pub(crate) struct Channels<'a> {
    broker: &'a Broker,
    name: &'static str,
    notes: ConnectionNotes,
    connection: Connection,
    channel: Option<Channel>,
    used: u16,
}

impl<'a> Channels<'a> {
    /// Connects to the broker, which lists the connection under `name`. `notes` are for its deliveries.
    pub(crate) async fn open(
        broker: &'a Broker,
        name: &'static str,
        notes: &ConnectionNotes,
    ) -> Result<Self, BrokerError> {
        let connection = broker.connect_with_notes(name, notes).await?;
        Ok(Self::on(connection, broker, name, notes))
    }

    /// Channels on a connection that has had none yet.
    pub(crate) fn on(connection: Connection, broker: &'a Broker, name: &'static str, notes: &ConnectionNotes) -> Self {
        Self { broker, name, notes: notes.clone(), connection, channel: None, used: 0 }
    }

    /// The channel: the same as before if it is still open.
    pub(crate) async fn get(&mut self) -> Result<Channel, BrokerError> {
        if let Some(channel) = self.channel.as_ref().filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        if self.used >= self.connection.configuration().channel_max() {
            let next = self.broker.connect_with_notes(self.name, &self.notes).await?;
            close(std::mem::replace(&mut self.connection, next)).await;
            self.used = 0;
        }
        self.used += 1;
        let channel = self.connection.create_channel().await?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    /// The connection, with the channel on it.
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

/// Closes a connection. Unacknowledged deliveries go back to their queue, whether the broker answers or not.
pub(crate) async fn close(connection: Connection) {
    let goodbye = connection.close(REPLY_SUCCESS, "OK".into());
    // If the connection is already broken, there is nothing to close.
    let _ = timeout(CLOSE_TIMEOUT, goodbye).await;
}

/// Closes a channel. Unacknowledged deliveries on it go back to their queue.
pub(crate) async fn close_channel(channel: &Channel) {
    // It may be closed already.
    let _ = timeout(CLOSE_TIMEOUT, channel.close(REPLY_SUCCESS, "OK".into())).await;
}

/// Whether the broker says that a queue or exchange does not exist.
pub(crate) fn is_not_found(err: &lapin::Error) -> bool {
    reply_code(err) == Some(NOT_FOUND)
}

/// Whether the broker answers that a queue does not allow this request.
pub(crate) fn is_precondition(err: &lapin::Error) -> bool {
    reply_code(err) == Some(PRECONDITION_FAILED)
}

/// Whether a frame is larger than the agreed `frame_max`, as the client reports. Brokers split bodies, but not headers.
pub(crate) fn is_frame_too_large(err: &lapin::Error) -> bool {
    reply_code(err) == Some(FRAME_ERROR) && err.to_string().contains("too large")
}

/// Whether the broker refuses the user, the virtual host or a permission. A connection limit, or another consumer with
/// exclusive use, is temporary.
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
        // Each level adds a type byte and a length, until the frame is full.
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
