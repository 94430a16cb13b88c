//! The good way of a task: claimed, LoRAs fetched, painted, stored, told.

use super::{
    Deadline, JobRunner,
    faults::{lora_fault, storage, untold},
    request::generation_request,
};
use crate::{
    engine::{EngineError, Output, loader::LoadError},
    job::{
        deadline_guard::{DeadlineGuard, Load},
        failure::Failure,
    },
    observe::{
        report::{Ending, Report},
        trace::Stage,
    },
    task::{Task, fault::Fault},
};
use diffusion::lora::AppliedLora;
use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

impl JobRunner {
    /// Paints while no other process does so. Each wait ends when the invocation has no more time for it.
    pub(super) async fn claim_and_paint(
        &self,
        task: &Task,
        deadline: Deadline,
        report: &mut Report,
    ) -> Result<Ending, Failure> {
        let Some(claims) = &self.claims else { return self.paint_and_tell(task, deadline, report).await };
        let taking = deadline.work(claims.take(task.generation_id));
        let (claim, lap) = Stage::begin("claim").around(taking).await;
        report.stages.push(lap);
        let claim = claim?.map_err(|error| Failure::Transient(Fault::Storage, format!("claim: {error}")))?;
        let ended = self.paint_and_tell(task, deadline, report).await;
        if deadline.tell(claim.release()).await.is_err() {
            tracing::warn!("no time to let go of the claim: it will run out");
        }
        ended
    }

    async fn paint_and_tell(&self, task: &Task, deadline: Deadline, report: &mut Report) -> Result<Ending, Failure> {
        let keys = task.result_keys();
        let ending = deadline.work(self.paint_once(task, &keys, deadline, report)).await??;
        let telling = deadline.work(self.announce(task, deadline));
        let (told, lap) = Stage::begin("complete").around(telling).await;
        report.stages.push(lap);
        told.unwrap_or_else(|late| Err(untold(late)))?;
        Ok(ending)
    }

    /// Paints and stores the pictures, unless they stand already.
    async fn paint_once(
        &self,
        task: &Task,
        keys: &[String],
        deadline: Deadline,
        report: &mut Report,
    ) -> Result<Ending, Failure> {
        let fingerprint = task.fingerprint();
        if self.store.has_pictures(keys, &fingerprint).await.map_err(storage)? {
            return Ok(Ending::AnnouncedAgain);
        }
        let fetching = async {
            let mut loras = Vec::with_capacity(task.loras.len());
            for wanted in &task.loras {
                let (lora, found) = self.store.lora(wanted).await.map_err(lora_fault)?;
                report.loras_found.push(found);
                loras.push(AppliedLora { lora, scale: wanted.scale });
            }
            Ok::<_, Failure>(loras)
        };
        let fetch = Stage::begin("fetch");
        let span = fetch.span();
        let (loras, lap) = fetch.around(fetching).await;
        report.stages.push(lap);
        telemetry::set(&span, "cache.hits", report.cache_hits() as i64);
        telemetry::set(&span, "cache.misses", report.cache_misses() as i64);
        let output = self.paint(task, loras?, deadline).await?;
        report.stages.extend(output.stages);
        let uploading = async {
            for (key, file) in keys.iter().zip(output.files) {
                let bytes = file.len();
                self.store.put_picture(key, file, task.format, &fingerprint).await.map_err(storage)?;
                report.images_stored += 1;
                report.bytes_stored += bytes;
            }
            Ok::<_, Failure>(())
        };
        let (uploaded, lap) = Stage::begin("upload").around(uploading).await;
        report.stages.push(lap);
        uploaded?;
        let after = report.stages.iter().skip_while(|(stage, _)| *stage != "denoise").skip(1);
        self.times.note_rest(load(task), after.map(|(_, duration)| *duration).sum());
        Ok(Ending::Painted)
    }

    /// Tells that the pictures of a task stand.
    pub(super) async fn announce(&self, task: &Task, deadline: Deadline) -> Result<(), Failure> {
        let urls: Vec<String> = task.result_keys().iter().map(|key| self.store.picture_url(key)).collect();
        Ok(self.backend.complete(task, &urls, deadline.end()).await?)
    }

    /// Waits for the batcher, and tells the milestones meanwhile; then signs and encodes while the batcher goes on.
    async fn paint(&self, task: &Task, loras: Vec<AppliedLora>, deadline: Deadline) -> Result<Output, Failure> {
        let wanted = Arc::new(generation_request(task, loras, self.file, self.credential.clone()));
        wanted.check().map_err(EngineError::from)?;
        let loading = |error: LoadError| Failure::Transient(Fault::Painting, error.to_string());
        let waiting = Stage::begin("wait");
        let batcher = self.loader.batcher().await.map_err(loading)?;
        let progress = self.backend.progress(task);
        let (times, end) = (self.times.clone(), deadline.work_end());
        let mut guard =
            DeadlineGuard::new(task.steps, load(task), end, times, progress.sender(), progress.is_unwanted());
        let out_of_time = guard.out_of_time();
        let on_step = Box::new(move |step| guard.step(step, Instant::now()));
        let painted = batcher.paint(wanted.clone(), on_step, waiting).await;
        progress.finish().await;
        if out_of_time.load(Ordering::Relaxed) {
            return Err(deadline.out_of_time().into());
        }
        let (painted, span) = (painted?, tracing::Span::current());
        let finished = tokio::task::spawn_blocking(move || span.in_scope(|| wanted.finish(painted)));
        let broke_off = |panic| Failure::Transient(Fault::Painting, format!("signing broke off: {panic}"));
        finished.await.map_err(broke_off)?.map_err(Failure::from)
    }
}

fn load(task: &Task) -> Load {
    Load { width: task.width, height: task.height, pictures: task.num_images }
}
