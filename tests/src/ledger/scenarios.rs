//! The fault scenarios step by step. Each repairs what it broke when it ends.

use super::{Options, Scenario, bridge::Bridge, publisher, publisher::Publishing, tally::Tally};
use crate::{
    broker::Broker,
    paths::RunDir,
    process::Process,
    random::Random,
    sqs::{Sqs, SqsFault},
    tcp_proxy::{Network, TcpProxy},
};
use anyhow::{Context, Error, Result, bail, ensure};
use futures_util::StreamExt;
use lapin::{
    Connection, ConnectionProperties,
    message::Delivery,
    options::BasicConsumeOptions,
    types::{AMQPValue, FieldTable},
};
use std::{
    convert::Infallible,
    future::pending,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Mutex, RwLock},
    time::sleep,
};

/// Later than the broker's consumer timeout in that scenario.
const LATE: Duration = Duration::from_secs(6);
/// RabbitMQ's own default.
const WATERMARK: &str = "0.4";
/// Less memory than any node needs.
const NO_MEMORY: &str = "0.00001";
const CUTS: u32 = 3;
/// In the body of every message of the first group, and of no other.
const REFUSED: &str = "\"style_id\":0,";

const REASON: &str = "x-relay-reason";
/// The only reason that the scenarios here can cause.
const REJECTED: &str = "rejected-by-sqs";

const AT_BROKER: [Scenario; 6] = [
    Scenario::BrokerRestart,
    Scenario::BrokerKill,
    Scenario::BrokerCut,
    Scenario::BrokerHalfOpen,
    Scenario::BrokerSlow,
    Scenario::BrokerBlocked,
];
const AT_SQS: [Scenario; 8] = [
    Scenario::SqsCut,
    Scenario::SqsHalfOpen,
    Scenario::SqsSlow,
    Scenario::SqsThrottle,
    Scenario::SqsThrottleEntries,
    Scenario::Sqs500,
    Scenario::SqsPartial,
    Scenario::SqsLostResponse,
];

/// Everything that takes part in a run.
pub(super) struct Run<'a> {
    pub(super) dir: &'a RunDir,
    pub(super) broker: &'a RwLock<Broker>,
    pub(super) amqp: TcpProxy,
    pub(super) aws: TcpProxy,
    pub(super) sqs: Sqs,
    pub(super) bridge: Bridge,
    pub(super) process: Mutex<Process>,
    pub(super) publishing: Publishing,
    pub(super) tally: Arc<Tally>,
    pub(super) options: &'a Options,
}

impl Run<'_> {
    /// Plays the scenario of this run as soon as messages flow.
    pub(super) async fn play_scenario(&self) -> Result<()> {
        let early = self.options.messages / 10;
        let mut watch = self.tally.watch();
        watch
            .wait_for(|progress| progress.confirmed >= early && progress.received > 0)
            .await
            .context("the tally is gone")?;
        match self.options.fault {
            Scenario::Random => self.random().await,
            scenario => self.play_one(scenario, self.options.hold()).await,
        }
    }

    async fn play_one(&self, scenario: Scenario, hold: Duration) -> Result<()> {
        match scenario {
            // For the last one the queue is replaced between two halves of the messages.
            Scenario::None | Scenario::Random | Scenario::BrokerCancel => Ok(()),
            Scenario::BrokerRestart => {
                let mut broker = self.broker.write().await;
                broker.stop().await?;
                broker.start_again(self.dir).await
            }
            Scenario::BrokerKill => {
                let mut broker = self.broker.write().await;
                broker.kill().await;
                broker.start_again(self.dir).await
            }
            Scenario::BrokerBlocked => {
                self.watermark(NO_MEMORY).await?;
                sleep(hold).await;
                self.watermark(WATERMARK).await
            }
            Scenario::BrokerCut => {
                for _ in 0..CUTS {
                    self.amqp.cut();
                    sleep(hold / CUTS).await;
                }
                Ok(())
            }
            Scenario::BrokerHalfOpen => network(&self.amqp, Network::Silent, hold).await,
            Scenario::BrokerSlow => network(&self.amqp, Network::Slow, hold).await,
            Scenario::BrokerAckTimeout => {
                self.sqs.set_latency(LATE);
                sleep(hold.max(LATE)).await;
                self.sqs.set_latency(Duration::from_millis(self.options.latency_ms));
                Ok(())
            }
            Scenario::RelayKill => {
                for _ in 0..CUTS {
                    self.kill().await?;
                    sleep(hold / CUTS).await;
                }
                Ok(())
            }
            Scenario::SqsCut => {
                self.aws.cut();
                network(&self.aws, Network::Refused, hold / 2).await?;
                self.aws.cut();
                Ok(())
            }
            Scenario::SqsHalfOpen => network(&self.aws, Network::Silent, hold).await,
            Scenario::SqsSlow => network(&self.aws, Network::Slow, hold).await,
            Scenario::SqsThrottle => self.sqs_fault(SqsFault::throttle(), hold).await,
            Scenario::Sqs500 => self.sqs_fault(SqsFault::internal(), hold).await,
            Scenario::SqsPartial => self.sqs_fault(SqsFault::partial(), hold).await,
            Scenario::SqsSenderFault => self.sqs_fault(SqsFault::sender_fault(REFUSED), hold).await,
            Scenario::SqsThrottleEntries => self.sqs_fault(SqsFault::throttled_entries(), hold).await,
            Scenario::SqsLostResponse => self.sqs_fault(SqsFault::lost_answers(self.options.seed), hold).await,
        }
    }

    /// One scenario after the other at the broker, the same at SQS, and the relay killed in between: all three at once.
    async fn random(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(self.options.seconds);
        let side = async |stream, scenarios: &[Scenario]| {
            let mut random = Random::new(self.options.seed, stream);
            while Instant::now() < end {
                sleep(random.millis(200, 3_000)).await;
                let (scenario, hold) = (random.choose(scenarios), random.millis(300, 4_000));
                self.play_one(scenario, hold).await?;
            }
            anyhow::Ok(())
        };
        let kills = async {
            let mut random = Random::new(self.options.seed, 3);
            while Instant::now() < end {
                sleep(random.millis(2_000, 8_000)).await;
                self.kill().await?;
            }
            Ok(())
        };
        tokio::try_join!(side(1, &AT_BROKER), side(2, &AT_SQS), kills).map(drop)
    }

    async fn kill(&self) -> Result<()> {
        let mut process = self.process.lock().await;
        ensure!(process.is_running(), process.error("ended by itself"));
        process.kill().await;
        *process = self.bridge.start(self.dir)?;
        Ok(())
    }

    async fn sqs_fault(&self, fault: SqsFault, hold: Duration) -> Result<()> {
        self.sqs.set_fault(Some(fault));
        sleep(hold).await;
        self.sqs.set_fault(None);
        Ok(())
    }

    async fn watermark(&self, fraction: &str) -> Result<()> {
        let broker = self.broker.read().await;
        broker.control(self.dir, &["set_vm_memory_high_watermark", fraction]).await.map(drop)
    }

    /// Deletes the queue, which must be empty, and declares it again.
    pub(super) async fn replace_queue(&self) -> Result<()> {
        let broker = self.broker.read().await;
        broker.control(self.dir, &["delete_queue", &self.options.name, "--if-empty"]).await?;
        publisher::declare(&broker.url(), &self.options.name, self.options.queue_type.as_str()).await
    }
}

async fn network(proxy: &TcpProxy, network: Network, hold: Duration) -> Result<()> {
    proxy.set(network);
    sleep(hold).await;
    proxy.set(Network::Good);
    Ok(())
}

impl Run<'_> {
    /// Consumes the dead-letter queue and notes its messages; ends only with an error. Only for the scenario that may cause them: in
    /// others a dead letter counts as lost.
    pub(super) async fn watch_dead_letters(&self) -> Error {
        if self.options.fault != Scenario::SqsSenderFault {
            return pending().await;
        }
        match self.consume_dead_letters().await {
            Ok(never) => match never {},
            Err(err) => err.context("dead-letter queue"),
        }
    }

    async fn consume_dead_letters(&self) -> Result<Infallible> {
        let connection = Connection::connect(&self.publishing.url, ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let queue = format!("{}.dead-letter", self.options.name);
        let options = BasicConsumeOptions { no_ack: true, ..Default::default() };
        let mut letters =
            channel.basic_consume(queue.as_str().into(), "ledger".into(), options, FieldTable::default()).await?;
        while let Some(letter) = letters.next().await {
            let letter = letter?;
            ensure!(is_rejected(&letter), "a letter without its reason");
            self.tally.dead_letter(std::str::from_utf8(&letter.data).context("a letter that is no text")?);
        }
        bail!("the consumer was cancelled")
    }
}

fn is_rejected(letter: &Delivery) -> bool {
    let headers = letter.properties.headers().as_ref();
    let reason = headers.and_then(|headers| headers.inner().get(REASON));
    matches!(reason, Some(AMQPValue::LongString(text)) if text.as_bytes() == REJECTED.as_bytes())
}
