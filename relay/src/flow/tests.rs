use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use super::*;
use crate::{
    amqp::BrokerError,
    config::Config,
    dead_letter::{StuckGuard, StuckMessages},
    entry::{Entry, PoisonReason, SizeLimit},
    metrics::{RetryCause, cause::OTHER},
    sink::{Probe, Verdict},
};
use proptest::prelude::*;
use tokio::time::timeout;

/// Far longer than a slow case takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Every wait in the flow.
const MOMENT: Duration = Duration::from_millis(1);

/// The answer to one attempt for a message. After its last scripted answer it is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Retry,
    Lost,
    Poison,
    Stop,
}

/// A lane, a text and the scripted answers.
type Drawn = (u8, String, Vec<Answer>);

/// SQS and the dead-letter exchange, which record what they were given.
#[derive(Debug)]
struct World {
    record: Mutex<Record>,
    stuck: StuckMessages,
}

#[derive(Debug, Default)]
struct Record {
    script: BTreeMap<String, Vec<Answer>>,
    accepted: Vec<String>,
    dead_lettered: Vec<String>,
    unknown: Vec<String>,
    /// Counts publishes, of which some fail.
    failures: u8,
}

impl World {
    fn with<T>(&self, look: impl FnOnce(&mut Record) -> T) -> T {
        look(&mut self.record.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What may be, and in the end must be, acknowledged.
    fn settled(&self) -> BTreeSet<String> {
        self.with(|record| record.accepted.iter().chain(&record.dead_lettered).cloned().collect())
    }
}

impl Record {
    fn judge(&mut self, body: &str) -> Verdict {
        let Some(script) = self.script.get_mut(body) else {
            self.unknown.push(body.to_owned());
            return Verdict::Accepted;
        };
        let answer = (!script.is_empty()).then(|| script.remove(0));
        match answer {
            None => {
                self.accepted.push(body.to_owned());
                Verdict::Accepted
            }
            Some(Answer::Retry) => Verdict::Retry { cause: RetryCause::new(OTHER, "later"), answered: Some(true) },
            Some(Answer::Lost) => Verdict::Retry { cause: RetryCause::new(OTHER, "gone"), answered: Some(false) },
            Some(Answer::Poison) => Verdict::Poison(PoisonReason::Rejected("Bad".to_owned())),
            Some(Answer::Stop) => Verdict::Stop(Stop::of_sqs("AccessDenied")),
        }
    }
}

impl Sink for World {
    async fn probe(&self) -> Probe {
        Probe::Ready(None)
    }

    async fn send(&self, entries: &[&Entry]) -> Vec<Verdict> {
        tokio::task::yield_now().await;
        self.with(|record| entries.iter().map(|entry| record.judge(entry.body())).collect())
    }
}

impl PoisonSink for World {
    async fn publish(&self, poison: &Poison) -> Result<(), BrokerError> {
        self.with(|record| {
            record.failures = (record.failures + 1) % 3;
            if record.failures == 1 {
                return Err(BrokerError::Unconfirmed);
            }
            record.dead_lettered.push(String::from_utf8_lossy(&poison.body).into_owned());
            Ok(())
        })
    }

    fn stuck(&self) -> StuckGuard<'_> {
        self.stuck.count()
    }
}

fn flow(world: &Arc<World>, fifo: bool) -> Flow<World, World> {
    let queue = if fifo { "q.fifo" } else { "q" };
    let url = format!("--sqs-queue-url=http://h/{queue}");
    let config = Config::load(["relay", "--amqp-url=amqp://h", "--message-group-id=routing-key", &url]);
    let builder = EntryBuilder::new(&config.unwrap().unwrap(), SizeLimit::default());
    let options = FlowOptions { builder, linger: MOMENT, max_in_flight: 2, backoff: |_| MOMENT };
    let (sink, dead_letter) = (Arc::clone(world), Arc::clone(world));
    Flow::new(sink, dead_letter, Readiness::default(), Metrics::default(), Arc::new(options))
}

/// The acknowledged tags of those up to `last`.
async fn acked(acks: &ChannelAcks, last: u64) -> BTreeSet<u64> {
    let mut acked = BTreeSet::new();
    for tag in 1..=last {
        if acks.is_acked(tag).await {
            acked.insert(tag);
        }
    }
    acked
}

/// Relays the rounds one after the other, and checks the acknowledgements after each.
async fn relay(rounds: Vec<Vec<Drawn>>, fifo: bool) -> Result<(), TestCaseError> {
    let world = Arc::new(World { record: Mutex::default(), stuck: StuckMessages::new(String::new(), usize::MAX) });
    let mut flow = flow(&world, fifo);
    // The body of each tag.
    let mut bodies: Vec<String> = Vec::new();
    let mut stopped = false;
    for round in rounds {
        for (lane, text, script) in round {
            let body = format!("{} {text}", bodies.len());
            world.with(|record| record.script.insert(body.clone(), script));
            bodies.push(body.clone());
            let tag = bodies.len() as u64;
            flow.accept(
                Delivery::mock(tag, "".into(), lane.to_string().into(), false, body.into_bytes()),
                DeliveryNote::default(),
            );
        }
        let last = bodies.len() as u64;
        let tags = |set: &BTreeSet<String>| (1..=last).filter(|tag| set.contains(&bodies[*tag as usize - 1])).collect();
        while (flow.is_sending() || !stopped) && !flow.is_idle() {
            if flow.advance().await.is_err() {
                stopped = true;
            }
            if stopped {
                flow.discard_unsent();
            }
            // Read first: while this waits, more may be settled.
            let acked = acked(&flow.acks, last).await;
            let may_be_acked: BTreeSet<u64> = tags(&world.settled());
            prop_assert!(acked.is_subset(&may_be_acked), "acked too early");
        }
        let (accepted, dead_lettered) = world.with(|record| (record.accepted.clone(), record.dead_lettered.clone()));
        let unique: BTreeSet<&String> = accepted.iter().chain(&dead_lettered).collect();
        prop_assert_eq!(unique.len(), accepted.len() + dead_lettered.len(), "sent or dead-lettered twice");
        prop_assert_eq!(world.with(|record| record.unknown.clone()), Vec::<String>::new(), "a body was changed");
        let acked = acked(&flow.acks, last).await;
        if stopped {
            // A message on its way to the exchange when SQS refused everything is redelivered.
            prop_assert!(tags(&accepted.into_iter().collect()).is_subset(&acked), "accepted and not acked");
            return Ok(());
        }
        prop_assert_eq!(acked, (1..=last).collect::<BTreeSet<u64>>(), "accepted or dead-lettered, and not acked");
        prop_assert_eq!(unique.len(), bodies.len(), "lost");
    }
    Ok(())
}

fn message() -> impl Strategy<Value = Drawn> {
    let again = prop::collection::vec(prop_oneof![Just(Answer::Retry), Just(Answer::Lost)], 0..4);
    let last = prop_oneof![12 => Just(None), 3 => Just(Some(Answer::Poison)), 1 => Just(Some(Answer::Stop))];
    let script = (again, last).prop_map(|(again, last)| again.into_iter().chain(last).collect());
    (0..4u8, "[a-zé\u{1F3A8}]{0,8}", script)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn exactly_what_was_accepted_or_dead_lettered_is_acknowledged_whatever_the_verdicts(
        rounds in prop::collection::vec(prop::collection::vec(message(), 0..30), 1..4),
        fifo: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let relayed = runtime.block_on(async { timeout(PATIENCE, relay(rounds, fifo)).await });
        relayed.map_err(|_| TestCaseError::fail("a message is never settled"))??;
    }
}
