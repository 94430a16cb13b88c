//! The two jobs of a flow: send one batch and settle its messages, and dead-letter one poison message.
//!
//! A message is acknowledged only after the verdict on that message.

use tokio::time::{Instant, sleep};
use tracing::{debug, warn};

use crate::{
    acker,
    backoff::Backoff,
    dead_letter::PoisonSink,
    entry::Entry,
    entry_builder::EntryBuilder,
    error::Stop,
    message::{DeliveryContext, Message, Poison},
    metrics::{RetryCause, Unacked},
    sink::{Sink, Verdict},
};

/// The result of one batch.
#[derive(Debug)]
pub(super) struct BatchOutcome {
    /// To acknowledge.
    pub(super) accepted: Vec<DeliveryContext>,
    /// To retry, each with the cause.
    pub(super) retry: Vec<(Message, RetryCause)>,
    /// To send again at once, now with the body in S3.
    pub(super) offloaded: Vec<Message>,
    /// To dead-letter.
    pub(super) poison: Vec<Poison>,
    /// The lanes of accepted and poison messages: the next message of each may be sent.
    pub(super) lanes: Vec<String>,
    /// SQS refuses every message. They stay unacknowledged.
    pub(super) stop: Option<Stop>,
    /// Whether SQS answered; `None` if no request was made.
    pub(super) answered: Option<bool>,
}

/// Sends one batch and settles each message by its verdict.
pub(super) async fn dispatch<S: Sink>(sink: &S, batch: Vec<Message>, builder: &EntryBuilder) -> BatchOutcome {
    let started = Instant::now();
    let entries: Vec<&Entry> = batch.iter().map(|message| &message.entry).collect();
    let verdicts = sink.send(&entries).await;
    debug_assert_eq!(verdicts.len(), batch.len(), "one verdict per entry");
    let mut outcome = BatchOutcome {
        accepted: vec![],
        retry: vec![],
        offloaded: vec![],
        poison: vec![],
        lanes: vec![],
        stop: None,
        answered: None,
    };
    for (mut message, verdict) in batch.into_iter().zip(verdicts) {
        let answered = if let Verdict::Retry { answered, .. } = &verdict { *answered } else { Some(true) };
        outcome.answered = outcome.answered.into_iter().chain(answered).reduce(|all, one| all && one);
        match verdict {
            Verdict::Accepted => {
                outcome.lanes.extend(message.entry.lane().map(str::to_owned));
                message.delivery.unacked.sent();
                outcome.accepted.push(message.delivery);
            }
            Verdict::Retry { cause, .. } => {
                message.delivery.unacked.retried(&cause);
                message.attempts = message.attempts.saturating_add(1);
                outcome.retry.push((message, cause));
            }
            Verdict::Poison(reason) => match builder.offload(message.entry, &reason) {
                // It still holds its lane.
                Ok(entry) => outcome.offloaded.push(Message { entry, ..message }),
                Err(entry) => {
                    outcome.lanes.extend(entry.lane().map(str::to_owned));
                    outcome.poison.push(Message { entry: *entry, ..message }.into_poison(reason));
                }
            },
            Verdict::Stop(stop) => outcome.stop = Some(stop),
        }
    }
    debug!(accepted = outcome.accepted.len(), duration_ms = started.elapsed().as_millis(), "batch sent");
    outcome
}

/// Publishes a poison message to the dead-letter exchange, retrying without end, and then acknowledges it.
pub(super) async fn dead_letter<D: PoisonSink>(publisher: &D, poison: Poison, backoff: Backoff) {
    let mut stuck = None;
    for attempt in 0.. {
        let Err(err) = publisher.publish(&poison).await else { break };
        stuck.get_or_insert_with(|| publisher.stuck());
        let delay = backoff(attempt);
        warn!(
            error = %err,
            reason = poison.reason.as_str(),
            retry_ms = delay.as_millis(),
            "not dead-lettered, the message stays unacknowledged"
        );
        sleep(delay).await;
    }
    warn!(reason = poison.reason.as_str(), detail = %poison.reason, "dead-lettered");
    poison.delivery.unacked.dead_lettered(&poison.reason);
    acknowledge(vec![poison.delivery]).await;
}

/// Acknowledges messages. After a failure they are redelivered: duplicates, but no loss.
pub(super) async fn acknowledge(deliveries: Vec<DeliveryContext>) {
    let messages = deliveries.len();
    let (ackers, unacked): (_, Vec<_>) =
        deliveries.into_iter().map(|delivery| (delivery.acker, delivery.unacked)).unzip();
    match acker::acknowledge(ackers).await {
        Ok(()) => unacked.into_iter().for_each(Unacked::acked),
        Err(error) => warn!(messages, %error, "accepted but not acknowledged, will be delivered again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        acker::ChannelAcks,
        entry::{EntryIds, PoisonReason},
        metrics::Metrics,
        metrics::cause::OTHER,
        sink::Probe,
    };

    /// Gives each entry the verdict that its body names.
    struct Judge;

    impl Sink for Judge {
        async fn probe(&self) -> Probe {
            Probe::Ready(None)
        }

        async fn send(&self, entries: &[&Entry]) -> Vec<Verdict> {
            let judge = |entry: &&Entry| match entry.body() {
                "retry" => Verdict::Retry { cause: RetryCause::new(OTHER, "later"), answered: Some(true) },
                "lost" => Verdict::Retry { cause: RetryCause::new(OTHER, "gone"), answered: Some(false) },
                "unstored" => Verdict::Retry { cause: RetryCause::new(OTHER, "no bucket"), answered: None },
                "poison" => Verdict::Poison(PoisonReason::Rejected("Bad".to_owned())),
                "stop" => Verdict::Stop(Stop::of_sqs("AccessDenied")),
                _ => Verdict::Accepted,
            };
            entries.iter().map(judge).collect()
        }
    }

    fn batch(acks: &ChannelAcks, bodies: &[&str]) -> Vec<Message> {
        let deliver = |(tag, body): (u64, &&str)| {
            let delivery = lapin::message::Delivery::mock(tag, "".into(), "".into(), false, body.as_bytes().to_vec());
            let mut message =
                Message::from_delivery(delivery, None, acks, &Metrics::default(), &EntryBuilder::default()).unwrap();
            let ids = EntryIds::Fifo { group: body.to_string(), deduplication: tag.to_string() };
            message.entry = message.entry.with_ids(ids);
            message
        };
        (1..).zip(bodies).map(deliver).collect()
    }

    #[tokio::test]
    async fn only_what_was_accepted_is_acknowledged() {
        for (bodies, acked, retried, poisoned, stopped, answered) in [
            (vec!["ok"], vec![true], vec![], vec![], false, Some(true)),
            (vec!["ok", "retry", "ok"], vec![true, false, true], vec!["retry"], vec![], false, Some(true)),
            (vec!["lost", "lost"], vec![false, false], vec!["lost", "lost"], vec![], false, Some(false)),
            (vec!["lost", "ok"], vec![false, true], vec!["lost"], vec![], false, Some(false)),
            (vec!["unstored", "ok"], vec![false, true], vec!["unstored"], vec![], false, Some(true)),
            (vec!["unstored"], vec![false], vec!["unstored"], vec![], false, None),
            (vec!["poison", "ok"], vec![false, true], vec![], vec!["poison"], false, Some(true)),
            (vec!["stop", "ok", "retry"], vec![false, true, false], vec!["retry"], vec![], true, Some(true)),
        ] {
            let acks = ChannelAcks::default();
            let outcome = dispatch(&Judge, batch(&acks, &bodies), &EntryBuilder::default()).await;
            acknowledge(outcome.accepted).await;
            for (tag, acked) in (1..).zip(acked) {
                assert_eq!(acks.is_acked(tag).await, acked, "{tag} of {bodies:?}");
            }
            let left: Vec<&str> = bodies.iter().copied().filter(|body| matches!(*body, "ok" | "poison")).collect();
            assert_eq!(outcome.lanes, left, "a retry keeps its lane: {bodies:?}");
            let bodies_again: Vec<&str> = outcome.retry.iter().map(|(message, _)| message.entry.body()).collect();
            assert_eq!(bodies_again, retried, "a retry keeps its body");
            assert!(outcome.retry.iter().all(|(message, _)| message.attempts == 1));
            let dead_lettered: Vec<Vec<u8>> = outcome.poison.into_iter().map(|poison| poison.body).collect();
            assert_eq!(dead_lettered, poisoned.iter().map(|body| body.as_bytes()).collect::<Vec<_>>());
            assert_eq!((outcome.stop.is_some(), outcome.answered), (stopped, answered), "{bodies:?}");
        }
    }
}
