//! The start: the model is fetched from S3 if it lies there, and loads on a thread of its own, while the process registers with its queue. It
//! says how long each phase took.
//!
//! Whoever needs the model waits for it. A model that cannot be loaded ends the process; no task is failed for it.

use crate::{
    engine::{Engine, batcher::Batcher, options::ModelConfig},
    observe::{metrics::Metrics, trace::log_phase},
    storage::{
        S3Source,
        weights::{FetchError, RemoteModel},
    },
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

/// A model that cannot be loaded, for each who waits for it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    /// It did not come from S3.
    #[error(transparent)]
    Fetch(Arc<FetchError>),
    /// The model or the device is at fault.
    #[error(transparent)]
    Model(Arc<PipelineError>),
    /// The loading thread ended without an answer.
    #[error("loading the model broke off")]
    BrokeOff,
    /// It was loaded, and then the GPU failed for good.
    #[error("the GPU can be used no more by this process: it needs a new one")]
    Lost,
}

/// An engine that is being opened, and its batcher.
#[derive(Clone)]
pub struct ModelLoader {
    batcher: Shared<BoxFuture<'static, Result<Batcher, LoadError>>>,
    started: Instant,
    first: Arc<Once>,
}

impl ModelLoader {
    /// Begins to fetch what is to be fetched, and then to load, on a thread that holds up nobody who wants to end. `most` pictures are
    /// painted at once at most; `None` for as many as memory allows.
    pub(crate) fn begin(
        config: &ModelConfig,
        remote: Option<RemoteModel<S3Source>>,
        most: Option<usize>,
        metrics: Metrics,
    ) -> Self {
        let config = config.clone();
        // It goes on whether somebody waits for the batcher or not.
        let loader = tokio::spawn(async move {
            if let Some(remote) = remote {
                fetch(&remote).await?;
            }
            load(config).await
        });
        let batcher = loader.map(move |opened| match opened {
            Ok(Ok(engine)) => {
                metrics.note_gpu_unused(engine.leaves_a_gpu());
                Batcher::start(engine, most, metrics).map_err(|_| LoadError::BrokeOff)
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(LoadError::BrokeOff),
        });
        Self::of(batcher)
    }

    /// An engine's batcher that someone else opens.
    pub(crate) fn of(batcher: impl Future<Output = Result<Batcher, LoadError>> + Send + 'static) -> Self {
        Self { batcher: batcher.boxed().shared(), started: Instant::now(), first: Arc::new(Once::new()) }
    }

    /// The engine's batcher, as soon as it is open.
    ///
    /// # Errors
    /// It will never be.
    pub async fn batcher(&self) -> Result<Batcher, LoadError> {
        self.batcher.clone().await
    }

    /// Waits for what makes painting impossible for good, and says what it is.
    pub async fn broken(&self) -> LoadError {
        match self.batcher().await {
            Ok(batcher) => {
                batcher.ended().await;
                LoadError::Lost
            }
            Err(error) => error,
        }
    }

    /// To be called when work arrives: the first time it says how long after the start that was.
    pub fn note_request(&self) {
        self.first.call_once(|| {
            let is_open = self.batcher.peek().is_some();
            log_phase("first_request", self.started);
            if !is_open {
                tracing::info!("the first request waits for the model");
            }
        });
    }
}

/// Brings the model from S3 into its folder.
async fn fetch(remote: &RemoteModel<S3Source>) -> Result<(), LoadError> {
    let started = Instant::now();
    let fetched = remote.fetch(&|line| tracing::debug!("{line}")).await;
    let fetched = fetched.map_err(|error| LoadError::Fetch(Arc::new(error)))?;
    let duration_ms = started.elapsed().as_millis() as u64;
    tracing::info!(phase = "fetch_model", duration_ms, files = fetched.files, bytes = fetched.bytes, "startup");
    Ok(())
}

/// Loads the model on a thread of its own.
async fn load(config: ModelConfig) -> Result<Engine, LoadError> {
    let (sender, receiver) = oneshot::channel();
    let open = move || {
        // Nobody waits for it when the process is about to end.
        let _ = sender.send(Engine::open(&config, crate::task::size(None)));
    };
    // A thread that panics or cannot be had drops the sender.
    drop(thread::Builder::new().name("load".into()).spawn(open));
    match receiver.await {
        Ok(opened) => opened.map_err(|error| LoadError::Model(Arc::new(error))),
        Err(_) => Err(LoadError::BrokeOff),
    }
}
