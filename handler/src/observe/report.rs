//! The log line at the end of each task, and the same as metrics for CloudWatch.

use crate::{
    observe::trace::StageTime,
    task::{Checked, SafetyMode, Task, Warning, fault::TaskFault},
};
use diffusion::gpu::Memory;
use serde_json::{Map, Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tracing::info;

/// The stages of a task, in order.
pub const STAGES: [&str; 13] = [
    "claim",
    "fetch",
    "wait",
    "lora",
    "denoise",
    "decode",
    "safety",
    "sign",
    "encode",
    "metadata",
    "credential",
    "upload",
    "complete",
];
/// The namespace of the metrics in CloudWatch.
const NAMESPACE: &str = "Easel";

/// How a task ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Ending {
    /// Painted and stored; the backend knows.
    Painted,
    /// The pictures were there from an earlier delivery; `complete` was sent again.
    AnnouncedAgain,
    /// Failed for good; the backend knows.
    Failed,
    /// Given back to the queue.
    #[default]
    GivenBack,
    /// Cancelled by the backend, by its id or by an answer to progress.
    Cancelled,
    /// No task, but the message that cancels one; it was noted.
    CancelNoted,
    /// Painted or failed, and the backend refused the webhook.
    Unwanted,
    /// The message is no task, and names no backend to notify.
    Unreadable,
}

/// Where a LoRA was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// In memory, or being loaded there for another task.
    Memory,
    /// On the volume.
    Volume,
    /// In S3.
    Storage,
}

impl Found {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Volume, Self::Storage];

    /// The label's value.
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Volume => "volume",
            Self::Storage => "storage",
        }
    }
}

/// What is known of a task at its end.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// How it ended.
    pub ending: Ending,
    /// Why it was not painted; none if it was painted or cancelled.
    pub fault: Option<TaskFault>,
    /// The id, if it could be read.
    pub generation_id: Option<i64>,
    /// The task, if it is a valid one.
    pub task: Option<TaskSummary>,
    /// How often SQS has delivered it.
    pub receive_count: u32,
    /// How long it waited in the queue.
    pub queue_age: Option<Duration>,
    /// From its receipt here to its end.
    pub total: Duration,
    /// Where each LoRA was found.
    pub loras_found: Vec<Found>,
    /// The GPU's memory after the last painting; none on a CPU.
    pub gpu_memory: Option<Memory>,
    /// The stages that it went through, in order.
    pub stages: Vec<StageTime>,
    /// Its trace.
    pub trace_id: Option<String>,
    /// What the safety checker said of each picture; empty if no check was made.
    pub checked: Vec<Checked>,
    /// How this delivery painted; none if it did not.
    pub painted: Option<Painted>,
    /// Pictures stored.
    pub images_stored: usize,
    /// Bytes of these pictures.
    pub bytes_stored: usize,
}

/// What is only known once a task was painted. It is in no log.
#[derive(Debug, Clone)]
pub struct Painted {
    /// The base model's name and revision.
    pub model: String,
    /// SHA-256 of each LoRA's file in hex, in the task's order.
    pub lora_hashes: Vec<String>,
    /// What the task asks for and did not get.
    pub warnings: Vec<Warning>,
}

/// The fields of a task that decide how long it takes. No prompt and no name.
#[derive(Debug, Clone)]
pub struct TaskSummary {
    /// The style.
    pub style_id: i64,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Denoising steps.
    pub steps: usize,
    /// How far from a picture that it begins from.
    pub strength: Option<f64>,
    /// Pictures.
    pub images: usize,
    /// LoRAs.
    pub loras: usize,
}

impl Ending {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Painted,
        Self::AnnouncedAgain,
        Self::Failed,
        Self::GivenBack,
        Self::Cancelled,
        Self::CancelNoted,
        Self::Unwanted,
        Self::Unreadable,
    ];

    /// The value in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Painted => "painted",
            Self::AnnouncedAgain => "announced-again",
            Self::Failed => "failed",
            Self::GivenBack => "given-back",
            Self::Cancelled => "cancelled",
            Self::CancelNoted => "cancel-noted",
            Self::Unwanted => "refused-by-backend",
            Self::Unreadable => "unreadable",
        }
    }
}

impl From<&Task> for TaskSummary {
    fn from(task: &Task) -> Self {
        let Task { style_id, width, height, steps, num_images: images, .. } = *task;
        let strength = task.image.as_ref().map(|image| image.strength);
        Self { style_id, width, height, steps, strength, images, loras: task.loras.len() }
    }
}

impl Report {
    /// LoRAs that were in memory or on the volume.
    pub fn cache_hits(&self) -> usize {
        self.loras_found.len() - self.cache_misses()
    }

    /// LoRAs that were fetched from S3.
    pub fn cache_misses(&self) -> usize {
        self.loras_found.iter().filter(|found| **found == Found::Storage).count()
    }

    /// What was done with each picture that the safety checker flagged, and how many these are. None for pictures that an earlier
    /// delivery painted.
    pub fn flagged(&self) -> Option<(SafetyMode, usize)> {
        let painted = self.checked.first().filter(|_| self.ending != Ending::AnnouncedAgain)?;
        Some((painted.mode, self.checked.iter().filter(|checked| checked.nsfw).count()))
    }

    /// The verdicts as `complete` has them: `[false,true]`.
    fn verdicts(&self) -> Option<String> {
        let verdicts: Vec<bool> = self.checked.iter().map(|checked| checked.nsfw).collect();
        (!verdicts.is_empty()).then(|| json!(verdicts).to_string())
    }

    /// Logs it.
    pub fn log(&self) {
        let task = self.task.as_ref();
        let stage = |wanted: &str| self.stages.iter().find(|(name, _)| *name == wanted).map(|(_, time)| ms(*time));
        info!(
            ending = self.ending.name(),
            trace_id = self.trace_id,
            fault = self.fault.map(TaskFault::code),
            style_id = task.map(|task| task.style_id),
            width = task.map(|task| task.width),
            height = task.map(|task| task.height),
            steps = task.map(|task| task.steps),
            strength = task.and_then(|task| task.strength),
            images = task.map(|task| task.images),
            loras = task.map(|task| task.loras),
            cache_hits = self.cache_hits(),
            cache_misses = self.cache_misses(),
            gpu_used_bytes = self.gpu_memory.map(|memory| memory.used),
            bytes = self.bytes_stored,
            safety = self.checked.first().map(|checked| checked.mode.name()),
            nsfw_content_detected = self.verdicts(),
            queue_age_ms = self.queue_age.map(ms),
            claim_ms = stage("claim"),
            fetch_ms = stage("fetch"),
            wait_ms = stage("wait"),
            lora_ms = stage("lora"),
            denoise_ms = stage("denoise"),
            decode_ms = stage("decode"),
            safety_ms = stage("safety"),
            sign_ms = stage("sign"),
            encode_ms = stage("encode"),
            metadata_ms = stage("metadata"),
            credential_ms = stage("credential"),
            upload_ms = stage("upload"),
            complete_ms = stage("complete"),
            duration_ms = ms(self.total),
            "task ended"
        );
    }

    /// A line in CloudWatch's embedded metric format
    /// (docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html).
    pub fn embedded_metrics(&self) -> Value {
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, ms);
        let mut values = Map::new();
        let mut definitions = Vec::new();
        let mut add = |name: &str, unit: &str, value: u64| {
            values.insert(name.to_string(), json!(value));
            definitions.push(json!({ "Name": name, "Unit": unit }));
        };
        add("Tasks", "Count", 1);
        add("Images", "Count", self.images_stored as u64);
        add("LoraCacheHits", "Count", self.cache_hits() as u64);
        add("LoraCacheMisses", "Count", self.cache_misses() as u64);
        add("TaskTime", "Milliseconds", ms(self.total));
        if let Some((_, flagged)) = self.flagged() {
            add("NsfwImages", "Count", flagged as u64);
        }
        if let Some(age) = self.queue_age {
            add("QueueAge", "Milliseconds", ms(age));
        }
        if let Some(memory) = self.gpu_memory {
            add("GpuMemoryUsed", "Bytes", memory.used);
            add("GpuMemoryTotal", "Bytes", memory.total);
        }
        for (stage, duration) in &self.stages {
            add(&format!("{stage}Time"), "Milliseconds", ms(*duration));
        }
        values.insert("Ending".into(), json!(self.ending.name()));
        values.insert("Fault".into(), json!(self.fault.map_or("none", TaskFault::code)));
        values.insert("generation_id".into(), json!(self.generation_id));
        let directive =
            json!({ "Namespace": NAMESPACE, "Dimensions": [["Ending"], ["Ending", "Fault"]], "Metrics": definitions });
        values.insert("_aws".into(), json!({ "Timestamp": timestamp, "CloudWatchMetrics": [directive] }));
        Value::Object(values)
    }
}

fn ms(duration: Duration) -> u64 {
    duration.as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_in_the_directive_has_a_number_and_every_dimension_a_string() {
        let report = Report {
            ending: Ending::Painted,
            queue_age: Some(Duration::from_secs(2)),
            stages: STAGES.map(|stage| (stage, Duration::from_millis(7))).to_vec(),
            images_stored: 1,
            loras_found: vec![Found::Volume, Found::Storage, Found::Memory],
            gpu_memory: Some(Memory { used: 3, total: 5 }),
            checked: vec![Checked { mode: SafetyMode::Flag, nsfw: true }],
            ..Report::default()
        };
        let line = report.embedded_metrics();
        let directive = &line["_aws"]["CloudWatchMetrics"][0];
        let metrics = directive["Metrics"].as_array().unwrap();
        assert_eq!(metrics.len(), 9 + STAGES.len());
        assert!(metrics.iter().all(|metric| line[metric["Name"].as_str().unwrap()].is_u64()), "{line}");
        let dimensions = directive["Dimensions"].as_array().unwrap().iter().flat_map(|set| set.as_array().unwrap());
        assert!(dimensions.into_iter().all(|name| line[name.as_str().unwrap()].is_string()), "{line}");
        assert_eq!(
            (&line["Ending"], &line["Fault"], &line["denoiseTime"]),
            (&json!("painted"), &json!("none"), &json!(7))
        );
        assert_eq!(line["NsfwImages"], json!(1));
        assert_eq!((&line["LoraCacheHits"], &line["LoraCacheMisses"]), (&json!(2), &json!(1)));
    }

    #[test]
    fn verdicts_are_told_where_a_check_was_made_and_counted_once() {
        let verdicts = [true, false, true].map(|nsfw| Checked { mode: SafetyMode::Black, nsfw }).to_vec();
        for (ending, checked, told, counted) in [
            (Ending::Painted, vec![], None, None),
            (Ending::Painted, verdicts.clone(), Some("[true,false,true]"), Some((SafetyMode::Black, 2))),
            (Ending::AnnouncedAgain, verdicts, Some("[true,false,true]"), None),
        ] {
            let report = Report { ending, checked, ..Report::default() };
            assert_eq!((report.verdicts().as_deref(), report.flagged()), (told, counted), "{ending:?}");
            assert_eq!(report.embedded_metrics()["NsfwImages"].as_u64(), counted.map(|(_, flagged)| flagged as u64));
        }
    }
}
