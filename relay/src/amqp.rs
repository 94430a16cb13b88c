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

/// For each thread. The client reads nested headers by recursion, on a thread of its own: with the system's 2 MiB, one header
/// of a few thousand levels would end the process, again after each restart. Only what is used takes memory.
pub const STACK_BYTES: usize = 64 * 1024 * 1024;

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
