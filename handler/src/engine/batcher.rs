//! The batcher: one thread that owns the engine. Tasks wait in front of it; those that go together are painted as one batch.
//!
//! Everything else of a task (fetching, signing, encoding, upload, webhooks) happens elsewhere meanwhile. Refuses to die: a panic in
//! one painting is that painting's error. A GPU that is lost to the process ends it, and whoever waits gets an error.

mod batch;
#[cfg(test)]
pub(crate) mod tests;

use crate::{
    engine::{self, Engine, EngineError, GenerationRequest, Order, Painted},
    observe::{metrics::Metrics, trace::Stage},
};
use batch::{Job, gather, paint};
use diffusion::{gpu::Memory, pipeline::Request};
use std::{
    collections::VecDeque,
    ops::ControlFlow,
    sync::{Arc, mpsc},
    thread,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// What is called with each step, and may stop the painting.
pub type OnStep = Box<dyn FnMut(engine::Step) -> ControlFlow<()> + Send>;

/// The way to the batcher's thread. It ends when the last of these is dropped, or when the engine can paint no more.
#[derive(Clone)]
pub struct Batcher {
    jobs: mpsc::Sender<Job>,
    ended: CancellationToken,
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum BatcherError {
    /// The engine's reason.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A fault of ours.
    #[error("painting broke off: {0}")]
    Panic(String),
    /// The thread is gone.
    #[error("the batcher has ended")]
    Ended,
}

/// What the batcher asks of an engine.
pub(crate) trait BatchEngine: Send + 'static {
    fn paint_together(&mut self, orders: &mut [Order<'_>]) -> Vec<Result<Painted, EngineError>>;
    fn most_at_once(&self, request: &Request) -> usize;
    fn memory(&self) -> Option<Memory>;
    fn is_lost(&self) -> bool;
}

impl BatchEngine for Engine {
    fn paint_together(&mut self, orders: &mut [Order<'_>]) -> Vec<Result<Painted, EngineError>> {
        self.paint_together(orders)
    }

    fn most_at_once(&self, request: &Request) -> usize {
        self.most_at_once(request)
    }

    fn memory(&self) -> Option<Memory> {
        self.memory()
    }

    fn is_lost(&self) -> bool {
        self.is_lost()
    }
}

impl Batcher {
    /// Starts the thread, which tells the metrics of the GPU. `most` pictures are painted at once at most; `None` for as many as memory allows.
    ///
    /// # Errors
    /// No thread.
    pub(crate) fn start(engine: impl BatchEngine, most: Option<usize>, metrics: Metrics) -> std::io::Result<Self> {
        let (sender, jobs) = mpsc::channel();
        let ended = CancellationToken::new();
        let ending = ended.clone().drop_guard();
        thread::Builder::new().name("batcher".into()).spawn(move || {
            work(engine, most, &metrics, &jobs);
            // Whoever waits hears first that nobody paints any more.
            drop(jobs);
            drop(ending);
        })?;
        Ok(Self { jobs: sender, ended })
    }

    /// Waits for the turn of a request, which ends the stage, and for its pictures.
    ///
    /// # Errors
    /// See [`BatcherError`].
    pub async fn paint(
        &self,
        wanted: Arc<GenerationRequest>,
        on_step: OnStep,
        waiting: Stage,
    ) -> Result<Painted, BatcherError> {
        let (reply, painted) = oneshot::channel();
        let job = Job { wanted, on_step, waiting, reply };
        self.jobs.send(job).map_err(|_| BatcherError::Ended)?;
        painted.await.map_err(|_| BatcherError::Ended)?
    }

    /// Waits until nobody paints any more.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

fn work(mut engine: impl BatchEngine, most: Option<usize>, metrics: &Metrics, jobs: &mpsc::Receiver<Job>) {
    metrics.note_memory(engine.memory());
    let mut waiting = VecDeque::new();
    loop {
        if waiting.is_empty() {
            let Ok(job) = jobs.recv() else { return };
            waiting.push_back(job);
        }
        waiting.extend(jobs.try_iter());
        // Whoever asked has given up, for want of time.
        waiting.retain(|job: &Job| !job.reply.is_closed());
        let Some(first) = waiting.pop_front() else { continue };
        let most = most.unwrap_or_else(|| engine.most_at_once(&first.wanted.request));
        let batch = gather(first, &mut waiting, most);
        if !paint(&mut engine, metrics, batch) && engine.is_lost() {
            tracing::error!("the GPU can be used no more by this process");
            return;
        }
    }
}
