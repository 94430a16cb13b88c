//! The life of the relay: one session after the other, until a signal or a refusal for good.
//!
//! Whatever the broker does, the bridge comes back, and never in a tight loop.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    amqp::{Broker, BrokerError},
    backoff,
    config::Config,
    dead_letter::DeadLetter,
    entry_builder::EntryBuilder,
    error::{Error, Stop},
    flow::{Flow, FlowOptions, Halt},
    health::Readiness,
    metrics::Metrics,
    sink::{Probe, Sink},
    source::{Intake, Session, Source},
};

/// A session that lasted this long was a good one: the next failure starts with the shortest wait again.
const STEADY: Duration = Duration::from_secs(10);
/// How often a quiet session is looked at, in case its end was never told.
const WATCH: Duration = Duration::from_secs(5);
/// How long a cancelled session may still settle what is on its way.
const SETTLE: Duration = Duration::from_secs(5);
/// Kept back from the shutdown timeout to close the connections.
const CLOSE_RESERVE: Duration = Duration::from_secs(1);

/// Ties a source to a sink.
#[derive(Debug)]
pub struct Bridge<S> {
    source: Source,
    sink: Arc<S>,
    dead_letter: Arc<DeadLetter>,
    readiness: Readiness,
    metrics: Metrics,
    options: Arc<FlowOptions>,
    shutdown_timeout: Duration,
}

/// Why a session ended.
#[derive(Debug)]
enum End {
    Shutdown,
    Cancelled,
    Broken(BrokerError),
    Halt(Halt),
}

impl<S: Sink> Bridge<S> {
    /// A bridge as configured, to `broker`.
    pub fn new(config: &Config, broker: Broker, sink: S, readiness: Readiness, metrics: Metrics) -> Self {
        let broker = Arc::new(broker);
        let options = FlowOptions {
            builder: EntryBuilder::new(config, sink.limit()),
            linger: config.linger(),
            max_in_flight: config.max_in_flight.into(),
            backoff: backoff::delay,
        };
        Self {
            source: Source::new(config, Arc::clone(&broker), &metrics),
            sink: Arc::new(sink),
            dead_letter: Arc::new(DeadLetter::new(config, broker)),
            readiness,
            metrics,
            options: Arc::new(options),
            shutdown_timeout: config.shutdown_timeout(),
        }
    }

    /// Relays until `shutdown` is cancelled, SQS refuses for good, or the broker refuses the first session.
    pub async fn run(&self, shutdown: &CancellationToken) -> Result<(), Error> {
        let mut failures = 0;
        let mut consumed = false;
        loop {
            match shutdown.run_until_cancelled(self.await_sqs()).await {
                None => return Ok(()),
                Some(answer) => answer?,
            }
            let Some(session) = shutdown.run_until_cancelled(self.open(&mut failures, consumed)).await else {
                return Ok(());
            };
            let session = session?;
            consumed = true;
            let opened = Instant::now();
            self.readiness.set_broker(true);
            self.metrics.consuming();
            info!("consuming");
            let ended = self.serve(session, shutdown).await;
            self.readiness.set_broker(false);
            if ended? {
                return Ok(());
            }
            failures = if opened.elapsed() >= STEADY { 0 } else { failures };
            if shutdown.run_until_cancelled(rest(&mut failures)).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Waits for SQS before messages are taken: a wrong queue is told at once, and while SQS is gone messages are better
    /// kept by the broker.
    async fn await_sqs(&self) -> Result<(), Stop> {
        if self.readiness.sqs() {
            return Ok(());
        }
        for attempt in 0.. {
            match self.sink.probe().await {
                Probe::Ready(_) => break,
                Probe::Stop(stop) => return Err(stop),
                Probe::Unreachable(cause) => {
                    let delay = backoff::delay(attempt);
                    warn!(cause, retry_ms = delay.as_millis(), "SQS does not answer");
                    sleep(delay).await;
                }
            }
        }
        self.readiness.note_sqs(true);
        Ok(())
    }

    /// Opens the next session, however long that takes. A refusal ends the first one: then somebody is looking.
    /// Later it is what a broker says in the middle of a restart or a failover, and it passes.
    async fn open(&self, failures: &mut u32, consumed: bool) -> Result<Session, Error> {
        loop {
            match self.source.open().await {
                Ok(session) => return Ok(session),
                Err(err) if !consumed && err.is_refusal() => return Err(Error::Refused(err)),
                Err(err) => warn!(error = %err, attempt = *failures + 1, "cannot consume, trying again"),
            }
            rest(failures).await;
        }
    }

    /// Serves one session to its end; true when it was the last.
    async fn serve(&self, mut session: Session, shutdown: &CancellationToken) -> Result<bool, Stop> {
        let (sink, dead_letter) = (Arc::clone(&self.sink), Arc::clone(&self.dead_letter));
        let (readiness, metrics) = (self.readiness.clone(), self.metrics.clone());
        let mut flow = Flow::new(sink, dead_letter, readiness, metrics, Arc::clone(&self.options));
        let end = pump(&mut session, &mut flow, shutdown).await;
        let deadline = Instant::now() + self.shutdown_timeout;
        match end {
            End::Shutdown => {
                // Cancelled first: while the broker delivers on, the flow would never run empty.
                session.cancel().await;
                let reserve = CLOSE_RESERVE.min(self.shutdown_timeout / 2);
                let drained = drain(&session, &mut flow, deadline - reserve).await;
                drop(flow);
                let _ = timeout_at(deadline, async {
                    session.close().await;
                    self.dead_letter.close().await;
                })
                .await;
                drained.map(|()| true)
            }
            End::Cancelled => {
                warn!("the broker cancelled the consumer");
                let drained = drain(&session, &mut flow, Instant::now() + SETTLE).await;
                drop(flow);
                session.close().await;
                drained.map(|()| false)
            }
            End::Broken(err) => {
                warn!(error = %err, "the connection to the broker broke");
                Ok(false)
            }
            End::Halt(Halt::Lost(err)) => {
                error!(error = %err, "a job failed, its messages will be delivered again");
                session.close().await;
                Ok(false)
            }
            End::Halt(Halt::Stop(stop)) => {
                session.cancel().await;
                finish(&mut flow, Instant::now() + SETTLE).await;
                drop(flow);
                session.close().await;
                Err(stop)
            }
        }
    }
}

/// Moves messages until something ends the session.
async fn pump<S: Sink>(session: &mut Session, flow: &mut Flow<S>, shutdown: &CancellationToken) -> End {
    let mut watch = interval(WATCH);
    watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return End::Shutdown,
            advanced = flow.advance() => if let Err(halt) = advanced {
                return End::Halt(halt);
            },
            intake = session.next() => match intake {
                Intake::Delivery(delivery, note) => flow.accept(*delivery, note),
                Intake::Cancelled => return End::Cancelled,
                Intake::Broken(err) => return End::Broken(err),
            },
            _ = watch.tick() => if !session.is_open() {
                return End::Broken(BrokerError::ChannelGone);
            },
        }
    }
}

/// Sends and settles what the flow holds, for as long as that is of any use.
async fn drain<S: Sink>(session: &Session, flow: &mut Flow<S>, deadline: Instant) -> Result<(), Stop> {
    flow.flush();
    while !flow.is_idle() {
        if !session.is_open() {
            warn!("the connection broke, unsettled messages will be delivered again");
            return Ok(());
        }
        tokio::select! {
            settled = timeout_at(deadline, flow.advance()) => match settled {
                Ok(Ok(())) => flow.flush(),
                Ok(Err(Halt::Stop(stop))) => {
                    finish(flow, deadline).await;
                    return Err(stop);
                }
                Ok(Err(Halt::Lost(err))) => error!(error = %err, "a job failed, its messages will be delivered again"),
                Err(_) => {
                    warn!("out of time, unsettled messages will be delivered again");
                    return Ok(());
                }
            },
            () = sleep(WATCH) => {}
        }
    }
    Ok(())
}

/// Lets batches that are on their way come back, so that what SQS took is acknowledged and not sent twice.
async fn finish<S: Sink>(flow: &mut Flow<S>, deadline: Instant) {
    flow.halt();
    while flow.is_sending() {
        if timeout_at(deadline, flow.advance()).await.is_err() {
            return;
        }
        flow.halt();
    }
}

/// Waits before the next try.
async fn rest(failures: &mut u32) {
    let delay = backoff::delay(*failures);
    *failures = failures.saturating_add(1);
    sleep(delay).await;
}
