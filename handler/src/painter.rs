//! The painter: one thread that owns the studio. Tasks wait in front of it; those that go together are painted as one batch.
//!
//! Everything else of a task (fetching, signing, encoding, upload, webhooks) happens elsewhere meanwhile. Refuses to die: a panic in
//! one painting is that painting's error. A GPU that is lost to the process ends it, and whoever waits gets an error.

use crate::{
    metrics::Metrics,
    studio::{Commission, Painted, Studio, StudioError},
    trace::Stage,
};
use std::{
    collections::VecDeque,
    ops::ControlFlow,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// What is called with the number of finished steps, and may stop the painting.
pub type OnStep = Box<dyn FnMut(usize) -> ControlFlow<()> + Send>;

/// The way to the painter's thread. It ends when the last of these is dropped, or when the studio can paint no more.
#[derive(Clone)]
pub struct Painter {
    jobs: mpsc::Sender<Job>,
    ended: CancellationToken,
}

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
pub enum PainterError {
    /// The studio's reason.
    #[error(transparent)]
    Studio(#[from] StudioError),
    /// A fault of ours.
    #[error("painting broke off: {0}")]
    Panic(String),
    /// The thread is gone.
    #[error("the painter has ended")]
    Ended,
}

struct Job {
    commission: Arc<Commission>,
    on_step: OnStep,
    waiting: Stage,
    reply: oneshot::Sender<Result<Painted, PainterError>>,
}

impl Painter {
    /// Starts the thread, which tells the metrics of the GPU. `most` pictures are painted at once at most; `None` for as many as memory allows.
    ///
    /// # Errors
    /// No thread.
    pub fn start(studio: Studio, most: Option<usize>, metrics: Metrics) -> std::io::Result<Self> {
        let (sender, jobs) = mpsc::channel();
        let ended = CancellationToken::new();
        let ending = ended.clone().drop_guard();
        thread::Builder::new().name("painter".into()).spawn(move || {
            work(studio, most, &metrics, &jobs);
            // Whoever waits hears first that nobody paints any more.
            drop(jobs);
            drop(ending);
        })?;
        Ok(Self { jobs: sender, ended })
    }

    /// Waits for the turn of a commission, which ends the stage, and for its pictures.
    ///
    /// # Errors
    /// See [`PainterError`].
    pub async fn paint(
        &self,
        commission: Arc<Commission>,
        on_step: OnStep,
        waiting: Stage,
    ) -> Result<Painted, PainterError> {
        let (reply, painted) = oneshot::channel();
        let job = Job { commission, on_step, waiting, reply };
        self.jobs.send(job).map_err(|_| PainterError::Ended)?;
        painted.await.map_err(|_| PainterError::Ended)?
    }

    /// Waits until nobody paints any more.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

fn work(mut studio: Studio, most: Option<usize>, metrics: &Metrics, jobs: &mpsc::Receiver<Job>) {
    metrics.note_memory(studio.memory());
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
        let most = most.unwrap_or_else(|| studio.most_at_once(&first.commission.request));
        let batch = gather(first, &mut waiting, most);
        if !paint(&mut studio, metrics, batch) && studio.is_lost() {
            tracing::error!("the GPU can be used no more by this process");
            return;
        }
    }
}

/// The first one and those behind it that go with it, as long as there are no more than `most` pictures. The others keep their order.
fn gather(first: Job, waiting: &mut VecDeque<Job>, most: usize) -> Vec<Job> {
    let mut room = most.saturating_sub(first.commission.images);
    let mut batch = vec![first];
    for job in std::mem::take(waiting) {
        let fits = job.commission.images <= room && batch[0].commission.goes_with(&job.commission);
        if fits {
            room -= job.commission.images;
            batch.push(job);
        } else {
            waiting.push_back(job);
        }
    }
    batch
}

/// Whether all went well.
fn paint(studio: &mut Studio, metrics: &Metrics, batch: Vec<Job>) -> bool {
    let (mut works, mut askers) = (Vec::new(), Vec::new());
    for Job { commission, on_step, waiting, reply } in batch {
        works.push((commission, on_step));
        askers.push((waiting.end(), reply));
    }
    let painted = {
        let span = works[0].0.span.clone();
        let _entered = span.enter();
        if works.len() > 1 {
            tracing::info!(tasks = works.len(), "painted together");
        }
        // The studio sets itself up anew for each painting.
        catch_unwind(AssertUnwindSafe(|| {
            let orders = works.iter_mut().map(|(commission, on_step)| (&**commission, &mut **on_step as _));
            studio.paint_together(&mut orders.collect::<Vec<_>>())
        }))
    };
    let painted: Vec<Result<Painted, PainterError>> = match painted {
        Ok(painted) => painted.into_iter().map(|painted| painted.map_err(PainterError::from)).collect(),
        Err(panic) => {
            let words = panic.downcast_ref::<String>().cloned();
            let words = words.or_else(|| panic.downcast_ref::<&str>().map(|words| words.to_string()));
            let words = words.unwrap_or_default();
            works.iter().map(|_| Err(PainterError::Panic(words.clone()))).collect()
        }
    };
    metrics.note_memory(studio.memory());
    // A task's span ends with the task, which may end as soon as it has its pictures.
    drop(works);
    let well = painted.iter().all(Result::is_ok);
    for ((waited, reply), painted) in askers.into_iter().zip(painted) {
        let painted = painted.map(|mut painted| {
            painted.stages.insert(0, waited);
            painted
        });
        // Whoever asked may have given up.
        let _ = reply.send(painted);
    }
    well
}
