//! How each fault goes, step by step.
//!
//! Refuses to judge what comes of it, and leaves everything as it should be when it ends. What sleeps here is the fault.

use super::{Fault, Options, bridge::Bridge, publisher, publisher::Publishing, tally::Tally};
use crate::chance::Chance;
use crate::{
    broker::Broker,
    fault::{Network, Proxy},
    paths::RunDir,
    process::Process,
    sqs::{Sqs, Trouble},
};
use anyhow::{Context, Result, ensure};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Mutex, RwLock},
    time::sleep,
};

/// Later than the broker's patience in the fault that is about it.
const LATE: Duration = Duration::from_secs(6);
/// RabbitMQ's own default.
const WATERMARK: &str = "0.4";
/// Less memory than any node needs.
const NO_MEMORY: &str = "0.00001";
const CUTS: u32 = 3;
/// In the body of every message of the first group, and of no other.
const REFUSED: &str = "\"style_id\":0,";

const AT_BROKER: [Fault; 6] = [
    Fault::BrokerRestart,
    Fault::BrokerKill,
    Fault::BrokerCut,
    Fault::BrokerHalfOpen,
    Fault::BrokerSlow,
    Fault::BrokerBlocked,
];
const AT_SQS: [Fault; 8] = [
    Fault::SqsCut,
    Fault::SqsHalfOpen,
    Fault::SqsSlow,
    Fault::SqsThrottle,
    Fault::SqsThrottleEntries,
    Fault::Sqs500,
    Fault::SqsPartial,
    Fault::SqsLostResponse,
];

/// Everything that takes part in a run.
pub(super) struct Stage<'a> {
    pub(super) run: &'a RunDir,
    pub(super) broker: &'a RwLock<Broker>,
    pub(super) amqp: Proxy,
    pub(super) aws: Proxy,
    pub(super) sqs: Sqs,
    pub(super) bridge: Bridge,
    pub(super) process: Mutex<Process>,
    pub(super) publishing: Publishing,
    pub(super) tally: Arc<Tally>,
    pub(super) options: &'a Options,
}

impl Stage<'_> {
    /// Plays the fault of this run, from the moment that messages flow.
    pub(super) async fn fault(&self) -> Result<()> {
        let early = self.options.messages / 10;
        let mut watch = self.tally.watch();
        watch.wait_for(|progress| progress.confirmed >= early && progress.received > 0).await.context("books")?;
        match self.options.fault {
            Fault::Random => self.random().await,
            fault => self.one(fault, self.options.hold()).await,
        }
    }

    async fn one(&self, fault: Fault, hold: Duration) -> Result<()> {
        match fault {
            // The queue is replaced between two halves of the messages, not while they flow.
            Fault::None | Fault::Random | Fault::BrokerCancel => Ok(()),
            Fault::BrokerRestart => {
                let mut broker = self.broker.write().await;
                broker.stop().await?;
                broker.start_again(self.run).await
            }
            Fault::BrokerKill => {
                let mut broker = self.broker.write().await;
                broker.kill().await;
                broker.start_again(self.run).await
            }
            Fault::BrokerBlocked => {
                self.watermark(NO_MEMORY).await?;
                sleep(hold).await;
                self.watermark(WATERMARK).await
            }
            Fault::BrokerCut => {
                for _ in 0..CUTS {
                    self.amqp.cut();
                    sleep(hold / CUTS).await;
                }
                Ok(())
            }
            Fault::BrokerHalfOpen => network(&self.amqp, Network::Silent, hold).await,
            Fault::BrokerSlow => network(&self.amqp, Network::Slow, hold).await,
            Fault::BrokerAckTimeout => {
                self.sqs.set_latency(LATE);
                sleep(hold.max(LATE)).await;
                self.sqs.set_latency(Duration::from_millis(self.options.latency_ms));
                Ok(())
            }
            Fault::RelayKill => {
                for _ in 0..CUTS {
                    self.kill().await?;
                    sleep(hold / CUTS).await;
                }
                Ok(())
            }
            Fault::SqsCut => {
                self.aws.cut();
                network(&self.aws, Network::Refused, hold / 2).await?;
                self.aws.cut();
                Ok(())
            }
            Fault::SqsHalfOpen => network(&self.aws, Network::Silent, hold).await,
            Fault::SqsSlow => network(&self.aws, Network::Slow, hold).await,
            Fault::SqsThrottle => self.trouble(Trouble::throttle(), hold).await,
            Fault::Sqs500 => self.trouble(Trouble::internal(), hold).await,
            Fault::SqsPartial => self.trouble(Trouble::partial(), hold).await,
            Fault::SqsSenderFault => self.trouble(Trouble::sender_fault(REFUSED), hold).await,
            Fault::SqsThrottleEntries => self.trouble(Trouble::throttled_entries(), hold).await,
            Fault::SqsLostResponse => self.trouble(Trouble::lost_answers(self.options.seed), hold).await,
        }
    }

    /// One fault after the other on each side and the relay killed between them, all three at once.
    async fn random(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(self.options.seconds);
        let side = async |stream, faults: &[Fault]| {
            let mut chance = Chance::new(self.options.seed, stream);
            while Instant::now() < end {
                sleep(chance.millis(200, 3_000)).await;
                let (fault, hold) = (chance.of(faults), chance.millis(300, 4_000));
                self.one(fault, hold).await?;
            }
            anyhow::Ok(())
        };
        let kills = async {
            let mut chance = Chance::new(self.options.seed, 3);
            while Instant::now() < end {
                sleep(chance.millis(2_000, 8_000)).await;
                self.kill().await?;
            }
            Ok(())
        };
        tokio::try_join!(side(1, &AT_BROKER), side(2, &AT_SQS), kills).map(drop)
    }

    async fn kill(&self) -> Result<()> {
        let mut process = self.process.lock().await;
        ensure!(process.is_running(), process.fault("ended by itself"));
        process.kill().await;
        *process = self.bridge.start(self.run)?;
        Ok(())
    }

    async fn trouble(&self, trouble: Trouble, hold: Duration) -> Result<()> {
        self.sqs.set_trouble(Some(trouble));
        sleep(hold).await;
        self.sqs.set_trouble(None);
        Ok(())
    }

    async fn watermark(&self, fraction: &str) -> Result<()> {
        let broker = self.broker.read().await;
        broker.control(self.run, &["set_vm_memory_high_watermark", fraction]).await.map(drop)
    }

    /// Deletes the queue, which must hold nothing, and declares it anew.
    pub(super) async fn replace_queue(&self) -> Result<()> {
        let broker = self.broker.read().await;
        broker.control(self.run, &["delete_queue", &self.options.name, "--if-empty"]).await?;
        publisher::declare(&broker.url(), &self.options.name, self.options.queue_type.as_str()).await
    }
}

async fn network(proxy: &Proxy, network: Network, hold: Duration) -> Result<()> {
    proxy.set(network);
    sleep(hold).await;
    proxy.set(Network::Good);
    Ok(())
}
