//! The right to acknowledge one delivery, once.
//!
//! Refuses to be used twice: the call takes the acker away, so a second one does not compile. It also cannot reach
//! another delivery: it belongs to the channel that brought its own, and dies with it.

use lapin::options::BasicAckOptions;

use crate::error::BrokerError;

/// Acknowledges one delivery. To drop it is safe: the broker delivers the message again when the channel ends.
///
/// ```
/// async fn once(acker: relay::acker::Acker) {
///     let _ = acker.ack().await;
/// }
/// ```
///
/// ```compile_fail,E0382
/// async fn twice(acker: relay::acker::Acker) {
///     let _ = acker.ack().await;
///     let _ = acker.ack().await;
/// }
/// ```
#[derive(Debug)]
#[must_use = "a message that is never acknowledged is delivered again"]
pub struct Acker(lapin::Acker);

impl Acker {
    pub(crate) fn new(acker: lapin::Acker) -> Self {
        Self(acker)
    }

    /// Tells the broker to forget the message. An error means that it will be delivered again.
    pub async fn ack(self) -> Result<(), BrokerError> {
        match self.0.ack(BasicAckOptions::default()).await {
            Ok(true) => Ok(()),
            // The client says "not done" without an error when the channel has ended before.
            Ok(false) => Err(BrokerError::ChannelGone),
            Err(err) => Err(err.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_ack_that_did_not_happen_is_an_error() {
        let delivery = lapin::message::Delivery::mock(1, "".into(), "".into(), false, vec![]);
        let used = delivery.acker.clone();
        assert!(Acker::new(delivery.acker).ack().await.is_ok());
        assert!(matches!(Acker::new(used).ack().await, Err(BrokerError::ChannelGone)));
    }
}
