//! Runs one broker session after the other, until a signal comes or the broker or SQS refuses for good.
//!
//! After any other failure it reconnects, with a backoff.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    amqp::{Broker, BrokerError},
    backoff,
    config::Config,
    dead_letter::DeadLetterPublisher,
    entry_builder::EntryBuilder,
    error::{Error, Stop},
    flow::{Flow, FlowError, FlowOptions},
    health::{Readiness, Watched},
    metrics::Metrics,
    sink::{Probe, Sink},
    source::{Session, SessionEvent, Source},
};

/// After a session of this length the backoff starts again with the shortest wait.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// How often a quiet session is checked, in case the client did not report its end.
const CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How long a cancelled session may still settle batches in flight.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(5);
/// The part of the shutdown timeout that is kept for closing connections.
const CLOSE_RESERVE: Duration = Duration::from_secs(1);

/// Moves messages from a source to a sink.
#[derive(Debug)]
pub struct Bridge<S> {
    source: Source,
    queue: String,
    sink: Arc<S>,
    dead_letters: Arc<DeadLetterPublisher>,
    readiness: Readiness,
    metrics: Metrics,
    options: Arc<FlowOptions>,
    shutdown_timeout: Duration,
}

/// Why a session ended.
#[derive(Debug)]
enum SessionEnd {
    Shutdown,
    Cancelled,
    Broken(BrokerError),
    FlowError(FlowError),
}

impl<S: Sink> Bridge<S> {
    /// A bridge from `broker` to `sink`, as configured.
    pub fn new(config: &Config, broker: Broker, sink: S, Watched { readiness, metrics }: Watched) -> Self {
        let broker = Arc::new(broker);
        let options = FlowOptions {
            builder: EntryBuilder::new(config, sink.limit()),
            linger: config.linger(),
            max_in_flight: config.max_in_flight.into(),
            backoff: backoff::delay,
        };
        Self {
            source: Source::new(config, Arc::clone(&broker), &metrics),
            queue: config.queue.clone(),
            sink: Arc::new(sink),
            dead_letters: Arc::new(DeadLetterPublisher::new(config, broker)),
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
            match shutdown.run_until_cancelled(self.wait_for_sqs()).await {
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
            info!(amqp.queue = self.queue, "consuming");
            let ended = self.serve(session, shutdown).await;
            self.readiness.set_broker(false);
            if ended? {
                return Ok(());
            }
            failures = if opened.elapsed() >= STABLE_AFTER { 0 } else { failures };
            if shutdown.run_until_cancelled(back_off(&mut failures)).await.is_none() {
                return Ok(());
            }
        }
    }

    /// Waits for SQS before consuming: a wrong queue is reported at once, and while SQS is gone the broker keeps the
    /// messages.
    async fn wait_for_sqs(&self) -> Result<(), Stop> {
        if self.readiness.sqs() {
            return Ok(());
        }
        for attempt in 0.. {
            match self.sink.probe().await {
                Probe::Ready(_) => break,
                Probe::Stop(stop) => return Err(stop),
                Probe::Unreachable(cause) => {
                    let delay = backoff::delay(attempt);
                    warn!(cause, retry_ms = delay.as_millis(), "{} does not answer", self.sink.service());
                    sleep(delay).await;
                }
            }
        }
        self.readiness.note_sqs(true);
        Ok(())
    }

    /// Opens the next session, retrying without end. Only before the first session is a refusal an error: later it may
    /// be temporary, when the broker restarts or fails over.
    async fn open(&self, failures: &mut u32, consumed: bool) -> Result<Session, Error> {
        loop {
            match self.source.open().await {
                Ok(session) => return Ok(session),
                Err(err) if !consumed && err.is_refusal() => return Err(Error::BrokerRefused(err)),
                Err(err) => {
                    let (queue, attempt) = (&self.queue, *failures + 1);
                    warn!(amqp.queue = queue, error = %err, attempt, "cannot consume, trying again");
                }
            }
            back_off(failures).await;
        }
    }

    /// Serves one session to its end. Returns true after a shutdown.
    async fn serve(&self, mut session: Session, shutdown: &CancellationToken) -> Result<bool, Stop> {
        let (sink, dead_letters) = (Arc::clone(&self.sink), Arc::clone(&self.dead_letters));
        let (readiness, metrics) = (self.readiness.clone(), self.metrics.clone());
        let mut flow = Flow::new(sink, dead_letters, readiness, metrics, Arc::clone(&self.options));
        let end = pump(&mut session, &mut flow, shutdown).await;
        let deadline = Instant::now() + self.shutdown_timeout;
        match end {
            SessionEnd::Shutdown => {
                // Cancelled first: while the broker keeps delivering, the flow never becomes idle.
                session.cancel().await;
                let reserve = CLOSE_RESERVE.min(self.shutdown_timeout / 2);
                let drained = drain(&session, &mut flow, deadline - reserve).await;
                drop(flow);
                let _ = timeout_at(deadline, async {
                    session.close().await;
                    self.dead_letters.close().await;
                })
                .await;
                drained.map(|()| true)
            }
            SessionEnd::Cancelled => {
                warn!(amqp.queue = self.queue, "the broker cancelled the consumer");
                let drained = drain(&session, &mut flow, Instant::now() + SETTLE_TIMEOUT).await;
                drop(flow);
                session.close().await;
                drained.map(|()| false)
            }
            SessionEnd::Broken(err) => {
                warn!(amqp.queue = self.queue, error = %err, "the connection to the broker broke");
                Ok(false)
            }
            SessionEnd::FlowError(FlowError::JobFailed(err)) => {
                error!(error = %err, "a job failed, its messages will be delivered again");
                session.close().await;
                Ok(false)
            }
            SessionEnd::FlowError(FlowError::Stop(stop)) => {
                session.cancel().await;
                settle_in_flight(&mut flow, Instant::now() + SETTLE_TIMEOUT).await;
                drop(flow);
                session.close().await;
                Err(stop)
            }
        }
    }
}

/// Moves messages until something ends the session.
async fn pump<S: Sink>(session: &mut Session, flow: &mut Flow<S>, shutdown: &CancellationToken) -> SessionEnd {
    let mut check = interval(CHECK_INTERVAL);
    check.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return SessionEnd::Shutdown,
            advanced = flow.advance() => if let Err(err) = advanced {
                return SessionEnd::FlowError(err);
            },
            intake = session.next() => match intake {
                SessionEvent::Delivery(delivery, note) => flow.accept(*delivery, note),
                SessionEvent::Cancelled => return SessionEnd::Cancelled,
                SessionEvent::Broken(err) => return SessionEnd::Broken(err),
            },
            _ = check.tick() => if !session.is_open() {
                return SessionEnd::Broken(BrokerError::ChannelGone);
            },
        }
    }
}

/// Sends and settles what the flow holds, until it is idle, the connection breaks or the deadline passes.
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
                Ok(Err(FlowError::Stop(stop))) => {
                    settle_in_flight(flow, deadline).await;
                    return Err(stop);
                }
                Ok(Err(FlowError::JobFailed(err))) => {
                    error!(error = %err, "a job failed, its messages will be delivered again");
                }
                Err(_) => {
                    warn!("out of time, unsettled messages will be delivered again");
                    return Ok(());
                }
            },
            () = sleep(CHECK_INTERVAL) => {}
        }
    }
    Ok(())
}

/// Waits for the batches in flight, so that what SQS accepted is acknowledged and not sent twice.
async fn settle_in_flight<S: Sink>(flow: &mut Flow<S>, deadline: Instant) {
    flow.discard_unsent();
    while flow.is_sending() {
        if timeout_at(deadline, flow.advance()).await.is_err() {
            return;
        }
        flow.discard_unsent();
    }
}

/// Waits before the next attempt, and counts the failure.
async fn back_off(failures: &mut u32) {
    let delay = backoff::delay(*failures);
    *failures = failures.saturating_add(1);
    sleep(delay).await;
}
