//! Acknowledges each delivery once, and those of one channel in as few frames as is safe.
//!
//! Acknowledging consumes the acker, so a second call does not compile. An acker belongs to the channel of its delivery
//! and is void when that ends.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use lapin::{message::Delivery, options::BasicAckOptions};
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

use crate::{amqp::BrokerError, tags::Tags};

/// How long a settled message waits for older ones, so that one frame acknowledges them all.
const GRACE: Duration = Duration::from_millis(20);

/// Acknowledges one delivery. Dropping it is safe: the broker redelivers the message when the channel ends.
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
pub struct Acker {
    tag: u64,
    inner: lapin::Acker,
    acks: ChannelAcks,
}

/// The acknowledgements of one channel.
#[derive(Debug, Clone)]
pub(crate) struct ChannelAcks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Locked while frames are sent, so that they leave in the order in which they were decided on.
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
}

/// How far acknowledgements have reached the broker.
#[derive(Debug, Clone, Copy)]
struct Progress {
    /// Everything below it is acknowledged.
    oldest: u64,
    /// A frame for several messages was not sent, and none after it will be: the channel has ended.
    broken: bool,
}

#[derive(Debug, Default)]
struct State {
    tags: Tags,
    /// The ackers of messages that are settled and not yet acknowledged.
    ackers: BTreeMap<u64, lapin::Acker>,
}

impl Acker {
    /// Acknowledges the message. After an error it will be redelivered.
    pub async fn ack(self) -> Result<(), BrokerError> {
        acknowledge(vec![self]).await
    }
}

/// Acknowledges messages of one channel. After an error some will be redelivered.
pub(crate) async fn acknowledge(ackers: Vec<Acker>) -> Result<(), BrokerError> {
    let Some(first) = ackers.first() else { return Ok(()) };
    let acks = first.acks.clone();
    let tags: Vec<u64> = ackers.iter().map(|acker| acker.tag).collect();
    let highest = tags.iter().copied().max().unwrap_or_default();
    let mut progress = acks.0.progress.subscribe();
    acks.settle(ackers).await?;
    // Older ones are usually settled within moments. Then one frame is for them and these, and its failure too.
    let covered = progress.wait_for(|progress| progress.oldest > highest || progress.broken);
    match timeout(GRACE, covered).await.map(|progress| progress.is_ok_and(|progress| progress.oldest > highest)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(BrokerError::ChannelGone),
        Err(_) => acks.ack_each(tags).await,
    }
}

impl Default for ChannelAcks {
    /// For a new channel.
    fn default() -> Self {
        let state = State::default();
        let progress = watch::Sender::new(Progress { oldest: state.tags.oldest(), broken: false });
        Self(Arc::new(Shared { state: Mutex::new(state), progress }))
    }
}

impl ChannelAcks {
    /// The acker of a delivery of this channel.
    pub(crate) fn acker(&self, delivery: &Delivery) -> Acker {
        Acker { tag: delivery.delivery_tag, inner: delivery.acker.clone(), acks: self.clone() }
    }

    /// Records settled messages, and acknowledges them if everything older is settled too.
    async fn settle(&self, ackers: Vec<Acker>) -> Result<(), BrokerError> {
        let mut state = self.0.state.lock().await;
        let tags: Vec<u64> = ackers.iter().map(|acker| acker.tag).collect();
        state.ackers.extend(ackers.into_iter().map(|acker| (acker.tag, acker.inner)));
        let Some(last) = state.tags.settle(tags) else { return Ok(()) };
        let later = state.ackers.split_off(&(last + 1));
        let mut run = std::mem::replace(&mut state.ackers, later);
        let sent = match run.pop_last() {
            Some((_, acker)) => send(&acker, true).await,
            None => Ok(()),
        };
        // Others wait for this frame and take its result as theirs.
        self.0.progress.send_modify(|progress| match sent {
            Ok(()) => progress.oldest = state.tags.oldest(),
            Err(_) => progress.broken = true,
        });
        sent
    }

    /// Acknowledges those of `tags` that still wait, each with its own frame.
    async fn ack_each(&self, tags: Vec<u64>) -> Result<(), BrokerError> {
        let mut state = self.0.state.lock().await;
        let open = state.tags.ack_each(tags);
        let ackers: Vec<_> = open.iter().filter_map(|tag| state.ackers.remove(tag)).collect();
        join_all(ackers.iter().map(|acker| send(acker, false))).await.into_iter().collect()
    }

    /// Whether a tag is acknowledged.
    #[cfg(test)]
    pub(crate) async fn is_acked(&self, tag: u64) -> bool {
        self.0.state.lock().await.tags.is_acked(tag)
    }
}

async fn send(acker: &lapin::Acker, multiple: bool) -> Result<(), BrokerError> {
    match acker.ack(BasicAckOptions { multiple }).await {
        Ok(true) => Ok(()),
        // lapin returns `false`, not an error, if the channel has already ended.
        Ok(false) => Err(BrokerError::ChannelGone),
        Err(err) => Err(err.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivery(tag: u64) -> Delivery {
        Delivery::mock(tag, "".into(), "".into(), false, vec![])
    }

    /// For lapin, an ack that is not sent because the channel has ended is no error.
    #[tokio::test]
    async fn an_ack_that_did_not_happen_is_an_error() {
        let (acks, first) = (ChannelAcks::default(), delivery(1));
        assert!(acks.acker(&first).ack().await.is_ok());
        // Used up elsewhere, as all ackers are when the channel ends.
        let second = delivery(2);
        assert!(second.acker.ack(BasicAckOptions::default()).await.is_ok());
        assert!(matches!(acks.acker(&second).ack().await, Err(BrokerError::ChannelGone)));
    }

    #[tokio::test]
    async fn newer_ones_wait_a_little_for_older_ones_and_no_longer() {
        let acks = ChannelAcks::default();
        let [first, second] = [1, 2].map(delivery);
        let newer = tokio::spawn(acknowledge(vec![acks.acker(&second)]));
        // On a single thread the task runs until it waits, and its timeout is checked only when this test waits.
        tokio::task::yield_now().await;
        assert!(!acks.is_acked(2).await && !newer.is_finished());
        assert!(acks.acker(&first).ack().await.is_ok());
        assert!(newer.await.unwrap().is_ok());
        assert!(first.acker.usable() && !second.acker.usable(), "the newer one's frame was for both");
        assert!(acks.acker(&delivery(4)).ack().await.is_ok());
        assert!(acks.is_acked(4).await && !acks.is_acked(3).await);
    }

    /// Otherwise they would count as acknowledged although the broker redelivers them.
    #[tokio::test]
    async fn a_failed_frame_is_an_error_for_all_who_wait_for_it() {
        let acks = ChannelAcks::default();
        let [first, second, third] = [1, 2, 3].map(delivery);
        let newer = tokio::spawn(acknowledge(vec![acks.acker(&third)]));
        tokio::task::yield_now().await;
        // The frame for all three would be sent by the newest acker, which is used up as when the channel ends.
        assert!(third.acker.ack(BasicAckOptions::default()).await.is_ok());
        let both = acknowledge(vec![acks.acker(&first), acks.acker(&second)]).await;
        assert!(matches!(both, Err(BrokerError::ChannelGone)));
        assert!(matches!(newer.await.unwrap(), Err(BrokerError::ChannelGone)));
    }
}
