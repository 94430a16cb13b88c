//! Loads the model in the background while the process registers with its queue: fetches it from S3 if asked to, then loads it on a
//! thread of its own, and logs how long each phase took.
//!
//! Tasks wait for the model. If it cannot be loaded, the process ends, and no task fails for it.

use crate::{
    engine::{Engine, batcher::Batcher, options::ModelConfig},
    observe::{metrics::Metrics, trace::log_phase},
    storage::{
        S3Source,
        weights::{FetchError, RemoteModel},
    },
    task::SafetyMode,
};
use diffusion::error::PipelineError;
use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use std::{
    sync::{Arc, Once},
    thread,
    time::Instant,
};
use tokio::sync::oneshot;

/// Why nothing can be painted. Cloned for each caller that waits.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// The model could not be fetched from S3.
    #[error(transparent)]
    Fetch(Arc<FetchError>),
    /// The model or the device cannot be used.
    #[error(transparent)]
    Model(Arc<PipelineError>),
    /// The loading thread panicked or could not be started.
    #[error("loading the model broke off")]
    BrokeOff,
    /// The GPU was lost after the model had been loaded.
    #[error("the GPU can be used no more by this process: it needs a new one")]
    Lost,
}

/// A model that is being loaded. Clones are the same one.
#[derive(Clone)]
pub struct ModelLoader {
    batcher: Shared<BoxFuture<'static, Result<Batcher, LoadError>>>,
    started: Instant,
    first: Arc<Once>,
}

impl ModelLoader {
    /// Starts to fetch the model, if it is `remote`, and to load it. The thread does not keep the process from ending. A batch has at most
    /// `max_batch` pictures; `None` is as many as memory allows. `largest` is the width and height of the largest pictures to come.
    pub(crate) fn begin(
        config: &ModelConfig,
        remote: Option<RemoteModel<S3Source>>,
        largest: (usize, usize),
        max_batch: Option<usize>,
        metrics: Metrics,
    ) -> Self {
        let config = config.clone();
        // Spawned, so that it goes on although nobody waits for the batcher yet.
        let loader = tokio::spawn(async move {
            if let Some(remote) = remote {
                fetch(&remote).await?;
            }
            load(config, largest).await
        });
        let batcher = loader.map(move |opened| match opened {
            Ok(Ok(engine)) => {
                metrics.set_gpu_unused(engine.has_unused_gpu());
                Batcher::start(engine, max_batch, metrics).map_err(|_| LoadError::BrokeOff)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(LoadError::BrokeOff),
        });
        Self::of(batcher)
    }

    /// With a batcher that is made elsewhere.
    pub(crate) fn of(batcher: impl Future<Output = Result<Batcher, LoadError>> + Send + 'static) -> Self {
        Self { batcher: batcher.boxed().shared(), started: Instant::now(), first: Arc::new(Once::new()) }
    }

    /// Waits for the model and returns its batcher.
    ///
    /// # Errors
    /// The model cannot be loaded.
    pub async fn batcher(&self) -> Result<Batcher, LoadError> {
        self.batcher.clone().await
    }

    /// The safety mode that holds for all tasks, if the model is loaded.
    pub fn safety_now(&self) -> Option<SafetyMode> {
        self.batcher.peek().and_then(|loaded| loaded.as_ref().ok()).map(Batcher::safety)
    }

    /// Waits until nothing can be painted any more, and returns why.
    pub async fn broken(&self) -> LoadError {
        match self.batcher().await {
            Ok(batcher) => {
                batcher.ended().await;
                LoadError::Lost
            }
            Err(error) => error,
        }
    }

    /// To be called for each message. Logs the time from the start to the first one.
    pub fn note_request(&self) {
        self.first.call_once(|| {
            let is_loaded = self.batcher.peek().is_some();
            log_phase("first_request", self.started);
            if !is_loaded {
                tracing::info!("the first request waits for the model");
            }
        });
    }
}

/// Fetches the model from S3 into its folder.
async fn fetch(remote: &RemoteModel<S3Source>) -> Result<(), LoadError> {
    let started = Instant::now();
    let fetched = remote.fetch(&|line| tracing::debug!("{line}")).await;
    let fetched = fetched.map_err(|error| LoadError::Fetch(Arc::new(error)))?;
    let duration_ms = started.elapsed().as_millis() as u64;
    tracing::info!(phase = "fetch_model", duration_ms, files = fetched.files, bytes = fetched.bytes, "startup");
    Ok(())
}

/// Loads the model on a thread of its own.
async fn load(config: ModelConfig, largest: (usize, usize)) -> Result<Engine, LoadError> {
    let (sender, receiver) = oneshot::channel();
    let open = move || {
        // Nobody receives it if the process is ending.
        let _ = sender.send(Engine::open_for(&config, crate::task::size(None), Some(largest)));
    };
    // If the thread cannot be started or panics, the sender is dropped.
    drop(thread::Builder::new().name("load".into()).spawn(open));
    match receiver.await {
        Ok(opened) => opened.map_err(|error| LoadError::Model(Arc::new(error))),
        Err(_) => Err(LoadError::BrokeOff),
    }
}
