//! One task from start to end: parse, fetch the LoRAs, paint, store, tell. Function and worker both run it.

use crate::{
    config::ServiceConfig,
    lora::AppliedLora,
    payload::Pointer,
    pipeline::{Request, error::PipelineError},
    progress::{Milestones, Progress},
    startup::{LoadError, Opening},
    store::{Store, StoreError},
    studio::{Commission, Delivery, StudioError},
    task::{BadTask, Task},
    webhook::{Backend, WebhookError},
};
use aws_config::SdkConfig;
use futures_util::{FutureExt, future::BoxFuture};
use std::{
    ops::ControlFlow,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tracing::{Instrument, field, info, info_span, warn};
use url::Url;

/// What the backend is told a step takes before one was measured: the Python worker's assumption.
const ASSUMED_STEP: Duration = Duration::from_millis(100);

/// A message as it came from the queue.
#[derive(Debug, Clone)]
pub struct Message {
    /// The body.
    pub body: String,
    /// How often the queue has handed it out, this time included; 1 if the queue did not say.
    pub receive_count: u32,
}

/// What becomes of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Done with: painted, or failed for good and the backend knows.
    Consumed,
    /// Back to the queue, to be tried again or dead-lettered.
    GivenBack,
}

/// Everything a task needs. Shared by all tasks of a process.
#[derive(Clone)]
pub struct Workshop {
    opening: Opening,
    store: Arc<Store>,
    backend: Backend,
    step_time: Arc<Mutex<Duration>>,
    max_receive_count: u32,
}

/// A failure after parsing, by what is to be done.
#[derive(Debug, thiserror::Error)]
enum JobError {
    /// The task is at fault. Tell the backend, consume the message.
    #[error("{0}")]
    Permanent(String),
    /// Something else is at fault. Give the message back.
    #[error("{0}")]
    Transient(String),
    /// The backend wants the picture no more. Consume the message, tell nobody.
    #[error("cancelled by the backend at step {0}")]
    Cancelled(usize),
}

impl Workshop {
    /// Begins to load the model and sets up the clients.
    ///
    /// # Errors
    /// No TLS.
    pub fn open(config: &ServiceConfig, aws: &SdkConfig) -> anyhow::Result<Self> {
        Ok(Self {
            opening: Opening::begin(&config.model),
            store: Arc::new(Store::new(&config.store, aws)),
            backend: Backend::new(config.internal_api_token.clone())?,
            step_time: Arc::new(Mutex::new(ASSUMED_STEP)),
            max_receive_count: config.max_receive_count,
        })
    }

    /// Waits until the model is loaded.
    ///
    /// # Errors
    /// A model folder that cannot be used.
    pub async fn ready(&self) -> Result<(), LoadError> {
        self.opening.studio().await.map(|_| ())
    }

    /// Handles one message to its end. Never fails and never panics: every fault becomes an outcome.
    ///
    /// Boxed, because the futures of the AWS clients nest too deep for the compiler otherwise.
    pub fn handle<'a>(&'a self, message: &'a Message) -> BoxFuture<'a, Outcome> {
        self.handle_in_span(message).boxed()
    }

    async fn handle_in_span(&self, message: &Message) -> Outcome {
        self.opening.note_request();
        let span = info_span!("task", generation_id = field::Empty, receive_count = message.receive_count);
        async {
            let fetched = match Pointer::parse(&message.body) {
                None => None,
                Some(pointer) => match self.store.payload(&pointer).await {
                    Ok(body) => Some(body),
                    Err(error) => {
                        warn!(%error, "no body, and so no backend to tell: given back to the queue");
                        return Outcome::GivenBack;
                    }
                },
            };
            match Task::parse(fetched.as_ref().unwrap_or(&message.body)) {
                Ok(task) => {
                    tracing::Span::current().record("generation_id", task.generation_id);
                    self.run(&task, message.receive_count).await
                }
                Err(bad) => self.refuse(bad, message.receive_count).await,
            }
        }
        .instrument(span)
        .await
    }

    /// A message that is no task: told if anybody can be told, else left for the dead-letter queue.
    async fn refuse(&self, bad: Box<BadTask>, receive_count: u32) -> Outcome {
        let (Some(generation_id), Some(base)) = (bad.generation_id, &bad.webhook_url) else {
            warn!(error = %bad, "not a task, and no backend to tell: given back for the dead-letter queue");
            return Outcome::GivenBack;
        };
        tracing::Span::current().record("generation_id", generation_id);
        self.give_up(base, generation_id, &bad.reason, receive_count).await
    }

    async fn run(&self, task: &Task, receive_count: u32) -> Outcome {
        let started = Instant::now();
        match self.paint_and_tell(task).await {
            Ok(()) => {
                info!(duration_ms = started.elapsed().as_millis() as u64, "task complete");
                Outcome::Consumed
            }
            Err(JobError::Cancelled(step)) => {
                info!(step, "cancelled by the backend");
                Outcome::Consumed
            }
            Err(JobError::Permanent(reason)) => {
                self.give_up(&task.webhook_url, task.generation_id, &reason, receive_count).await
            }
            Err(JobError::Transient(reason)) if receive_count >= self.max_receive_count => {
                warn!(reason, "out of tries");
                // Stays in the queue's hands all the same: the dead-letter queue keeps it for a person to look at.
                self.give_up(&task.webhook_url, task.generation_id, &reason, receive_count).await;
                Outcome::GivenBack
            }
            Err(JobError::Transient(reason)) => {
                warn!(reason, "task given back to the queue");
                Outcome::GivenBack
            }
        }
    }

    async fn paint_and_tell(&self, task: &Task) -> Result<(), JobError> {
        let (keys, fingerprint) = (task.result_keys(), task.fingerprint());
        let urls: Vec<String> = keys.iter().map(|key| self.store.picture_url(key)).collect();
        if self.store.stands(&keys, &fingerprint).await? {
            info!("painted already: announced again");
            return Ok(self.backend.complete(task, &urls).await?);
        }
        let mut stages = Vec::new();
        let clock = Instant::now();
        let mut loras = Vec::with_capacity(task.loras.len());
        for wanted in &task.loras {
            loras.push(AppliedLora { lora: self.store.lora(wanted).await?, scale: wanted.scale });
        }
        stages.push(("fetch", clock.elapsed()));
        let delivery = self.paint(task, loras).await?;
        stages.extend(delivery.stages);
        let clock = Instant::now();
        for (key, file) in keys.iter().zip(delivery.files) {
            self.store.put_picture(key, file, task.format, &fingerprint).await?;
        }
        stages.push(("upload", clock.elapsed()));
        let clock = Instant::now();
        self.backend.complete(task, &urls).await?;
        stages.push(("complete", clock.elapsed()));
        for (stage, duration) in stages {
            info!(stage, duration_ms = duration.as_millis() as u64, "stage");
        }
        Ok(())
    }

    /// Paints on a thread of its own, so that webhooks and heartbeats go on, and tells the milestones.
    async fn paint(&self, task: &Task, loras: Vec<AppliedLora>) -> Result<Delivery, JobError> {
        let studio = self.opening.studio().await.map_err(|error| JobError::Transient(error.to_string()))?;
        let commission = commission(task, loras);
        let line = self.backend.progress(&task.webhook_url, task.generation_id);
        let (tell, is_unwanted) = (line.teller(), line.is_unwanted());
        let (step_time, steps) = (self.step_time.clone(), task.steps);
        let span = tracing::Span::current();
        let painted = tokio::task::spawn_blocking(move || {
            let _entered = span.enter();
            // A panic in an earlier task leaves no half-made state behind that the next one would see.
            let mut studio = studio.lock().unwrap_or_else(PoisonError::into_inner);
            studio.paint(&commission, &mut pace(steps, &step_time, tell, is_unwanted))
        });
        let painted = painted.await;
        line.finish().await;
        painted.map_err(|panic| JobError::Transient(format!("painting broke off: {panic}")))?.map_err(JobError::from)
    }

    /// Tells the backend that a task failed for good. If that cannot be told now, the queue brings the message back.
    async fn give_up(&self, base: &Url, generation_id: i64, reason: &str, receive_count: u32) -> Outcome {
        warn!(reason, "task failed");
        match self.backend.failed(base, generation_id, reason, receive_count.saturating_sub(1)).await {
            Ok(()) => Outcome::Consumed,
            Err(error) => {
                warn!(%error, "the failure could not be told: given back to the queue");
                Outcome::GivenBack
            }
        }
    }
}

/// Measures steps, tells milestones, and stops when the picture is not wanted. The mean step time of this painting serves the
/// next one's first estimate.
fn pace(
    steps: usize,
    step_time: &Mutex<Duration>,
    tell: impl Fn(Progress),
    is_unwanted: impl Fn() -> bool,
) -> impl FnMut(usize) -> ControlFlow<()> {
    let mut milestones = Milestones::new(steps);
    let mut first = None;
    move |finished| {
        if is_unwanted() {
            return ControlFlow::Break(());
        }
        let started = *first.get_or_insert_with(Instant::now);
        let mut per_step = step_time.lock().unwrap_or_else(PoisonError::into_inner);
        if finished > 0 {
            *per_step = started.elapsed() / finished as u32;
        }
        if let Some(progress) = milestones.reach(finished, *per_step) {
            tell(progress);
        }
        ControlFlow::Continue(())
    }
}

fn commission(task: &Task, loras: Vec<AppliedLora>) -> Commission {
    Commission {
        request: Request {
            prompt: task.prompt.clone(),
            negative_prompt: task.negative_prompt.clone(),
            prompt_weighting: task.prompt_weighting,
            width: task.width,
            height: task.height,
            seed: task.seed_bits(),
            steps: task.steps,
            guidance_scale: task.guidance_scale,
            scheduler: task.scheduler,
            karras_sigmas: task.karras_sigmas,
            noise_source: task.noise_source,
        },
        images: task.num_images,
        loras,
        signature: Some((task.artist_name.clone(), task.signature.clone())),
        format: task.format,
    }
}

impl From<StoreError> for JobError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Permanent(reason) => Self::Permanent(reason),
            StoreError::Transient(reason) => Self::Transient(reason),
        }
    }
}

impl From<StudioError> for JobError {
    fn from(error: StudioError) -> Self {
        let reason = match &error {
            StudioError::Pipeline(PipelineError::Stopped { step }) => return Self::Cancelled(*step),
            StudioError::Lora(error) => format!("`lora_model_url`: {error}"),
            StudioError::Pipeline(PipelineError::Candle(error)) => format!("painting: {error}"),
            error => error.to_string(),
        };
        if error.is_permanent() { Self::Permanent(reason) } else { Self::Transient(reason) }
    }
}

impl From<WebhookError> for JobError {
    fn from(error: WebhookError) -> Self {
        Self::Transient(error.to_string())
    }
}
