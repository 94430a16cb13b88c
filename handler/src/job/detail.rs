//! What is told of a task in `complete`, under `--webhook-detail full`.

use crate::{
    observe::report::Report,
    picture::signature,
    task::{Code, Task, Warning},
    webhook::{Detail, LoraDetail, Timings},
};

/// What is known of a task whose pictures are stored.
pub(super) fn detail(task: &Task, report: &Report) -> Detail {
    let hash = |index: usize| report.painted.as_ref()?.lora_hashes.get(index).cloned();
    let loras = task.loras.iter().enumerate();
    let loras = loras.map(|(index, lora)| LoraDetail {
        name: lora.key.clone(),
        hash: hash(index),
        scale: lora.scale,
        weights: lora.weights.iter().map(|(place, weight)| (place.to_string(), weight)).collect(),
    });
    let warnings = task.warnings.iter().cloned().chain(left_out(&task.artist_name));
    let painted = report.painted.iter().flat_map(|painted| painted.warnings.iter().cloned());
    Detail {
        scheduler: task.scheduler.to_string(),
        width: task.width,
        height: task.height,
        strength: task.image.as_ref().map(|image| image.strength),
        model: report.painted.as_ref().map(|painted| painted.model.clone()),
        loras: loras.collect(),
        timings: report.painted.as_ref().map(|_| timings(report)),
        warnings: warnings.chain(painted).collect(),
    }
}

fn timings(report: &Report) -> Timings {
    let stage = |name: &str| {
        let times = report.stages.iter().filter(|(stage, _)| *stage == name);
        times.map(|(_, time)| time.as_millis() as u64).sum()
    };
    Timings {
        queue: report.queue_age.map(|age| age.as_millis() as u64),
        fetch: stage("fetch"),
        wait: stage("wait"),
        denoise: stage("denoise"),
        decode: stage("decode"),
        upload: stage("upload"),
    }
}

/// A warning about characters of a name that the signature leaves out.
fn left_out(name: &str) -> Option<Warning> {
    let characters = signature::left_out(name).ok().filter(|characters| !characters.is_empty())?;
    let shown: Vec<String> =
        characters.iter().map(|character| format!("{character} (U+{:04X})", u32::from(*character))).collect();
    let message = format!("the signature leaves out what has no glyph in `artist_name`: {}", shown.join(", "));
    Some(Warning::new(Code::NoGlyph, message))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::report::Painted;
    use serde_json::json;
    use std::time::Duration;

    fn task(change: serde_json::Value) -> Task {
        let mut body = json!({
            "generation_id": 1, "style_id": 1, "lora_model_url": "s3://bucket/styles/a.safetensors", "prompt_tags": ["x"],
            "artist_name": "Ada", "webhook_url": "http://localhost", "scheduler": "euler", "lora_scale": 0.5,
            "loras": [{ "lora_model_url": "s3://bucket/styles/b.safetensors", "weights": { "unet": { "mid": 0.5, "up": [1, 0] } } }],
        });
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        Task::parse(&body.to_string()).unwrap()
    }

    #[test]
    fn a_painted_task_has_all_and_an_announced_one_what_follows_from_it() {
        let task = task(json!({ "aspect_ratio": "16:9", "artist_name": "Ada 🦀 K" }));
        let cut = Warning::new(Code::PromptCut, "cut".into());
        let report = Report {
            queue_age: Some(Duration::from_millis(1500)),
            stages: vec![
                ("fetch", Duration::from_micros(2_900)),
                ("wait", Duration::from_millis(3)),
                ("denoise", Duration::from_millis(4)),
                ("decode", Duration::from_millis(5)),
                ("upload", Duration::from_millis(6)),
            ],
            painted: Some(Painted {
                model: "org/model@0123".into(),
                lora_hashes: vec!["0".repeat(64), "1".repeat(64)],
                warnings: vec![cut.clone()],
            }),
            ..Report::default()
        };
        let told = serde_json::to_value(detail(&task, &report)).unwrap();
        let (unknown, glyph) = (&told["warnings"][0], &told["warnings"][1]);
        assert_eq!((&unknown["code"], &glyph["code"]), (&json!("aspect_ratio_unknown"), &json!("no_glyph")));
        assert!(glyph["message"].as_str().unwrap().ends_with("`artist_name`: 🦀 (U+1F980)"), "{glyph}");
        let weights = json!({ "unet.mid": 0.5, "unet.up[0]": 1.0, "unet.up[1]": 0.0 });
        let whole = json!({
            "scheduler": "euler", "width": 512, "height": 512, "model": "org/model@0123",
            "loras": [
                { "name": "styles/a.safetensors", "hash": "0".repeat(64), "scale": 0.5 },
                { "name": "styles/b.safetensors", "hash": "1".repeat(64), "scale": 1.0, "weights": weights },
            ],
            "timings": { "queue": 1500, "fetch": 2, "wait": 3, "denoise": 4, "decode": 5, "upload": 6 },
            "warnings": [unknown, glyph, cut],
        });
        assert_eq!(told, whole);
        // Stored before: nothing was painted by this delivery.
        let told = serde_json::to_value(detail(&task, &Report { painted: None, ..report })).unwrap();
        let known = json!({
            "scheduler": "euler", "width": 512, "height": 512,
            "loras": [
                { "name": "styles/a.safetensors", "scale": 0.5 },
                { "name": "styles/b.safetensors", "scale": 1.0, "weights": weights },
            ],
            "warnings": [unknown, glyph],
        });
        assert_eq!(told, known);
    }

    #[test]
    fn what_a_task_begins_from_is_told_by_its_strength_alone() {
        let from = task(json!({ "image_url": "s3://uploads/anna.png", "strength": 0.5 }));
        let told = serde_json::to_value(detail(&from, &Report::default())).unwrap();
        assert_eq!(told["strength"], 0.5);
        assert!(!told.to_string().contains("anna"), "{told}");
    }

    #[test]
    fn a_task_that_gets_all_it_asks_for_has_no_warning() {
        assert_eq!(detail(&task(json!({})), &Report::default()).warnings, []);
    }
}
