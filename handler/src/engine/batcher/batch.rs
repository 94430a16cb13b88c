//! Jobs that are painted as one batch: which ones go together, and what each hears. A panic is the batch's error.

use super::{BatchEngine, BatcherError, OnStep};
use crate::{
    engine::{GenerationRequest, Painted},
    observe::{metrics::Metrics, trace::Stage},
};
use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};
use tokio::sync::oneshot;

/// A request that waits for its turn.
pub(super) struct Job {
    pub(super) wanted: Arc<GenerationRequest>,
    pub(super) on_step: OnStep,
    pub(super) waiting: Stage,
    pub(super) reply: oneshot::Sender<Result<Painted, BatcherError>>,
}

/// The first one and those behind it that go with it, as long as there are no more than `most` pictures. The others keep their order.
pub(super) fn gather(first: Job, waiting: &mut VecDeque<Job>, most: usize) -> Vec<Job> {
    let mut room = most.saturating_sub(first.wanted.images);
    let mut batch = vec![first];
    for job in std::mem::take(waiting) {
        let fits = job.wanted.images <= room && batch[0].wanted.goes_with(&job.wanted);
        if fits {
            room -= job.wanted.images;
            batch.push(job);
        } else {
            waiting.push_back(job);
        }
    }
    batch
}

/// Whether all went well.
pub(super) fn paint(engine: &mut impl BatchEngine, metrics: &Metrics, batch: Vec<Job>) -> bool {
    let (mut works, mut askers) = (Vec::new(), Vec::new());
    for Job { wanted, on_step, waiting, reply } in batch {
        works.push((wanted, on_step));
        askers.push((waiting.end(), reply));
    }
    let painted = {
        let span = works[0].0.span.clone();
        let _entered = span.enter();
        if works.len() > 1 {
            tracing::info!(tasks = works.len(), "painted together");
        }
        // The engine sets itself up anew for each painting.
        catch_unwind(AssertUnwindSafe(|| {
            let orders = works.iter_mut().map(|(wanted, on_step)| (&**wanted, &mut **on_step as _));
            engine.paint_together(&mut orders.collect::<Vec<_>>())
        }))
    };
    let painted: Vec<Result<Painted, BatcherError>> = match painted {
        Ok(painted) => painted.into_iter().map(|painted| painted.map_err(BatcherError::from)).collect(),
        Err(panic) => {
            let words = panic.downcast_ref::<String>().cloned();
            let words = words.or_else(|| panic.downcast_ref::<&str>().map(|words| words.to_string()));
            let words = words.unwrap_or_default();
            works.iter().map(|_| Err(BatcherError::Panic(words.clone()))).collect()
        }
    };
    metrics.note_memory(engine.memory());
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
