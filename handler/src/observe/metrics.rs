//! Prometheus metrics of the tasks, shown by a worker's `/metrics`.
//!
//! Labels have a fixed set of values (endings, faults, stages), never text of a task or a service.

use crate::{
    observe::report::{Ending, Found, Report, STAGES},
    task::{SafetyMode, fault::TaskFault},
};
use diffusion::gpu::Memory;
use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};
use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];
const LONG_SECONDS: [f64; 11] = [0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0, 86_400.0];

type Label = [(&'static str, &'static str); 1];

/// The metrics of this process. Clones are the same ones.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    registry: Registry,
    tasks: Family<Label, Counter>,
    faults: Family<Label, Counter>,
    images: Counter,
    nsfw: Family<Label, Counter>,
    bytes: Counter,
    stages: Family<Label, Histogram, fn() -> Histogram>,
    total: Histogram,
    queue_age: Histogram,
    in_work: Gauge,
    lookups: Family<Label, Counter>,
    memory: Family<Label, Gauge>,
    gpu_unused: Gauge,
    last_gpu_memory: Mutex<Option<Memory>>,
}

/// What the LoRA cache counts in this process. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub struct CacheMetrics {
    /// Files downloaded again because the copy was corrupt.
    pub refetches: Counter,
    /// Entries removed to make room.
    pub evictions: Counter,
    /// Bytes downloaded, kept or not.
    pub downloaded_bytes: Counter,
    /// Bytes of all files on the volume, counted at the last download, which is included.
    pub kept_bytes: Gauge,
}

/// A task in work, until this is dropped.
#[derive(Debug)]
pub struct InWork(Gauge);

impl Default for Metrics {
    /// All at zero, with an unused cache.
    fn default() -> Self {
        Self::new(&CacheMetrics::default())
    }
}

impl Metrics {
    /// All at zero. `cache` is shown with the rest.
    pub fn new(cache: &CacheMetrics) -> Self {
        let stages: fn() -> Histogram = || Histogram::new(SECONDS);
        let mut inner = Inner {
            registry: Registry::with_prefix("easel"),
            tasks: Family::default(),
            faults: Family::default(),
            images: Counter::default(),
            nsfw: Family::default(),
            bytes: Counter::default(),
            stages: Family::new_with_constructor(stages),
            total: Histogram::new(SECONDS),
            queue_age: Histogram::new(LONG_SECONDS),
            in_work: Gauge::default(),
            lookups: Family::default(),
            memory: Family::default(),
            gpu_unused: Gauge::default(),
            last_gpu_memory: Mutex::default(),
        };
        let all = &mut inner.registry;
        all.register("build", "The version of the handler", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        all.register("tasks", "Tasks by how they ended", inner.tasks.clone());
        all.register("faults", "Tasks that were not painted, by what was at fault", inner.faults.clone());
        all.register("images", "Pictures stored", inner.images.clone());
        all.register("nsfw_pictures", "Pictures that the safety checker flagged, by what was done", inner.nsfw.clone());
        all.register("image_bytes", "Bytes of the pictures stored", inner.bytes.clone());
        all.register("stage_seconds", "Duration of each stage of a task", inner.stages.clone());
        all.register("task_seconds", "From a task's receipt to its end", inner.total.clone());
        all.register("queue_age_seconds", "From SQS' receipt of a task to ours", inner.queue_age.clone());
        all.register("in_work", "Tasks in work", inner.in_work.clone());
        all.register("lora_lookups", "LoRAs by where they were found", inner.lookups.clone());
        all.register("lora_refetches", "LoRAs downloaded again because they were spoilt", cache.refetches.clone());
        all.register("lora_evictions", "LoRAs that went from the volume for others", cache.evictions.clone());
        all.register("lora_downloaded_bytes", "Bytes of LoRAs downloaded", cache.downloaded_bytes.clone());
        all.register("lora_kept_bytes", "Bytes of LoRAs on the volume at the last download", cache.kept_bytes.clone());
        all.register("gpu_memory_bytes", "Memory of the GPU after the last painting", inner.memory.clone());
        all.register("gpu_unused", "1 if a GPU is there and cannot be used", inner.gpu_unused.clone());
        // Every series exists from the start: a rate needs a zero to rise from.
        for ending in Ending::ALL {
            drop(inner.tasks.get_or_create(&[("ending", ending.name())]));
        }
        for stage in STAGES {
            drop(inner.stages.get_or_create(&[("stage", stage)]));
        }
        for fault in TaskFault::ALL {
            drop(inner.faults.get_or_create(&[("fault", fault.code())]));
        }
        for mode in SafetyMode::ALL.into_iter().filter(|mode| *mode != SafetyMode::Off) {
            drop(inner.nsfw.get_or_create(&[("action", mode.name())]));
        }
        for found in Found::ALL {
            drop(inner.lookups.get_or_create(&[("found", found.name())]));
        }
        Self(Arc::new(inner))
    }

    /// Counts a task as in work until the returned guard is dropped.
    pub fn start_task(&self) -> InWork {
        self.0.in_work.inc();
        InWork(self.0.in_work.clone())
    }

    /// Records a task that has ended.
    pub fn record(&self, report: &Report) {
        let all = &self.0;
        all.tasks.get_or_create(&[("ending", report.ending.name())]).inc();
        if let Some(fault) = report.fault {
            all.faults.get_or_create(&[("fault", fault.code())]).inc();
        }
        all.images.inc_by(report.images_stored as u64);
        if let Some((mode, flagged)) = report.flagged() {
            all.nsfw.get_or_create(&[("action", mode.name())]).inc_by(flagged as u64);
        }
        all.bytes.inc_by(report.bytes_stored as u64);
        for (stage, duration) in &report.stages {
            all.stages.get_or_create(&[("stage", *stage)]).observe(duration.as_secs_f64());
        }
        all.total.observe(report.total.as_secs_f64());
        for found in &report.loras_found {
            all.lookups.get_or_create(&[("found", found.name())]).inc();
        }
        if let Some(age) = report.queue_age {
            all.queue_age.observe(age.as_secs_f64());
        }
    }

    /// Sets the GPU's memory; nothing is shown without a GPU.
    pub fn set_gpu_memory(&self, memory: Option<Memory>) {
        let Some(Memory { used, total }) = memory else { return };
        for (kind, bytes) in [("used", used), ("total", total)] {
            self.0.memory.get_or_create(&[("kind", kind)]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        *self.0.last_gpu_memory.lock().unwrap_or_else(PoisonError::into_inner) = memory;
    }

    /// Sets whether the machine has a GPU that cannot be used.
    pub fn set_gpu_unused(&self, is_unused: bool) {
        self.0.gpu_unused.set(i64::from(is_unused));
    }

    /// The GPU's memory as it was last set.
    pub fn gpu_memory(&self) -> Option<Memory> {
        *self.0.last_gpu_memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All metrics as OpenMetrics text.
    ///
    /// # Errors
    /// The encoder's.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut out = String::new();
        text::encode(&mut out, &self.0.registry)?;
        Ok(out)
    }
}

impl Drop for InWork {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests;
