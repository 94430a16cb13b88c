//! One way to connect to the broker, for the consuming and for the publishing side.
//!
//! Refuses the client's own recovery: an acknowledgement must never reach a channel that did not bring the delivery,
//! so a broken connection is thrown away and a new one is opened.

use std::time::Duration;

use lapin::{Connection, ConnectionProperties, ErrorKind, uri::AMQPUri};
use tokio::time::timeout;

use crate::error::BrokerError;

/// The client waits without end for a broker that takes the connection and says nothing.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A close that is not answered in this time does not matter any more.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);
/// In seconds. A silent connection is given up after twice this time; the broker's own wish is a minute.
const HEARTBEAT_S: u16 = 10;

const REPLY_SUCCESS: u16 = 200;
const NOT_FOUND: u16 = 404;

/// Opens a connection that the broker shows under `name`.
pub(crate) async fn connect(uri: &AMQPUri, name: &str) -> Result<Connection, BrokerError> {
    let mut uri = uri.clone();
    uri.query.heartbeat.get_or_insert(HEARTBEAT_S);
    let properties = ConnectionProperties::default().with_connection_name(name.into());
    let connection = timeout(CONNECT_TIMEOUT, Connection::connect_uri(uri, properties)).await;
    Ok(connection.map_err(|_| BrokerError::Timeout(CONNECT_TIMEOUT))??)
}

/// Says goodbye. Unacknowledged deliveries go back to their queue, whether the broker answers or not.
pub(crate) async fn close(connection: Connection) {
    let goodbye = connection.close(REPLY_SUCCESS, "OK".into());
    // A connection that is already broken cannot be closed in order, and need not be.
    let _ = timeout(CLOSE_TIMEOUT, goodbye).await;
}

/// Whether the broker says that a queue or exchange is not there.
pub(crate) fn is_not_found(err: &lapin::Error) -> bool {
    matches!(err.kind(), ErrorKind::ProtocolError(cause) if cause.get_id() == NOT_FOUND)
}
