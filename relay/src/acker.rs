//! The right to acknowledge one delivery, once, and the acknowledgements of one channel in as few frames as are safe.
//!
//! The call takes the acker away, so that a second one does not compile. It cannot reach another delivery: it belongs to
//! the channel that brought its own, and dies with it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use lapin::{message::Delivery, options::BasicAckOptions};
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};

use crate::{
    amqp::BrokerError,
    tags::{Run, Tags},
};

/// How long a settled message waits for older ones, so that one frame acknowledges them all.
const GRACE: Duration = Duration::from_millis(20);

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
pub struct Acker {
    tag: u64,
    inner: lapin::Acker,
    acks: Acks,
}

/// The acknowledgements of one channel.
#[derive(Debug, Clone)]
pub(crate) struct Acks(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Held while frames are sent, so that they leave in the order in which they were decided on.
    state: Mutex<State>,
    progress: watch::Sender<Progress>,
}

/// How far the broker was told.
#[derive(Debug, Clone, Copy)]
struct Progress {
    /// Everything below it is acknowledged.
    oldest: u64,
    /// A frame for several did not reach the broker, and none will after it: the channel has ended.
    broken: bool,
}

#[derive(Debug, Default)]
struct State {
    tags: Tags,
    /// Of those that are settled and not acknowledged.
    ackers: BTreeMap<u64, lapin::Acker>,
}

impl Acker {
    /// Tells the broker to forget the message. An error means that it will be delivered again.
    pub async fn ack(self) -> Result<(), BrokerError> {
        acknowledge(vec![self]).await
    }
}

/// Tells the broker to forget messages of one channel. An error means that some will be delivered again.
pub(crate) async fn acknowledge(ackers: Vec<Acker>) -> Result<(), BrokerError> {
    let Some(first) = ackers.first() else { return Ok(()) };
    let acks = first.acks.clone();
    let tags: Vec<u64> = ackers.iter().map(|acker| acker.tag).collect();
    let highest = tags.iter().copied().max().unwrap_or_default();
    let mut progress = acks.0.progress.subscribe();
    acks.settle(ackers).await?;
    // Older ones are mostly on their way too, and then their acknowledgement is also that of these, or its failure theirs.
    let covered = progress.wait_for(|progress| progress.oldest > highest || progress.broken);
    match timeout(GRACE, covered).await.map(|progress| progress.is_ok_and(|progress| progress.oldest > highest)) {
        Ok(true) => Ok(()),
        Ok(false) => Err(BrokerError::ChannelGone),
        Err(_) => acks.tell(tags).await,
    }
}

impl Default for Acks {
    /// Those of a new channel.
    fn default() -> Self {
        let state = State::default();
        let progress = watch::Sender::new(Progress { oldest: state.tags.oldest(), broken: false });
        Self(Arc::new(Shared { state: Mutex::new(state), progress }))
    }
}

impl Acks {
    /// The acker of a delivery of this channel.
    pub(crate) fn acker(&self, delivery: &Delivery) -> Acker {
        Acker { tag: delivery.delivery_tag, inner: delivery.acker.clone(), acks: self.clone() }
    }

    /// Notes what is settled, and acknowledges it if everything older is settled too.
    async fn settle(&self, ackers: Vec<Acker>) -> Result<(), BrokerError> {
        let mut state = self.0.state.lock().await;
        let tags: Vec<u64> = ackers.iter().map(|acker| acker.tag).collect();
        state.ackers.extend(ackers.into_iter().map(|acker| (acker.tag, acker.inner)));
        let Some(Run { last, .. }) = state.tags.settle(tags) else { return Ok(()) };
        let later = state.ackers.split_off(&(last + 1));
        let mut run = std::mem::replace(&mut state.ackers, later);
        let told = match run.pop_last() {
            Some((_, acker)) => send(&acker, true).await,
            None => Ok(()),
        };
        // Others wait for this frame: what they hear is what they count.
        self.0.progress.send_modify(|progress| match told {
            Ok(()) => progress.oldest = state.tags.oldest(),
            Err(_) => progress.broken = true,
        });
        told
    }

    /// Acknowledges those of `tags` that still wait, each on its own.
    async fn tell(&self, tags: Vec<u64>) -> Result<(), BrokerError> {
        let mut state = self.0.state.lock().await;
        let open = state.tags.tell(tags);
        let ackers: Vec<_> = open.iter().filter_map(|tag| state.ackers.remove(tag)).collect();
        join_all(ackers.iter().map(|acker| send(acker, false))).await.into_iter().collect()
    }

    /// Whether the broker was told of a tag.
    #[cfg(test)]
    pub(crate) async fn is_told(&self, tag: u64) -> bool {
        self.0.state.lock().await.tags.is_told(tag)
    }
}

async fn send(acker: &lapin::Acker, multiple: bool) -> Result<(), BrokerError> {
    match acker.ack(BasicAckOptions { multiple }).await {
        Ok(true) => Ok(()),
        // The client says "not done" without an error when the channel has ended before.
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

    /// lapin: an ack that is not sent because the channel has ended is no error.
    #[tokio::test]
    async fn an_ack_that_did_not_happen_is_an_error() {
        let (acks, first) = (Acks::default(), delivery(1));
        assert!(acks.acker(&first).ack().await.is_ok());
        // Used up behind our back, as all ackers are when the channel ends.
        let second = delivery(2);
        assert!(second.acker.ack(BasicAckOptions::default()).await.is_ok());
        assert!(matches!(acks.acker(&second).ack().await, Err(BrokerError::ChannelGone)));
    }

    #[tokio::test]
    async fn newer_ones_wait_a_little_for_older_ones_and_no_longer() {
        let acks = Acks::default();
        let [first, second] = [1, 2].map(delivery);
        let newer = tokio::spawn(acknowledge(vec![acks.acker(&second)]));
        // One thread: it runs until it waits, and its time is looked at only when this test waits.
        tokio::task::yield_now().await;
        assert!(!acks.is_told(2).await && !newer.is_finished());
        assert!(acks.acker(&first).ack().await.is_ok());
        assert!(newer.await.unwrap().is_ok());
        assert!(first.acker.usable() && !second.acker.usable(), "the newer one's frame was for both");
        assert!(acks.acker(&delivery(4)).ack().await.is_ok());
        assert!(acks.is_told(4).await && !acks.is_told(3).await);
    }

    /// They would be counted as acknowledged, and the broker delivers them again.
    #[tokio::test]
    async fn those_that_wait_for_a_frame_hear_that_it_did_not_leave() {
        let acks = Acks::default();
        let [first, second, third] = [1, 2, 3].map(delivery);
        let newer = tokio::spawn(acknowledge(vec![acks.acker(&third)]));
        tokio::task::yield_now().await;
        // The frame for all three is that of the newest: used up behind our back, as when the channel ends.
        assert!(third.acker.ack(BasicAckOptions::default()).await.is_ok());
        let both = acknowledge(vec![acks.acker(&first), acks.acker(&second)]).await;
        assert!(matches!(both, Err(BrokerError::ChannelGone)));
        assert!(matches!(newer.await.unwrap(), Err(BrokerError::ChannelGone)));
    }
}
