//! One task from start to end, for function and worker alike: [`Message`] in, [`Outcome`] out.
//!
//! A message is parsed and admitted here; `stages` runs the task, `outcome` decides what becomes of the message.

pub mod admission;
pub mod cancel;
pub mod claim;
mod deadline;
pub mod deadline_guard;
mod detail;
pub mod failure;
mod message;
pub mod options;
mod outcome;
pub mod secrets;
mod stages;

pub use deadline::{Deadline, OutOfTime};
pub use message::Message;
pub use outcome::Outcome;

use crate::{
    engine::loader::{LoadError, ModelLoader},
    job::{
        admission::Admission,
        cancel::Cancellations,
        claim::Claims,
        deadline_guard::Timings,
        options::{ServiceConfig, WorkConfig},
        secrets::Secrets,
    },
    observe::{
        metrics::Metrics,
        report::{Ending, Report, TaskSummary},
        trace,
    },
    picture::{Credential, options::PictureConfig},
    storage::{Store, payload::PayloadPointer, weights::RemoteModel},
    task::{Cancel, InvalidTask, SafetyMode, Task, fault::TaskFault},
    webhook::Backend,
};
use aws_config::SdkConfig;
use futures_util::{FutureExt, future::BoxFuture};
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tracing::{Instrument, warn};

/// Everything a task needs, shared by all tasks of the process.
#[derive(Clone)]
pub struct JobRunner {
    loader: ModelLoader,
    store: Arc<Store>,
    backend: Backend,
    admission: Admission,
    claims: Option<Claims>,
    /// None if tasks cannot be cancelled by their id.
    cancellations: Option<Cancellations>,
    timings: Timings,
    metrics: Metrics,
    /// The safety mode, if it is given; else it depends on the model.
    safety: Option<SafetyMode>,
    work: WorkConfig,
    file: PictureConfig,
    credential: Option<Arc<Credential>>,
}

impl JobRunner {
    /// Starts to load the model and sets up the clients.
    ///
    /// # Errors
    /// A secret cannot be read, a certificate cannot sign pictures, or TLS cannot be set up.
    pub async fn open(config: &ServiceConfig, aws: &SdkConfig) -> anyhow::Result<Self> {
        let store = Store::new(&config.store, aws);
        let metrics = Metrics::new(store.cache_metrics());
        // Before the secrets are read: both take time.
        let max_batch = (config.work.batch > 0).then_some(config.work.batch.into());
        let folder = &config.model.dir;
        let remote = config.model_url.as_ref().map(|url| RemoteModel::for_service(store.s3(), url, folder));
        let loader = ModelLoader::begin(&config.model, remote, config.sizes.largest(), max_batch, metrics.clone());
        Self::with(loader, store, metrics, config, aws).await
    }

    /// The same, with a model that is being loaded elsewhere.
    pub(crate) async fn with(
        loader: ModelLoader,
        store: Store,
        metrics: Metrics,
        config: &ServiceConfig,
        aws: &SdkConfig,
    ) -> anyhow::Result<Self> {
        let secrets = Secrets::obtain(&config.secrets, aws).await?;
        let stamp = config.secrets.credential.files.credential_time_stamp_url.as_ref();
        let pems = secrets.credential.as_ref();
        let credential = pems.map(|(certificate, key)| Credential::open(certificate, key, stamp)).transpose()?;
        let admission = Admission::new(&config.safety, &config.sizes);
        let lease = Duration::from_secs(config.work.claim_lease.into());
        let lifetime = Duration::from_secs(config.work.cancel_expiry.into());
        let (s3, bucket) = store.pictures();
        Ok(Self {
            loader,
            claims: (!lease.is_zero()).then(|| Claims::new(s3, bucket.to_string(), lease)),
            cancellations: (!lifetime.is_zero()).then(|| Cancellations::new(s3, bucket.to_string(), lifetime)),
            store: Arc::new(store),
            backend: Backend::new(secrets.token, secrets.signing, admission.guard().clone())?,
            admission,
            timings: Timings::default(),
            metrics,
            safety: config.model.checker.safety,
            work: config.work.clone(),
            file: config.picture,
            credential: credential.map(Arc::new),
        })
    }

    /// Waits until the model is loaded.
    ///
    /// # Errors
    /// It cannot be loaded.
    pub async fn ready(&self) -> Result<(), LoadError> {
        self.loader.batcher().await.map(|_| ())
    }

    /// Waits until nothing can be painted any more: the model cannot be loaded, or the GPU is lost.
    pub async fn broken(&self) -> LoadError {
        self.loader.broken().await
    }

    /// Handles one message to its end. Every failure becomes an outcome.
    ///
    /// Boxed: otherwise the futures of the AWS clients nest too deep for the compiler.
    pub fn handle<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Outcome> {
        self.loader.note_request();
        let span = trace::task(&message.carrier, message.id.as_deref(), message.receive_count);
        async {
            let (started, _in_work) = (Instant::now(), self.metrics.start_task());
            let mut report = Report { receive_count: message.receive_count, ..Report::default() };
            // None if our clock is behind that of SQS.
            report.queue_age = message.sent_at.and_then(|sent_at| SystemTime::now().duration_since(sent_at).ok());
            let outcome = self.work_on(message, &mut report).await;
            report.total = started.elapsed();
            report.gpu_memory = self.metrics.gpu_memory();
            let span = tracing::Span::current();
            report.trace_id = trace::id(&span, &message.carrier);
            trace::end(&span, report.ending.name(), report.fault.map(|fault| fault.code()));
            report.log();
            self.metrics.record(&report);
            if self.work.embedded_metrics {
                println!("{}", report.embedded_metrics());
            }
            outcome
        }
        .instrument(span)
        .boxed()
    }

    /// The metrics of this process.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    async fn work_on(&self, message: &Message, report: &mut Report) -> Outcome {
        let fetched = match PayloadPointer::parse(&message.body) {
            None => None,
            Some(pointer) => match message.deadline.work(self.store.payload(&pointer)).await {
                Ok(Ok(body)) => Some(body),
                Ok(Err(error)) => {
                    warn!(%error, "no body, and so no backend to tell: given back to the queue");
                    (report.ending, report.fault) = (Ending::GivenBack, Some(TaskFault::Storage));
                    return Outcome::GivenBack(message.retry_delay());
                }
                Err(late) => return give_back_unread(late, report),
            },
        };
        let body = fetched.as_ref().unwrap_or(&message.body);
        match Cancel::parse(body) {
            Some(Ok(cancel)) => return self.cancel(cancel, message, report).await,
            Some(Err(invalid)) => return self.reject(invalid, message, report).await,
            None => {}
        }
        let parsed = Task::parse(body);
        let admitted = match message.deadline.work(self.admission.admit(parsed)).await {
            Ok(admitted) => admitted,
            Err(late) => return give_back_unread(late, report),
        };
        match admitted {
            Ok(task) => {
                tracing::Span::current().record("generation_id", task.generation_id);
                (report.generation_id, report.task) = (Some(task.generation_id), Some(TaskSummary::from(&task)));
                let ended = self.run(&task, message.deadline, report).await;
                self.conclude(ended, &task, message, report).await
            }
            Err(invalid) => self.reject(invalid, message, report).await,
        }
    }
}

impl JobRunner {
    /// Notes that a task is cancelled. Nobody is told: the task's own message tells its end.
    async fn cancel(&self, Cancel { generation_id }: Cancel, message: &Message, report: &mut Report) -> Outcome {
        tracing::Span::current().record("generation_id", generation_id);
        let Some(cancellations) = &self.cancellations else {
            let reason = "`cancel`: no task is cancelled by its id here, as --cancel-expiry (EASEL_CANCEL_EXPIRY) is 0";
            let invalid = InvalidTask { reason: reason.into(), generation_id: None, webhook_url: None };
            return self.reject(Box::new(invalid), message, report).await;
        };
        report.generation_id = Some(generation_id);
        let noted = match message.deadline.work(cancellations.note(generation_id)).await {
            Ok(noted) => noted,
            Err(late) => return give_back_unread(late, report),
        };
        match noted {
            Ok(()) => {
                report.ending = Ending::CancelNoted;
                Outcome::Consumed
            }
            Err(error) => {
                warn!(error, "the task could not be cancelled: given back to the queue");
                (report.ending, report.fault) = (Ending::GivenBack, Some(TaskFault::Storage));
                Outcome::GivenBack(message.retry_delay())
            }
        }
    }
}

/// There was no time to find out which backend to notify.
fn give_back_unread(late: OutOfTime, report: &mut Report) -> Outcome {
    warn!(reason = %late, "given back to the queue before it was read");
    (report.ending, report.fault) = (Ending::GivenBack, Some(TaskFault::Deadline));
    Outcome::GivenBack(Duration::ZERO)
}
