use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use super::*;
use crate::{
    amqp::BrokerError,
    config::Config,
    dead_letter::{Stall, Stuck},
    entry::{Entry, Reason, SizeLimit},
    metrics::{Cause, cause::OTHER},
    sink::{Probe, Verdict},
};
use proptest::prelude::*;
use tokio::time::timeout;

/// Long enough for a case that goes wrong to be told from one that is slow.
const PATIENCE: Duration = Duration::from_secs(20);

/// Every wait in the flow.
const MOMENT: Duration = Duration::from_millis(1);

/// What is said of one message each time that it is sent; whatever comes after that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Say {
    Retry,
    Lost,
    Poison,
    Stop,
}

/// A lane of few, a text of its own, and what is said of it.
type Drawn = (u8, String, Vec<Say>);

/// SQS and the dead-letter exchange in one, and the oracle: plain lists of what they were given.
#[derive(Debug)]
struct World {
    said: Mutex<Said>,
    stall: Stall,
}

#[derive(Debug, Default)]
struct Said {
    script: BTreeMap<String, Vec<Say>>,
    accepted: Vec<String>,
    buried: Vec<String>,
    unknown: Vec<String>,
    /// How often the next burial fails.
    failures: u8,
}

impl World {
    fn with<T>(&self, look: impl FnOnce(&mut Said) -> T) -> T {
        look(&mut self.said.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What may be, and in the end must be, told to the broker.
    fn settled(&self) -> BTreeSet<String> {
        self.with(|said| said.accepted.iter().chain(&said.buried).cloned().collect())
    }
}

impl Said {
    fn judge(&mut self, body: &str) -> Verdict {
        let Some(script) = self.script.get_mut(body) else {
            self.unknown.push(body.to_owned());
            return Verdict::Accepted;
        };
        let say = (!script.is_empty()).then(|| script.remove(0));
        match say {
            None => {
                self.accepted.push(body.to_owned());
                Verdict::Accepted
            }
            Some(Say::Retry) => Verdict::Retry { cause: Cause::new(OTHER, "later"), answered: Some(true) },
            Some(Say::Lost) => Verdict::Retry { cause: Cause::new(OTHER, "gone"), answered: Some(false) },
            Some(Say::Poison) => Verdict::Poison(Reason::Rejected("Bad".to_owned())),
            Some(Say::Stop) => Verdict::Stop(Stop("AccessDenied".to_owned())),
        }
    }
}

impl Sink for World {
    async fn probe(&self) -> Probe {
        Probe::Ready(None)
    }

    async fn send(&self, entries: &[&Entry]) -> Vec<Verdict> {
        tokio::task::yield_now().await;
        self.with(|said| entries.iter().map(|entry| said.judge(entry.body())).collect())
    }
}

impl PoisonSink for World {
    async fn publish(&self, poison: &Poison) -> Result<(), BrokerError> {
        self.with(|said| {
            said.failures = (said.failures + 1) % 3;
            if said.failures == 1 {
                return Err(BrokerError::Unconfirmed);
            }
            said.buried.push(String::from_utf8_lossy(&poison.body).into_owned());
            Ok(())
        })
    }

    fn stuck(&self) -> Stuck<'_> {
        self.stall.count()
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

/// The tags that the broker was told of, of those up to `last`.
async fn told(acks: &Acks, last: u64) -> BTreeSet<u64> {
    let mut told = BTreeSet::new();
    for tag in 1..=last {
        if acks.is_told(tag).await {
            told.insert(tag);
        }
    }
    told
}

/// Relays the rounds one after the other, and after each looks whether the broker was told what it must be told.
async fn relay(rounds: Vec<Vec<Drawn>>, fifo: bool) -> Result<(), TestCaseError> {
    let world = Arc::new(World { said: Mutex::default(), stall: Stall::new(String::new(), usize::MAX) });
    let mut flow = flow(&world, fifo);
    // The body of each tag.
    let mut bodies: Vec<String> = Vec::new();
    let mut stopped = false;
    for round in rounds {
        for (lane, text, script) in round {
            let body = format!("{} {text}", bodies.len());
            world.with(|said| said.script.insert(body.clone(), script));
            bodies.push(body.clone());
            let tag = bodies.len() as u64;
            flow.accept(
                Delivery::mock(tag, "".into(), lane.to_string().into(), false, body.into_bytes()),
                Note::default(),
            );
        }
        let last = bodies.len() as u64;
        let tags = |set: &BTreeSet<String>| (1..=last).filter(|tag| set.contains(&bodies[*tag as usize - 1])).collect();
        while (flow.is_sending() || !stopped) && !flow.is_idle() {
            if flow.advance().await.is_err() {
                stopped = true;
            }
            if stopped {
                flow.halt();
            }
            // Before the look at what may be: while this waits, more is settled.
            let told = told(&flow.acks, last).await;
            let may_be_told: BTreeSet<u64> = tags(&world.settled());
            prop_assert!(told.is_subset(&may_be_told), "told too early");
        }
        let (accepted, buried) = world.with(|said| (said.accepted.clone(), said.buried.clone()));
        let unique: BTreeSet<&String> = accepted.iter().chain(&buried).collect();
        prop_assert_eq!(unique.len(), accepted.len() + buried.len(), "sent or buried twice");
        prop_assert_eq!(world.with(|said| said.unknown.clone()), Vec::<String>::new(), "a body was changed");
        let told = told(&flow.acks, last).await;
        if stopped {
            // Who was on the way to its grave when SQS refused everything is delivered again.
            prop_assert!(tags(&accepted.into_iter().collect()).is_subset(&told), "accepted and not told");
            return Ok(());
        }
        prop_assert_eq!(told, (1..=last).collect::<BTreeSet<u64>>(), "accepted or buried, and not told");
        prop_assert_eq!(unique.len(), bodies.len(), "lost");
    }
    Ok(())
}

fn message() -> impl Strategy<Value = Drawn> {
    let again = prop::collection::vec(prop_oneof![Just(Say::Retry), Just(Say::Lost)], 0..4);
    let last = prop_oneof![12 => Just(None), 3 => Just(Some(Say::Poison)), 1 => Just(Some(Say::Stop))];
    let script = (again, last).prop_map(|(again, last)| again.into_iter().chain(last).collect());
    (0..4u8, "[a-zé\u{1F3A8}]{0,8}", script)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn exactly_what_was_accepted_or_buried_is_acknowledged_whatever_the_verdicts(
        rounds in prop::collection::vec(prop::collection::vec(message(), 0..30), 1..4),
        fifo: bool,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let relayed = runtime.block_on(async { timeout(PATIENCE, relay(rounds, fifo)).await });
        relayed.map_err(|_| TestCaseError::fail("a message is never settled"))??;
    }
}
