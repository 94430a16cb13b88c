//! One task from start to end: parse, fetch the LoRAs, paint, store, tell. Function and worker both run it.

mod commission;
mod faults;
mod painting;

use crate::{
    claim::Claims,
    config::{ErrorCodes, PictureConfig, ServiceConfig, WorkConfig},
    failure::{Failure, Fault, GENERATION_FAILED},
    gate::Gate,
    metrics::Metrics,
    pace::Times,
    payload::Pointer,
    picture::Credential,
    report::{Ending, Order, Report},
    secrets::Secrets,
    startup::{LoadError, Opening},
    store::Store,
    task::{BadTask, Task},
    trace::{self, Carrier},
    webhook::{Backend, Subject, WebhookError},
};
use aws_config::SdkConfig;
use futures_util::{FutureExt, future::BoxFuture};
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tracing::{Instrument, info, warn};

/// How long a message rests after a fault, for each time it was received: a fault gets time to pass.
const REST: Duration = Duration::from_secs(5);

/// A message as it came from the queue.
#[derive(Debug, Clone)]
pub struct Message {
    /// The body.
    pub body: String,
    /// The queue's id, if it says so.
    pub id: Option<String>,
    /// The trace that it belongs to.
    pub carrier: Carrier,
    /// How often the queue has handed it out, this time included; 1 if the queue did not say.
    pub receive_count: u32,
    /// When the invocation that brought it ends; `None` if there is no such limit.
    pub deadline: Option<Instant>,
    /// When the queue got it, if it says so.
    pub sent_at: Option<SystemTime>,
}

/// What becomes of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done with: painted, or failed for good and the backend knows, or does not want to know.
    Consumed,
    /// Back to the queue, to be tried again or dead-lettered; to become visible again after this time.
    GivenBack(Duration),
}

/// Everything a task needs. Shared by all tasks of a process.
#[derive(Clone)]
pub struct Workshop {
    opening: Opening,
    store: Arc<Store>,
    backend: Backend,
    gate: Gate,
    claims: Option<Claims>,
    times: Times,
    metrics: Metrics,
    work: WorkConfig,
    file: PictureConfig,
    credential: Option<Arc<Credential>>,
}

impl Workshop {
    /// Begins to load the model and sets up the clients.
    ///
    /// # Errors
    /// A secret that cannot be read, a certificate that cannot sign pictures, or no TLS.
    pub async fn open(config: &ServiceConfig, aws: &SdkConfig) -> anyhow::Result<Self> {
        let store = Store::new(&config.store, aws);
        let metrics = Metrics::new(store.tally());
        // Reading secrets takes time that the model needs anyway.
        let most = (config.work.batch > 0).then_some(config.work.batch.into());
        let opening = Opening::begin(&config.model, most, metrics.clone());
        let secrets = Secrets::obtain(&config.secrets, aws).await?;
        let stamp = config.secrets.credential.files.credential_time_stamp_url.as_ref();
        let pems = secrets.credential.as_ref();
        let credential = pems.map(|(certificate, key)| Credential::open(certificate, key, stamp)).transpose()?;
        let gate = Gate::new(&config.safety);
        let lease = Duration::from_secs(config.work.claim_lease.into());
        Ok(Self {
            opening,
            claims: (!lease.is_zero()).then(|| store.claims(lease)),
            store: Arc::new(store),
            backend: Backend::new(secrets, gate.guard().clone())?,
            gate,
            times: Times::default(),
            metrics,
            work: config.work.clone(),
            file: config.picture,
            credential: credential.map(Arc::new),
        })
    }

    /// Waits until the model is loaded.
    ///
    /// # Errors
    /// A model folder that cannot be used.
    pub async fn ready(&self) -> Result<(), LoadError> {
        self.opening.painter().await.map(|_| ())
    }

    /// Waits for what makes painting impossible for good: a model that cannot be loaded, a GPU that is lost.
    pub async fn broken(&self) -> LoadError {
        self.opening.broken().await
    }

    /// Handles one message to its end. Never fails and never panics: every fault becomes an outcome.
    ///
    /// Boxed, because the futures of the AWS clients nest too deep for the compiler otherwise.
    pub fn handle<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Outcome> {
        self.handle_in_span(message).boxed()
    }

    /// What was measured so far.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    async fn handle_in_span(&self, message: &Message) -> Outcome {
        self.opening.note_request();
        let span = trace::task(message);
        async {
            let (started, _in_work) = (Instant::now(), self.metrics.begin());
            let mut report = Report { receive_count: message.receive_count, ..Report::default() };
            // A clock that is behind SQS' says nothing.
            report.queue_age = message.sent_at.and_then(|sent_at| SystemTime::now().duration_since(sent_at).ok());
            let outcome = self.work_on(message, &mut report).await;
            report.total = started.elapsed();
            report.gpu_memory = self.metrics.memory();
            let span = tracing::Span::current();
            report.trace_id = trace::id(&span, message);
            trace::end(&span, &report);
            report.log();
            self.metrics.note(&report);
            if self.work.embedded_metrics {
                println!("{}", report.embedded_metrics());
            }
            outcome
        }
        .instrument(span)
        .await
    }

    async fn work_on(&self, message: &Message, report: &mut Report) -> Outcome {
        let fetched = match Pointer::parse(&message.body) {
            None => None,
            Some(pointer) => match self.store.payload(&pointer).await {
                Ok(body) => Some(body),
                Err(error) => {
                    warn!(%error, "no body, and so no backend to tell: given back to the queue");
                    (report.ending, report.fault) = (Ending::GivenBack, Some(Fault::Storage));
                    return message.given_back();
                }
            },
        };
        let parsed = Task::parse(fetched.as_ref().unwrap_or(&message.body));
        match self.gate.admit(parsed).await {
            Ok(task) => {
                tracing::Span::current().record("generation_id", task.generation_id);
                (report.generation_id, report.order) = (Some(task.generation_id), Some(Order::from(&task)));
                self.run(&task, message, report).await
            }
            Err(bad) => self.refuse(bad, message, report).await,
        }
    }

    /// A message that is no task: told if anybody can be told, else left for the dead-letter queue.
    async fn refuse(&self, bad: Box<BadTask>, message: &Message, report: &mut Report) -> Outcome {
        tracing::Span::current().record("generation_id", bad.generation_id);
        (report.generation_id, report.fault) = (bad.generation_id, Some(Fault::Task));
        let (Some(generation_id), Some(base)) = (bad.generation_id, &bad.webhook_url) else {
            warn!(error = %bad, "not a task, and no backend to tell: given back for the dead-letter queue");
            report.ending = Ending::Unreadable;
            return message.given_back();
        };
        self.give_up(&Subject::message(base.clone(), generation_id, &message.body), &bad.reason, message, report).await
    }

    async fn run(&self, task: &Task, message: &Message, report: &mut Report) -> Outcome {
        match self.claim_and_paint(task, message.deadline, report).await {
            Ok(ending) => {
                report.ending = ending;
                Outcome::Consumed
            }
            Err(Failure::Cancelled(step)) => {
                info!(step, "cancelled by the backend");
                report.ending = Ending::Cancelled;
                Outcome::Consumed
            }
            Err(Failure::Unwanted(reason)) => {
                info!(reason, "the backend refused to hear of the picture");
                report.ending = Ending::Unwanted;
                Outcome::Consumed
            }
            Err(Failure::Permanent(fault, reason)) => {
                report.fault = Some(fault);
                self.give_up(&Subject::task(task), &reason, message, report).await
            }
            Err(Failure::Transient(fault, reason)) => {
                report.fault = Some(fault);
                self.give_back(task, &reason, message.rest(), message, report).await
            }
            Err(failure @ Failure::OutOfTime(_)) => {
                report.fault = Some(Fault::Deadline);
                self.give_back(task, &failure.to_string(), Duration::ZERO, message, report).await
            }
        }
    }

    /// Back to the queue, to be seen again after `wait`. On the last receive the backend is told.
    async fn give_back(
        &self,
        task: &Task,
        reason: &str,
        wait: Duration,
        message: &Message,
        report: &mut Report,
    ) -> Outcome {
        report.ending = Ending::GivenBack;
        if message.receive_count >= self.work.max_receive_count {
            warn!(reason, "out of tries");
            // Stays in the queue's hands all the same: the dead-letter queue keeps it for a person to look at.
            self.give_up(&Subject::task(task), reason, message, report).await;
            if report.ending == Ending::Unwanted {
                return Outcome::Consumed;
            }
        } else {
            warn!(reason, "task given back to the queue");
        }
        Outcome::GivenBack(wait)
    }

    /// Tells the backend that a task failed for good. If that cannot be told now, the queue brings the message back.
    async fn give_up(&self, subject: &Subject, reason: &str, message: &Message, report: &mut Report) -> Outcome {
        let fine = report.fault.map_or(GENERATION_FAILED, Fault::code);
        warn!(reason, code = fine, "task failed");
        let code = match self.work.error_codes {
            ErrorCodes::Single => GENERATION_FAILED,
            ErrorCodes::Fine => fine,
        };
        match self.backend.failed(subject, code, reason, message.receive_count.saturating_sub(1)).await {
            Ok(()) => {
                report.ending = Ending::Failed;
                Outcome::Consumed
            }
            Err(error @ WebhookError::Unwanted { .. }) => {
                info!(%error, "the backend refused to hear of the failure");
                report.ending = Ending::Unwanted;
                Outcome::Consumed
            }
            Err(error) => {
                warn!(%error, "the failure could not be told: given back to the queue");
                report.ending = Ending::GivenBack;
                message.given_back()
            }
        }
    }
}

impl Message {
    /// How long it rests before it is tried again.
    fn rest(&self) -> Duration {
        REST.saturating_mul(self.receive_count)
    }

    fn given_back(&self) -> Outcome {
        Outcome::GivenBack(self.rest())
    }
}
