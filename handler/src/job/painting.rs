//! The good way of a task: claimed, LoRAs fetched, painted, stored, told.

use super::{
    Workshop,
    commission::commission,
    faults::{lora_fault, storage},
};
use crate::{
    failure::{Failure, Fault},
    lora::AppliedLora,
    pace::Pace,
    report::{Ending, Report},
    startup::LoadError,
    studio::{Delivery, StudioError},
    task::Task,
    trace::Stage,
};
use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};
use tokio::time::timeout_at;

/// Kept back of an invocation, to give a task back in.
const MARGIN: Duration = Duration::from_secs(1);

impl Workshop {
    /// Paints while no other process does so.
    pub(super) async fn claim_and_paint(
        &self,
        task: &Task,
        deadline: Option<Instant>,
        report: &mut Report,
    ) -> Result<Ending, Failure> {
        let Some(claims) = &self.claims else { return self.paint_and_tell(task, deadline, report).await };
        let taking = claims.take(task.generation_id);
        let taking = async {
            match deadline {
                None => Ok(taking.await),
                Some(deadline) => timeout_at(deadline.into(), taking).await,
            }
        };
        let (claim, lap) = Stage::begin("claim").around(taking).await;
        report.stages.push(lap);
        let claim = claim.map_err(|_| Failure::OutOfTime(Duration::ZERO))?;
        let claim = claim.map_err(|error| Failure::Transient(Fault::Storage, format!("claim: {error}")))?;
        let ended = self.paint_and_tell(task, deadline, report).await;
        claim.release().await;
        ended
    }

    async fn paint_and_tell(
        &self,
        task: &Task,
        deadline: Option<Instant>,
        report: &mut Report,
    ) -> Result<Ending, Failure> {
        let (keys, fingerprint) = (task.result_keys(), task.fingerprint());
        let urls: Vec<String> = keys.iter().map(|key| self.store.picture_url(key)).collect();
        if self.store.stands(&keys, &fingerprint).await.map_err(storage)? {
            self.backend.complete(task, &urls).await?;
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
        let loras = loras?;
        let delivery = self.paint(task, loras, deadline).await?;
        report.stages.extend(delivery.stages);
        let uploading = async {
            for (key, file) in keys.iter().zip(delivery.files) {
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
        let (told, lap) = Stage::begin("complete").around(self.backend.complete(task, &urls)).await;
        report.stages.push(lap);
        told?;
        let after = report.stages.iter().skip_while(|(stage, _)| *stage != "denoise").skip(1);
        self.times.note_rest(after.map(|(_, duration)| *duration).sum());
        Ok(Ending::Painted)
    }

    /// Waits for the painter, and tells the milestones meanwhile; then signs and encodes while the painter goes on.
    async fn paint(
        &self,
        task: &Task,
        loras: Vec<AppliedLora>,
        deadline: Option<Instant>,
    ) -> Result<Delivery, Failure> {
        let commission = Arc::new(commission(task, loras, self.file, self.credential.clone()));
        commission.check().map_err(StudioError::from)?;
        let loading = |error: LoadError| Failure::Transient(Fault::Painting, error.to_string());
        let waiting = Stage::begin("wait");
        let painter = self.opening.painter().await.map_err(loading)?;
        let line = self.backend.progress(task);
        let out_of_time = Arc::new(OnceLock::new());
        let pace = Pace {
            steps: task.steps,
            load: (task.width, task.height, task.num_images),
            times: self.times.clone(),
            deadline,
            tell: line.teller(),
            is_unwanted: line.is_unwanted(),
            out_of_time: out_of_time.clone(),
        };
        let painting = painter.paint(commission.clone(), Box::new(pace.into_callback()), waiting);
        let painted = match deadline.and_then(|deadline| deadline.checked_sub(MARGIN)) {
            None => Some(painting.await),
            // The turn may come too late.
            Some(latest) => timeout_at(latest.into(), painting).await.ok(),
        };
        line.finish().await;
        let (Some(painted), None) = (painted, out_of_time.get()) else {
            return Err(Failure::OutOfTime(out_of_time.get().copied().unwrap_or(MARGIN)));
        };
        let (painted, span) = (painted?, tracing::Span::current());
        let finished = tokio::task::spawn_blocking(move || span.in_scope(|| commission.finish(painted)));
        let broke_off = |panic| Failure::Transient(Fault::Painting, format!("signing broke off: {panic}"));
        finished.await.map_err(broke_off)?.map_err(Failure::from)
    }
}
