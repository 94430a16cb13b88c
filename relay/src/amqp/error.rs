//! What can go wrong with the broker.

use super::{MIN_FRAME_MAX, is_frame_too_large, is_refusal};

/// A failure on the broker's side. After the first session it is always retried.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The queue does not exist, and the relay was not asked to create it.
    #[error("queue {0:?} does not exist; create it, or start the relay with --declare")]
    QueueMissing(String),
    /// No host of the broker opened a connection: each with its error.
    #[error("{}", each(.0))]
    Connect(Vec<(String, BrokerError)>),
    /// An exchange of `--bind` does not exist.
    #[error("exchange {0:?} of --bind does not exist; create it, or leave the binding out")]
    ExchangeMissing(String),
    /// The broker refuses the user, the virtual host or a permission.
    #[error("{0}; correct user, password and virtual host in --amqp-url, or give the user the right on the broker")]
    Refused(lapin::Error),
    /// The queue is a stream.
    #[error(
        "queue {0:?} is a stream: its consumer begins where x-stream-offset says, and without one at the next message, so \
         that what is published before the start or during a downtime would never be sent; consume a quorum or classic \
         queue instead, bound to the same exchange or filled from the stream by RabbitMQ's shovel plugin"
    )]
    Stream(String),
    /// The broker's `frame_max` is below the client's minimum.
    #[error(
        "the broker allows frames of {0} bytes, its AMQP clients need {least}; set frame_max in rabbitmq.conf to {least} or \
         more, or leave it out, which is 131072",
        least = MIN_FRAME_MAX
    )]
    FrameMax(u32),
    /// The headers of a message do not fit into the agreed `frame_max`.
    #[error(
        "{0}: the headers of a message are larger than frame_max; raise that in rabbitmq.conf, and leave it out of \
         --amqp-url"
    )]
    FrameTooLarge(lapin::Error),
    /// The broker took too long to answer.
    #[error("the broker did not answer within {0:?}")]
    Timeout(std::time::Duration),
    /// A dead-lettered message reached no queue.
    #[error("exchange {0:?} routes to no queue")]
    Unroutable(String),
    /// The broker did not confirm a dead-lettered message.
    #[error("the broker did not confirm the message")]
    Unconfirmed,
    /// The delivery's channel has ended: it will be redelivered.
    #[error("the delivery's channel has ended")]
    ChannelGone,
    /// Any other error of the client or the broker. It never contains the URI.
    #[error("{0}")]
    Amqp(lapin::Error),
}

impl BrokerError {
    /// Whether only a person can correct it. At startup that ends the relay. Later a broker says the same while it
    /// restarts or has lost a queue's node, and that is temporary.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::QueueMissing(_) | Self::ExchangeMissing(_) | Self::Refused(_) => true,
            Self::Stream(_) | Self::FrameMax(_) => true,
            // One host that refuses is enough; one that does not answer may only be down.
            Self::Connect(hosts) => hosts.iter().any(|(_, error)| error.is_refusal()),
            _ => false,
        }
    }
}

impl From<lapin::Error> for BrokerError {
    fn from(error: lapin::Error) -> Self {
        match error {
            error if is_refusal(&error) => Self::Refused(error),
            error if is_frame_too_large(&error) => Self::FrameTooLarge(error),
            error => Self::Amqp(error),
        }
    }
}

fn each(hosts: &[(String, BrokerError)]) -> String {
    hosts.iter().map(|(host, error)| format!("{host}: {error}")).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::{
        ErrorKind,
        protocol::{AMQPError, AMQPErrorKind},
    };

    #[test]
    fn at_the_start_only_what_a_person_must_correct_is_final() {
        for (code, text, refusal) in [
            (403, "ACCESS_REFUSED - Login was refused", true),
            (403, "ACCESS_REFUSED - queue 'q' in vhost '/' in exclusive use", false),
            (530, "NOT_ALLOWED - vhost nowhere not found", true),
            (530, "NOT_ALLOWED - connection limit (1) is reached", false),
            // The broker may support it after an upgrade, and the relay keeps running meanwhile.
            (540, "NOT_IMPLEMENTED - queue 'q' in vhost '/' does not support this", false),
            (541, "INTERNAL_ERROR", false),
            (406, "PRECONDITION_FAILED - inequivalent arg", false),
            (320, "CONNECTION_FORCED - broker forced connection closure", false),
        ] {
            let kind = AMQPErrorKind::from_id(code).unwrap();
            let error =
                BrokerError::from(lapin::Error::from(ErrorKind::ProtocolError(AMQPError::new(kind, text.into()))));
            assert_eq!(error.is_refusal(), refusal, "{code} {text}");
            assert!(error.to_string().contains(text), "the broker's own words are kept: {error}");
            let hosts = BrokerError::Connect(vec![
                ("one:5672".to_owned(), BrokerError::Unconfirmed),
                ("two:5672".to_owned(), error),
            ]);
            assert_eq!(hosts.is_refusal(), refusal, "one host speaks for all: {hosts}");
        }
    }
}
