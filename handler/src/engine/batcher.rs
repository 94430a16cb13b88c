//! The batcher: one thread that owns the engine. Requests wait in its queue; those that go together are painted as one batch.
//!
//! Everything else of a task (fetching, signing, encoding, upload, webhooks) happens elsewhere meanwhile. A panic while painting is an
//! error of that batch, and the thread goes on. When the GPU is lost, the thread ends and every waiting caller gets an error.

use crate::{
    engine::{BatchItem, Engine, EngineError, GenerationRequest, Pictures, Preview, Step},
    observe::{metrics::Metrics, trace::Stage},
    task::SafetyMode,
};
use diffusion::{gpu::Memory, pipeline::Request};
use std::{
    collections::VecDeque,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// [`engine::OnStep`](crate::engine::OnStep) for another thread.
pub type BoxedOnStep = Box<dyn FnMut(Step, &mut Preview<'_>) -> ControlFlow<()> + Send>;

/// Sends requests to the batcher's thread. The thread ends when the last handle is dropped, or when the GPU is lost.
#[derive(Clone)]
pub struct Batcher {
    queue: mpsc::Sender<QueuedRequest>,
    ended: CancellationToken,
    safety: SafetyMode,
}

/// Why there are no pictures.
#[derive(Debug, thiserror::Error)]
pub enum BatcherError {
    /// The engine's error.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A bug: the painting panicked.
    #[error("painting broke off: {0}")]
    Panic(String),
    /// The thread is gone.
    #[error("the batcher has ended")]
    Ended,
}

/// What the batcher needs of an engine. Tests have one without a GPU.
pub(crate) trait BatchEngine: Send + 'static {
    fn paint_together(&mut self, items: &mut [BatchItem<'_>]) -> Vec<Result<Pictures, EngineError>>;
    fn max_batch(&self, inputs: &Request) -> usize;
    fn memory(&self) -> Option<Memory>;
    fn is_lost(&self) -> bool;
    fn safety(&self) -> SafetyMode;
}

impl BatchEngine for Engine {
    fn paint_together(&mut self, items: &mut [BatchItem<'_>]) -> Vec<Result<Pictures, EngineError>> {
        self.paint_together(items)
    }

    fn max_batch(&self, inputs: &Request) -> usize {
        self.max_batch(inputs)
    }

    fn memory(&self) -> Option<Memory> {
        self.memory()
    }

    fn is_lost(&self) -> bool {
        self.is_lost()
    }

    fn safety(&self) -> SafetyMode {
        self.safety()
    }
}

/// A request in the queue.
struct QueuedRequest {
    request: Arc<GenerationRequest>,
    on_step: BoxedOnStep,
    waiting: Stage,
    reply: oneshot::Sender<Result<Pictures, BatcherError>>,
}

impl Batcher {
    /// Starts the thread. A batch has at most `max_batch` pictures; `None` is as many as memory allows.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn start(engine: impl BatchEngine, max_batch: Option<usize>, metrics: Metrics) -> std::io::Result<Self> {
        let (sender, queue) = mpsc::channel();
        let (ended, safety) = (CancellationToken::new(), engine.safety());
        let ending = ended.clone().drop_guard();
        thread::Builder::new().name("batcher".into()).spawn(move || {
            run(engine, max_batch, &metrics, &queue);
            // In this order: waiting callers get their error before `ended` is seen.
            drop(queue);
            drop(ending);
        })?;
        Ok(Self { queue: sender, ended, safety })
    }

    /// Waits for the request's turn, which ends the stage `waiting`, and for its pictures.
    ///
    /// # Errors
    /// See [`BatcherError`].
    pub async fn paint(
        &self,
        request: Arc<GenerationRequest>,
        on_step: BoxedOnStep,
        waiting: Stage,
    ) -> Result<Pictures, BatcherError> {
        let (reply, pictures) = oneshot::channel();
        self.queue.send(QueuedRequest { request, on_step, waiting, reply }).map_err(|_| BatcherError::Ended)?;
        pictures.await.map_err(|_| BatcherError::Ended)?
    }

    /// The safety mode that holds for all tasks.
    pub fn safety(&self) -> SafetyMode {
        self.safety
    }

    /// Waits until the thread has ended.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

fn run(
    mut engine: impl BatchEngine,
    max_batch: Option<usize>,
    metrics: &Metrics,
    queue: &mpsc::Receiver<QueuedRequest>,
) {
    metrics.set_gpu_memory(engine.memory());
    let mut waiting = VecDeque::new();
    loop {
        if waiting.is_empty() {
            let Ok(queued) = queue.recv() else { return };
            waiting.push_back(queued);
        }
        waiting.extend(queue.try_iter());
        // Their callers ran out of time.
        waiting.retain(|queued: &QueuedRequest| !queued.reply.is_closed());
        let Some(first) = waiting.pop_front() else { continue };
        let max_batch = max_batch.unwrap_or_else(|| engine.max_batch(&first.request.inputs));
        let batch = gather(first, &mut waiting, max_batch);
        if !paint(&mut engine, metrics, batch) && engine.is_lost() {
            tracing::error!("the GPU can be used no more by this process");
            return;
        }
    }
}

/// A batch of at most `max_batch` pictures: the first request, and those behind it that go with it. The others keep their order.
fn gather(first: QueuedRequest, waiting: &mut VecDeque<QueuedRequest>, max_batch: usize) -> Vec<QueuedRequest> {
    let mut room = max_batch.saturating_sub(first.request.images);
    let mut batch = vec![first];
    for queued in std::mem::take(waiting) {
        let fits = queued.request.images <= room && batch[0].request.goes_with(&queued.request);
        if fits {
            room -= queued.request.images;
            batch.push(queued);
        } else {
            waiting.push_back(queued);
        }
    }
    batch
}

/// Paints a batch and answers each of its requests. True if all have their pictures.
fn paint(engine: &mut impl BatchEngine, metrics: &Metrics, batch: Vec<QueuedRequest>) -> bool {
    let (mut requests, mut callers) = (Vec::new(), Vec::new());
    for QueuedRequest { request, on_step, waiting, reply } in batch {
        requests.push((request, on_step));
        callers.push((waiting.end(), reply));
    }
    let painted = {
        let span = requests[0].0.span.clone();
        let _entered = span.enter();
        if requests.len() > 1 {
            tracing::info!(tasks = requests.len(), "painted together");
        }
        // Unwind safe: the engine resets itself for each batch.
        catch_unwind(AssertUnwindSafe(|| {
            let items = requests.iter_mut().map(|(request, on_step)| (&**request, &mut **on_step as _));
            engine.paint_together(&mut items.collect::<Vec<_>>())
        }))
    };
    let results: Vec<Result<Pictures, BatcherError>> = match painted {
        Ok(results) => results.into_iter().map(|result| result.map_err(BatcherError::from)).collect(),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| text.to_string()));
            let text = text.unwrap_or_default();
            requests.iter().map(|_| Err(BatcherError::Panic(text.clone()))).collect()
        }
    };
    metrics.set_gpu_memory(engine.memory());
    // The requests hold their tasks' spans, which must close with the tasks. Those may end as soon as they are answered.
    drop(requests);
    let all_painted = results.iter().all(Result::is_ok);
    for ((waited, reply), result) in callers.into_iter().zip(results) {
        let result = result.map(|mut pictures| {
            pictures.stages.insert(0, waited);
            pictures
        });
        // A caller that ran out of time is gone.
        let _ = reply.send(result);
    }
    all_painted
}

#[cfg(test)]
pub(crate) mod tests;
