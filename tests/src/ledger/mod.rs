//! The ledger: publishes numbered messages through a real broker and a real bridge into the SQS stand-in, breaks something
//! on the way, and reports what became of each message.

mod bridge;
mod options;
mod publisher;
mod scenarios;
mod tally;

pub use options::{BridgeKind, Options, QueueType, Scenario};
pub use publisher::Delay;
pub use tally::Sums;

use self::{bridge::Bridge, publisher::Publishing, scenarios::Run, tally::Tally};
use crate::{broker::Broker, paths::RunDir, sqs::Sqs, tcp_proxy::TcpProxy, wait};
use anyhow::{Context, Result, bail, ensure};
use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::{Mutex, RwLock};

/// How many messages wait for their confirmation together: few, so that a fault hits many windows.
const WINDOW: usize = 20;
const BENCH_WINDOW: usize = 2_000;
/// Acks must come within 3 s, and the broker checks every second.
const IMPATIENT: &str = "application:set_env(rabbit, consumer_timeout, 3000), \
                         application:set_env(rabbit, channel_tick_interval, 1000).";
/// Ra 2.0 of RabbitMQ 3.10 writes the name of a new quorum queue to disk within 3 minutes only. A broker killed before that
/// loses what it had confirmed. That is not the relay's loss, so the name is written at once.
const WRITE_NAMES: &str = "[dets:sync(Table) || Table <- dets:all()].";
/// For publishing the backlog of a bench.
const PREFILL: Duration = Duration::from_secs(600);

/// The messages before the timed ones, in a run at a steady rate.
const WARM_UP: u64 = 200;

/// The results of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// The fault.
    pub fault: Scenario,
    /// The seed of the random choices.
    pub seed: u64,
    /// The sums.
    pub sums: Sums,
    /// Send requests that SQS saw, refused ones included.
    pub requests: u64,
    /// SQS limits that the bridge violated.
    pub broken_limits: Vec<String>,
    /// Whether order had to be kept.
    pub fifo: bool,
    /// What stopped the run before its end.
    pub stopped_by: Option<String>,
    /// Speed and cost of a bench.
    pub cost: Option<Cost>,
    /// Latency at a steady rate.
    pub delay: Option<Delay>,
}

/// What a bridge used for its work.
#[derive(Debug, Clone, Copy)]
pub struct Cost {
    /// From the first arrival to the last.
    pub messages_a_second: f64,
    /// Processor time in user and kernel mode.
    pub cpu_us_a_message: f64,
    /// The most resident memory.
    pub peak_mib: f64,
}

/// Runs once. Runs that do not break the broker may share it, each with its own queue name.
///
/// # Errors
/// A part does not come up, or the bridge does not exit with 0. Losses are no error; the report has them.
pub async fn run(dir: &RunDir, broker: &RwLock<Broker>, options: &Options) -> Result<Report> {
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
    if options.fault == Scenario::BrokerAckTimeout {
        // Not in rabbitmq.conf: there the broker would check once a minute only, and only new channels take the setting.
        broker.read().await.control(dir, &["eval", IMPATIENT]).await?;
    }
    publisher::declare(&url, &options.name, options.queue_type.as_str()).await?;
    if options.queue_type == QueueType::Quorum {
        broker.read().await.control(dir, &["eval", WRITE_NAMES]).await?;
    }
    let window = if options.bench { BENCH_WINDOW } else { WINDOW };
    let (queue, groups, size) = (options.name.clone(), options.groups, options.size);
    let publishing = Publishing { url, queue, groups, size, window };
    let (amqp, aws) = (TcpProxy::start(target).await?, TcpProxy::start(sqs.addr()).await?);
    // Measurements do not go through the proxies.
    let (amqp_addr, aws_addr) =
        if options.bench || options.pace.is_some() { (target, sqs.addr()) } else { (amqp.addr(), aws.addr()) };
    let bridge = Bridge {
        kind: options.bridge,
        python: options.python.clone(),
        name: format!("bridge-{}", options.name),
        amqp_url: format!("{}?heartbeat={}", Broker::url_at(amqp_addr), options.heartbeat),
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
        stopped_by: None,
        cost: None,
        delay: None,
    };
    if options.bench {
        let filled = publishing.run(&tally, 0..options.messages, Duration::ZERO);
        wait::at_most("backlog", PREFILL, filled).await?;
    }
    let process = Mutex::new(bridge.start(dir)?);
    let run = Run { dir, broker, amqp, aws, sqs, bridge, process, publishing, tally, options };
    let played = match options.pace {
        Some(rate) => run.pace(rate).await.map(|delay| (None, Some(delay))),
        None if options.bench => run.bench().await.map(|cost| (Some(cost), None)),
        None => run.play().await.map(|()| (None, None)),
    };
    match played {
        Ok((cost, delay)) => (report.cost, report.delay) = (cost, delay),
        Err(err) => {
            let held = broker.read().await.depth(dir, &options.name).await;
            let held = held.map_or_else(|err| format!("{err:#}"), |held| held.to_string());
            let missing = run.tally.missing();
            report.stopped_by = Some(format!("{err:#}; missing: {missing:?}; messages in the queue: {held}"));
        }
    }
    report.sums = run.tally.sums();
    report.requests = run.sqs.requests();
    report.broken_limits = run.sqs.broken_limits();
    Ok(report)
}

impl Run<'_> {
    /// Publishes, plays the scenario, waits until all is settled, and ends the bridge.
    async fn play(&self) -> Result<()> {
        let (messages, span) = (self.options.messages, self.options.span());
        if self.options.fault == Scenario::BrokerCancel {
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
            let both = async { tokio::try_join!(publish, self.play_scenario()).map(drop) };
            wait::at_most("end of publishing and of the fault", within, both).await??;
        }
        self.settled(messages).await?;
        self.end().await
    }

    /// Waits until `count` numbers are confirmed and have arrived, and the queue has no message, ready or unacknowledged.
    async fn settled(&self, count: u64) -> Result<()> {
        let started = Instant::now();
        let dead_letters = self.watch_dead_letters();
        let mut watch = self.tally.watch();
        let arrived = watch.wait_for(|progress| progress.confirmed >= count && progress.outstanding == 0);
        tokio::select! {
            err = dead_letters => return Err(err),
            arrived = wait::at_most("arrival of every message", self.options.patience(), arrived) => {
                drop(arrived?.context("the tally is gone")?);
            }
        }
        let left = self.options.patience().saturating_sub(started.elapsed());
        let empty = async || {
            let broker = self.broker.read().await;
            matches!(broker.depth(self.dir, &self.options.name).await, Ok(0)).then_some(())
        };
        wait::until("empty queue", left, empty).await
    }

    async fn end(&self) -> Result<()> {
        bridge::end(&*self.process.lock().await).await?;
        match self.broker.read().await.depth(self.dir, &self.options.name).await? {
            0 => Ok(()),
            left => bail!("{left} messages came back when the bridge ended"),
        }
    }

    async fn bench(&self) -> Result<Cost> {
        let process = self.process.lock().await;
        let mut watch = self.tally.watch();
        let patience = self.options.patience().max(PREFILL);
        let first = watch.wait_for(|progress| progress.received > 0);
        drop(wait::at_most("first arrival", patience, first).await?.context("the tally is gone")?);
        let before = bridge::cpu_us(&process)?;
        let arrived = watch.wait_for(|progress| progress.received >= self.options.messages);
        drop(wait::at_most("arrival of every message", patience, arrived).await?.context("the tally is gone")?);
        let cost = Cost {
            messages_a_second: self.options.messages as f64 / self.tally.seconds(),
            cpu_us_a_message: (bridge::cpu_us(&process)? - before) as f64 / self.options.messages as f64,
            peak_mib: process.memory_kib("VmHWM")? as f64 / 1024.0,
        };
        drop(process);
        // The last arrival is seen before the bridge acknowledges it.
        self.settled(self.options.messages).await?;
        self.end().await?;
        Ok(cost)
    }

    /// Publishes `rate` messages per second and waits until all is settled. The first ones, which open connections, are not timed.
    async fn pace(&self, rate: u32) -> Result<Delay> {
        let all = self.options.messages;
        ensure!(all > WARM_UP, "--messages must be over {WARM_UP}, the first of which are not timed");
        self.publishing.run(&self.tally, 0..WARM_UP, Duration::ZERO).await;
        self.settled(WARM_UP).await?;
        self.tally.start_clock();
        let within = Duration::from_secs((all - WARM_UP) / u64::from(rate)) + self.options.patience();
        wait::at_most("end of publishing", within, self.publishing.steady(&self.tally, WARM_UP..all, rate)).await??;
        self.settled(all).await?;
        self.end().await?;
        Delay::of(self.tally.delays()).context("nothing was timed")
    }
}

impl Report {
    /// The broken promises of the bridge.
    pub fn violations(&self) -> Vec<String> {
        let Sums { lost, duplicated, reordered, foreign, .. } = self.sums;
        let mut violations: Vec<String> = self.stopped_by.iter().cloned().collect();
        violations.extend(self.broken_limits.iter().take(3).map(|limit| format!("broke a limit of SQS: {limit}")));
        for (bad, what) in [
            (lost > 0, "messages were lost"),
            (self.fifo && reordered > 0, "order was not kept inside a group"),
            (!self.fault.may_duplicate() && duplicated > 0, "messages were duplicated without need"),
            (foreign > 0, "messages arrived that nobody had published"),
        ] {
            violations.extend(bad.then(|| what.to_string()));
        }
        violations
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
