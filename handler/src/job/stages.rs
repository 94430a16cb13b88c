//! The stages of a task, in order: claim, fetch the LoRAs, wait for the batcher, paint, upload, send `complete`.

use super::{
    Deadline, JobRunner,
    cancel::CancelWatch,
    deadline_guard::{DeadlineGuard, Workload},
    detail::detail,
    failure::{Failure, image_failure, inversion_failure, lora_failure, storage_failure, undelivered},
    options::WebhookDetail,
};
use crate::{
    engine::{EngineError, GenerationRequest, Output, Preview, loader::LoadError},
    observe::{
        report::{Ending, Painted, Report},
        trace::Stage,
    },
    picture::PictureOrigin,
    task::{Checked, SafetyMode, Task, fault::TaskFault},
    webhook::progress::Milestones,
};
use diffusion::{
    lora::AppliedLora,
    pipeline::{Request, StartImage},
    prompt::inversion::AppliedInversion,
};
use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};
use tracing::{Span, info, warn};

impl JobRunner {
    /// Runs all stages while no other process does so for this task. Each wait ends in time for the deadline.
    pub(super) async fn run(&self, task: &Task, deadline: Deadline, report: &mut Report) -> Result<Ending, Failure> {
        let Some(claims) = &self.claims else { return self.paint_and_announce(task, deadline, report).await };
        let acquiring = deadline.work(claims.acquire(task.generation_id));
        let (claim, time) = Stage::begin("claim").measure(acquiring).await;
        report.stages.push(time);
        let claim = claim?.map_err(|error| Failure::Transient(TaskFault::Storage, format!("claim: {error}")))?;
        let ended = self.paint_and_announce(task, deadline, report).await;
        if deadline.notify(claim.release()).await.is_err() {
            tracing::warn!("no time to let go of the claim: it will run out");
        }
        ended
    }

    async fn paint_and_announce(
        &self,
        task: &Task,
        deadline: Deadline,
        report: &mut Report,
    ) -> Result<Ending, Failure> {
        let ending = deadline.work(self.paint_once(task, deadline, report)).await??;
        let announcing = deadline.work(self.announce(task, report, deadline));
        let (announced, time) = Stage::begin("complete").measure(announcing).await;
        report.stages.push(time);
        announced.unwrap_or_else(|late| Err(undelivered(late)))?;
        Ok(ending)
    }

    /// Paints and uploads the pictures, unless S3 has them already.
    async fn paint_once(&self, task: &Task, deadline: Deadline, report: &mut Report) -> Result<Ending, Failure> {
        let (keys, fingerprint) = (self.store.result_keys(task), task.fingerprint());
        if let Some(checked) = self.store.stored_pictures(&keys, &fingerprint).await.map_err(storage_failure)? {
            if self.may_stand(&checked).await? {
                report.checked = checked;
                return Ok(Ending::AnnouncedAgain);
            }
            info!("the stored pictures were checked less strictly than the safety mode asks for now: painted again");
        }
        if self.is_cancelled(task).await {
            return Err(Failure::CancelledById);
        }
        let files = self.fetch_files(task, report).await?;
        let output = self.paint(task, files, deadline, report).await?;
        report.stages.extend(output.stages);
        let uploading = async {
            for (index, (key, file)) in keys.iter().zip(output.files).enumerate() {
                let (bytes, checked) = (file.len(), output.checked.get(index).copied());
                let putting = self.store.put_picture(key, file, task.format, &fingerprint, checked);
                putting.await.map_err(storage_failure)?;
                report.images_stored += 1;
                report.bytes_stored += bytes;
            }
            Ok::<_, Failure>(())
        };
        let (uploaded, time) = Stage::begin("upload").measure(uploading).await;
        report.stages.push(time);
        uploaded?;
        let finishing = report.stages.iter().skip_while(|(stage, _)| *stage != "denoise").skip(1);
        self.timings.record_finishing(workload(task), finishing.map(|(_, time)| *time).sum());
        Ok(Ending::Painted)
    }

    /// Whether the backend has cancelled the task by its id.
    async fn is_cancelled(&self, task: &Task) -> bool {
        match &self.cancellations {
            Some(cancellations) => cancellations.is_noted(task.generation_id).await,
            None => false,
        }
    }

    /// Whether stored pictures may be announced in the safety mode of now. Waits for the model only if that decides it.
    async fn may_stand(&self, checked: &[Checked]) -> Result<bool, Failure> {
        if Checked::all_stand(checked, SafetyMode::Refuse) {
            return Ok(true);
        }
        let mode = match self.safety {
            Some(mode) => mode,
            None => self.loader.batcher().await.map_err(loading_failure)?.safety(),
        };
        Ok(Checked::all_stand(checked, mode))
    }

    async fn fetch_files(&self, task: &Task, report: &mut Report) -> Result<TaskFiles, Failure> {
        let fetching = async {
            let mut loras = Vec::with_capacity(task.loras.len());
            for reference in &task.loras {
                let (lora, found) = self.store.lora(reference).await.map_err(lora_failure)?;
                report.loras_found.push(found);
                loras.push(AppliedLora { lora, scale: reference.scale, weights: reference.weights.clone() });
            }
            let mut inversions = Vec::with_capacity(task.inversions.len());
            for reference in &task.inversions {
                let inversion = self.store.inversion(reference).await.map_err(inversion_failure)?;
                inversions.push(AppliedInversion { inversion, token: reference.token.clone() });
            }
            let mut start = None;
            if let Some(reference) = &task.image {
                let picture = self.store.image(reference, (task.width, task.height)).await.map_err(image_failure)?;
                start = Some(StartImage { picture: Arc::new(picture), strength: reference.strength });
            }
            Ok(TaskFiles { loras, inversions, start })
        };
        let stage = Stage::begin("fetch");
        let span = stage.span();
        let (files, time) = stage.measure(fetching).await;
        report.stages.push(time);
        telemetry::set(&span, "cache.hits", report.cache_hits() as i64);
        telemetry::set(&span, "cache.misses", report.cache_misses() as i64);
        files
    }

    /// Waits for the batcher while the progress webhooks go out. Then makes the files while the batcher paints the next batch.
    async fn paint(
        &self,
        task: &Task,
        files: TaskFiles,
        deadline: Deadline,
        report: &mut Report,
    ) -> Result<Output, Failure> {
        let request = Arc::new(self.generation_request(task, files));
        request.check().map_err(EngineError::from)?;
        let waiting = Stage::begin("wait");
        let batcher = self.loader.batcher().await.map_err(loading_failure)?;
        if let Some(asked) = task.safety.filter(|asked| *asked < batcher.safety()) {
            let (asked, holds) = (asked.name(), batcher.safety().name());
            warn!(asked, holds, "the task asks for a milder `safety` than the operator's, which holds");
        }
        let progress = self.backend.progress(task);
        let (timings, end) = (self.timings.clone(), deadline.work_end());
        let watch = self.cancellations.as_ref().map(|cancellations| cancellations.watch(task.generation_id));
        let (look, found) = (watch.as_ref().map(CancelWatch::look), watch.as_ref().map(CancelWatch::is_cancelled));
        let (send, unwanted) = (progress.sender(), progress.is_unwanted());
        let wants_preview = self.work.progress_preview;
        let report_step = move |progress, preview: &mut Preview<'_>| {
            look.iter().for_each(|look| look());
            send(progress, wants_preview.then(preview).flatten());
        };
        let is_unwanted = move || unwanted() || found.as_ref().is_some_and(|found| found());
        let milestones = Milestones::new(task.painted_steps(), &self.work.progress);
        let mut guard = DeadlineGuard::new(milestones, workload(task), end, timings, report_step, is_unwanted);
        let out_of_time = guard.out_of_time();
        let on_step = Box::new(move |step, preview: &mut Preview<'_>| guard.step(step, Instant::now(), preview));
        let pictures = batcher.paint(request.clone(), on_step, waiting).await;
        progress.finish().await;
        if out_of_time.load(Ordering::Relaxed) {
            return Err(deadline.out_of_time().into());
        }
        if watch.is_some_and(|watch| watch.is_cancelled()()) {
            return Err(Failure::CancelledById);
        }
        let (pictures, span) = (pictures?, Span::current());
        report.checked.clone_from(&pictures.checked);
        report.painted = Some(Painted {
            model: pictures.model.to_string(),
            lora_hashes: request.loras.iter().map(|applied| applied.lora.sha256().to_string()).collect(),
            warnings: pictures.warnings.clone(),
        });
        let output = tokio::task::spawn_blocking(move || span.in_scope(|| request.finish(pictures)));
        let broke_off = |panic| Failure::Transient(TaskFault::Painting, format!("signing broke off: {panic}"));
        // Asked once more while the files are made: after they are stored, cancelling changes nothing.
        let (output, is_cancelled) = tokio::join!(output, self.is_cancelled(task));
        if is_cancelled {
            return Err(Failure::CancelledById);
        }
        output.map_err(broke_off)?.map_err(Failure::from)
    }

    fn generation_request(&self, task: &Task, TaskFiles { loras, inversions, start }: TaskFiles) -> GenerationRequest {
        GenerationRequest {
            inputs: Request {
                prompt: task.prompt.clone(),
                negative_prompt: task.negative_prompt.clone(),
                prompt_weighting: task.prompt_weighting,
                long_prompt: task.long_prompt,
                clip_skip: task.clip_skip,
                width: task.width,
                height: task.height,
                seed: task.seed_bits(),
                steps: task.steps,
                guidance_scale: task.guidance_scale,
                scheduler: task.scheduler,
                karras_sigmas: task.karras_sigmas,
                noise_source: task.noise_source,
                start,
            },
            images: task.num_images,
            tag_ends: task.tag_ends.clone(),
            loras,
            inversions,
            previews: self.work.progress_preview,
            safety: task.safety,
            signature: Some((task.artist_name.clone(), task.signature.clone())),
            format: task.format,
            file: self.file,
            span: Span::current(),
            origin: PictureOrigin {
                generation_id: Some(task.generation_id),
                created_at: task.created_at,
                seed: task.seed,
            },
            credential: self.credential.clone(),
        }
    }

    /// Sends `complete` for pictures that are in S3, with the verdicts of their check if there was one.
    pub(super) async fn announce(&self, task: &Task, report: &Report, deadline: Deadline) -> Result<(), Failure> {
        let nsfw: Vec<bool> = report.checked.iter().map(|each| each.nsfw).collect();
        let detail = (self.work.webhook_detail == WebhookDetail::Full).then(|| detail(task, report));
        let mut urls = Vec::new();
        for key in self.store.result_keys(task) {
            let url = self.store.picture_url(&key).await;
            urls.push(url.map_err(|error| Failure::Undelivered(error.to_string(), None))?);
        }
        Ok(self.backend.complete(task, &urls, &nsfw, detail, deadline.end()).await?)
    }
}

/// There is no model to paint with; the process ends.
fn loading_failure(error: LoadError) -> Failure {
    Failure::Transient(TaskFault::Painting, error.to_string())
}

/// The files that a task names.
struct TaskFiles {
    loras: Vec<AppliedLora>,
    inversions: Vec<AppliedInversion>,
    start: Option<StartImage>,
}

fn workload(task: &Task) -> Workload {
    Workload { width: task.width, height: task.height, pictures: task.num_images }
}
