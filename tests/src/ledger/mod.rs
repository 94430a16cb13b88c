//! The ledger: publishes numbered messages through a real broker and a real bridge into the SQS stand-in, breaks something
//! on the way, and says what became of each message.
//!
//! Refuses to look into the relay: it sees what goes in and what comes out.

mod bridge;
mod graves;
mod options;
mod pace;
mod publisher;
mod script;
mod tally;

pub use bridge::Kind;
pub use options::{Fault, Options, QueueType};
pub use pace::Delay;
pub use tally::Sums;

use self::{bridge::Bridge, publisher::Publishing, script::Stage, tally::Tally};
use crate::{broker::Broker, fault::Proxy, paths::RunDir, sqs::Sqs, wait};
use anyhow::{Context, Result, bail};
use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{Mutex, RwLock};

/// How many messages wait for their confirmation together: few while a fault is played, so that it hits many windows.
const WINDOW: usize = 20;
const BENCH_WINDOW: usize = 2_000;
/// Acks must come within 3 s, and the broker looks every second.
const IMPATIENT: &str = "application:set_env(rabbit, consumer_timeout, 3000), \
                         application:set_env(rabbit, channel_tick_interval, 1000).";
/// Ra 2.0 of RabbitMQ 3.10 writes the name of a new quorum queue to disk within 3 minutes only. Killed before, the broker
/// itself comes back without what it had confirmed: not the relay's loss, so the name is written at once.
const WRITE_NAMES: &str = "[dets:sync(Table) || Table <- dets:all()].";
/// To put a bench's backlog into the queue.
const PREFILL: Duration = Duration::from_secs(600);

/// What came out of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// The fault.
    pub fault: Fault,
    /// The seed of chance.
    pub seed: u64,
    /// The sums.
    pub sums: Sums,
    /// Requests to send that SQS saw, refused ones too.
    pub requests: u64,
    /// Limits of SQS that the bridge broke.
    pub broken_limits: Vec<String>,
    /// Whether order had to be kept.
    pub fifo: bool,
    /// What stopped the run before its end.
    pub trouble: Option<String>,
    /// Speed and cost, of a bench.
    pub cost: Option<Cost>,
    /// Time on the way, at a steady pace.
    pub delay: Option<Delay>,
}

/// What a bridge took for its work.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// From the first arrival to the last.
    pub messages_a_second: f64,
    /// Processor time in user and kernel mode.
    pub cpu_us_a_message: f64,
    /// The most resident memory.
    pub peak_mib: f64,
}

/// Runs once. The broker may be shared by runs that do not hit it, each with its own queue name.
///
/// # Errors
/// A part does not come up, or the bridge does not end in order. Losses are no error but in the report.
pub async fn run(run: &RunDir, broker: &RwLock<Broker>, options: &Options) -> Result<Report> {
    let tally = Arc::new(Tally::new(options.messages));
    let watcher = tally.clone();
    let suffix = if options.fifo { ".fifo" } else { "" };
    let watcher: crate::sqs::Watcher = Box::new(move |accepted| watcher.arrive(accepted.body));
    let sqs = Sqs::start(&format!("{}{suffix}", options.name), Some(watcher)).await?;
    sqs.set_latency(Duration::from_millis(options.latency_ms));
    let (url, target) = {
        let broker = broker.read().await;
        (broker.url(), broker.addr())
    };
    if options.fault == Fault::BrokerAckTimeout {
        // As rabbitmq.conf could not: the broker looks once a minute, and only new channels take the setting.
        broker.read().await.control(run, &["eval", IMPATIENT]).await?;
    }
    publisher::declare(&url, &options.name, options.queue_type.as_str()).await?;
    if options.queue_type == QueueType::Quorum {
        broker.read().await.control(run, &["eval", WRITE_NAMES]).await?;
    }
    let window = if options.bench { BENCH_WINDOW } else { WINDOW };
    let (queue, groups, size) = (options.name.clone(), options.groups, options.size);
    let publishing = Publishing { url, queue, groups, size, window };
    let (amqp, aws) = (Proxy::start(target).await?, Proxy::start(sqs.addr()).await?);
    // What is measured shall not pay for the proxies.
    let (amqp_addr, aws_addr) =
        if options.bench || options.pace.is_some() { (target, sqs.addr()) } else { (amqp.addr(), aws.addr()) };
    let bridge = Bridge {
        kind: options.bridge,
        python: options.python.clone(),
        name: format!("bridge-{}", options.name),
        amqp_url: format!("amqp://guest:guest@{amqp_addr}/%2f?heartbeat={}", options.heartbeat),
        amqp_queue: options.name.clone(),
        queue_type: options.queue_type,
        prefetch: options.prefetch,
        sqs_url: sqs.queue_url(aws_addr),
        fifo: options.fifo,
        linger_ms: options.linger_ms,
    };
    let mut report = Report {
        fault: options.fault,
        seed: options.seed,
        sums: Sums::default(),
        requests: 0,
        broken_limits: Vec::new(),
        fifo: options.fifo,
        trouble: None,
        cost: None,
        delay: None,
    };
    if options.bench {
        let filled = publishing.run(&tally, 0..options.messages, Duration::ZERO);
        wait::at_most("backlog", PREFILL, filled).await?;
    }
    let process = Mutex::new(bridge.start(run)?);
    let stage = Stage { run, broker, amqp, aws, sqs, bridge, process, publishing, tally, options };
    let played = match options.pace {
        Some(rate) => stage.pace(rate).await.map(|delay| (None, Some(delay))),
        None if options.bench => stage.bench().await.map(|cost| (Some(cost), None)),
        None => stage.play().await.map(|()| (None, None)),
    };
    match played {
        Ok((cost, delay)) => (report.cost, report.delay) = (cost, delay),
        Err(err) => {
            let held = broker.read().await.depth(run, &options.name).await;
            let held = held.map_or_else(|err| format!("{err:#}"), |held| held.to_string());
            let missing = stage.tally.missing();
            report.trouble = Some(format!("{err:#}; missing: {missing:?}; messages in the queue: {held}"));
        }
    }
    report.sums = stage.tally.sums();
    report.requests = stage.sqs.requests();
    report.broken_limits = stage.sqs.broken_limits();
    Ok(report)
}

impl Stage<'_> {
    /// Publishes, plays the fault, waits until all is settled, and ends the bridge.
    async fn play(&self) -> Result<()> {
        let (messages, span) = (self.options.messages, self.options.span());
        if self.options.fault == Fault::BrokerCancel {
            self.publishing.run(&self.tally, 0..messages / 2, Duration::ZERO).await;
            self.settled(messages / 2).await?;
            self.replace_queue().await?;
            self.publishing.run(&self.tally, messages / 2..messages, Duration::ZERO).await;
        } else {
            let publish = async {
                self.publishing.run(&self.tally, 0..messages, span).await;
                Ok(())
            };
            let within = span + self.options.patience();
            let both = async { tokio::try_join!(publish, self.fault()).map(drop) };
            wait::at_most("end of publishing and of the fault", within, both).await??;
        }
        self.settled(messages).await?;
        self.end().await
    }

    /// Waits until `count` numbers are confirmed and have arrived, and the queue holds nothing, acknowledged or not.
    async fn settled(&self, count: u64) -> Result<()> {
        let started = Instant::now();
        let graves = self.graves();
        let mut watch = self.tally.watch();
        let arrived = watch.wait_for(|progress| progress.confirmed >= count && progress.outstanding == 0);
        tokio::select! {
            err = graves => return Err(err),
            arrived = wait::at_most("arrival of every message", self.options.patience(), arrived) => {
                drop(arrived?.context("the books closed")?);
            }
        }
        let left = self.options.patience().saturating_sub(started.elapsed());
        let empty = async || {
            let broker = self.broker.read().await;
            matches!(broker.depth(self.run, &self.options.name).await, Ok(0)).then_some(())
        };
        wait::until("empty queue", left, empty).await
    }

    async fn end(&self) -> Result<()> {
        bridge::end(&*self.process.lock().await).await?;
        match self.broker.read().await.depth(self.run, &self.options.name).await? {
            0 => Ok(()),
            left => bail!("{left} messages came back when the bridge ended"),
        }
    }

    async fn bench(&self) -> Result<Cost> {
        let process = self.process.lock().await;
        let mut watch = self.tally.watch();
        let patience = self.options.patience().max(PREFILL);
        let first = watch.wait_for(|progress| progress.received > 0);
        drop(wait::at_most("first arrival", patience, first).await?.context("the books closed")?);
        let before = bridge::cpu_us(&process)?;
        let arrived = watch.wait_for(|progress| progress.received >= self.options.messages);
        drop(wait::at_most("arrival of every message", patience, arrived).await?.context("the books closed")?);
        let cost = Cost {
            messages_a_second: self.options.messages as f64 / self.tally.seconds(),
            cpu_us_a_message: (bridge::cpu_us(&process)? - before) as f64 / self.options.messages as f64,
            peak_mib: bridge::peak_mib(&process)?,
        };
        drop(process);
        // The last arrival is seen before its bridge can acknowledge it.
        self.settled(self.options.messages).await?;
        self.end().await?;
        Ok(cost)
    }
}

impl Report {
    /// What is wrong with it; nothing when the bridge kept its promises.
    pub fn faults(&self) -> Vec<String> {
        let Sums { lost, duplicated, reordered, foreign, .. } = self.sums;
        let mut faults: Vec<String> = self.trouble.iter().cloned().collect();
        faults.extend(self.broken_limits.iter().take(3).map(|limit| format!("broke a limit of SQS: {limit}")));
        for (bad, what) in [
            (lost > 0, "messages were lost"),
            (self.fifo && reordered > 0, "order was not kept inside a group"),
            (!self.fault.may_duplicate() && duplicated > 0, "messages were duplicated without need"),
            (foreign > 0, "messages arrived that nobody had published"),
        ] {
            faults.extend(bad.then(|| what.to_string()));
        }
        faults
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sums { attempted, confirmed, received, dead_lettered, lost, duplicated, reordered, .. } = self.sums;
        writeln!(f, "attempted: {attempted}\nconfirmed: {confirmed}\nreceived: {received}")?;
        writeln!(f, "dead-lettered: {dead_lettered}")?;
        write!(f, "lost: {lost}\nduplicated: {duplicated}\nreordered-in-group: {reordered}")?;
        if let Some(delay) = self.delay {
            for (name, time) in [("p50", delay.p50), ("p99", delay.p99), ("max", delay.max)] {
                write!(f, "\n{name}-ms: {:.1}", time.as_secs_f64() * 1_000.0)?;
            }
        }
        if let Some(cost) = self.cost {
            write!(f, "\nmessages/s: {:.0}", cost.messages_a_second)?;
            write!(f, "\ncpu-us/message: {:.1}\nrss-mib: {:.1}", cost.cpu_us_a_message, cost.peak_mib)?;
        }
        Ok(())
    }
}
