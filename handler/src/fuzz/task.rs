//! Bodies of messages. The limits are repeated here, so that neither they nor the contract's can change alone.

use crate::task::{InvalidTask, Task};
use serde_json::{json, value::RawValue};
use std::collections::BTreeMap;

/// A word that the seeds have in every string that must not reach a log.
const MARK: &str = "Xylophon";

/// Whether the bytes are a task.
pub fn task(bytes: &[u8]) -> bool {
    let Ok(body) = str::from_utf8(bytes) else { return false };
    match Task::parse(body) {
        Ok(task) => {
            within_limits(&task);
            same_task_if_written_otherwise(&task, body);
            true
        }
        Err(invalid) => {
            valid_error(&invalid);
            false
        }
    }
}

fn within_limits(task: &Task) {
    assert!(task.generation_id >= 0 && task.style_id >= 0, "an id below 0");
    assert!((1..=8).contains(&task.loras.len()), "{} LoRAs", task.loras.len());
    for lora in &task.loras {
        assert!((3..=63).contains(&lora.bucket.len()) && !lora.bucket.contains('/'), "the bucket {:?}", lora.bucket);
        assert!((1..=1024).contains(&lora.key.len()) && !lora.key.contains('\0'), "the key {:?}", lora.key);
        assert!(!lora.key.split('/').any(|part| part == ".."), "a key that leads upwards: {:?}", lora.key);
        assert!((-10.0..=10.0).contains(&lora.scale), "a scale of {}", lora.scale);
    }
    assert!(task.inversions.len() <= 8, "{} textual inversions", task.inversions.len());
    for inversion in &task.inversions {
        assert!((3..=63).contains(&inversion.bucket.len()), "the bucket {:?}", inversion.bucket);
        assert!(
            (1..=1024).contains(&inversion.key.len()) && !inversion.key.contains('\0'),
            "the key {:?}",
            inversion.key
        );
        assert!(!inversion.key.split('/').any(|part| part == ".."), "a key that leads upwards: {:?}", inversion.key);
        let token = inversion.token.as_deref();
        let visible = token.is_none_or(|token| !token.trim().is_empty() && token.chars().count() <= 100);
        assert!(visible, "the token {token:?}");
    }
    if let Some(image) = &task.image {
        assert!((3..=63).contains(&image.bucket.len()) && !image.bucket.contains('/'), "the bucket {:?}", image.bucket);
        assert!((1..=1024).contains(&image.key.len()) && !image.key.contains('\0'), "the key {:?}", image.key);
        assert!(!image.key.split('/').any(|part| part == ".."), "a key that leads upwards: {:?}", image.key);
        assert!((0.0..=1.0).contains(&image.strength), "a strength of {}", image.strength);
    }
    assert!((1..=task.steps).contains(&task.painted_steps()), "{} of {} steps", task.painted_steps(), task.steps);
    assert!(!task.prompt.trim().is_empty() && task.prompt.chars().count() <= 10_000, "a prompt out of bounds");
    assert!(task.negative_prompt.chars().count() <= 10_000, "a negative prompt out of bounds");
    assert!(!task.artist_name.trim().is_empty() && task.artist_name.chars().count() <= 200, "a name out of bounds");
    assert!(i128::from(i64::MIN) <= task.seed && task.seed <= i128::from(u64::MAX), "the seed {}", task.seed);
    let of_ratio = matches!((task.width, task.height), (512, 512) | (768, 768) | (512, 1024));
    let is_side = |side: usize| (64..=2048).contains(&side) && side.is_multiple_of(8);
    assert!(of_ratio || task.own_size, "a size of its own");
    assert!(is_side(task.width) && is_side(task.height), "{}x{}", task.width, task.height);
    assert!((1..=150).contains(&task.steps), "{} steps", task.steps);
    assert!((0.0..=50.0).contains(&task.guidance_scale), "a guidance of {}", task.guidance_scale);
    let karras = ["dpmsolver++", "euler", "unipc"].contains(&task.scheduler.to_string().as_str());
    assert!(karras || task.karras_sigmas != Some(true), "levels that {} does not have", task.scheduler);
    assert!((1..=4).contains(&task.num_images), "{} pictures", task.num_images);
    assert!(task.signature.size.is_none_or(|size| (0.02..=0.25).contains(&size)), "letters out of bounds");
    assert!((0.0..=0.25).contains(&task.signature.margin), "a margin out of bounds");
    assert_eq!(task.fingerprint().len(), 66);
    valid_address(&task.webhook_url);
}

/// An unknown field with valid JSON that few parsers accept.
const UNKNOWN_FIELD: &str = r#""a field of tomorrow":{"\ud83d":["\udc00",1e400,-0,99999999999999999999,[[[[{}]]]]]},"#;

/// The same fields in another order, with other spaces or with an unknown field, are the same task.
fn same_task_if_written_otherwise(task: &Task, body: &str) {
    let again = |body: &str| {
        let again = Task::parse(body).expect("it was a task when it was written otherwise");
        assert_eq!(format!("{again:?}"), format!("{task:?}"));
    };
    let (before, inside) = body.split_once('{').expect("a task is an object");
    again(&format!("\u{feff}{before}{{{UNKNOWN_FIELD} {inside}"));
    // serde_json, which parses every value, accepts fewer messages than we do.
    if let Ok(fields) = serde_json::from_str::<BTreeMap<String, &RawValue>>(body.trim_start_matches('\u{feff}')) {
        let member = |(name, value): (&String, &&RawValue)| format!(" {}\t: {value}", json!(name));
        let members: Vec<String> = fields.iter().rev().map(member).collect();
        again(&format!("{{{}\n}}", members.join(",")));
        backend_found_in_broken_json(task, &fields, &members);
    }
}

/// The backend is found, too, if the JSON is broken: without its end, or with something invalid in it.
fn backend_found_in_broken_json(task: &Task, fields: &BTreeMap<String, &RawValue>, members: &[String]) {
    for broken in [members.join(",") + "\n", members.join(", nothing ,\u{feff}") + "}"] {
        let invalid = Task::parse(&format!("{{{broken}")).expect_err("no JSON was taken");
        assert!(invalid.reason.starts_with("the message is no JSON: "), "{}", invalid.reason);
        valid_error(&invalid);
        assert_eq!(invalid.generation_id, Some(task.generation_id));
        assert_eq!(invalid.webhook_url.as_ref(), Some(&task.webhook_url), "{}", fields["webhook_url"]);
    }
}

fn valid_error(invalid: &InvalidTask) {
    let reason = &invalid.reason;
    assert!(reason.starts_with('`') || reason.starts_with("the message"), "nothing is named: {reason}");
    assert!(!reason.contains(MARK), "it holds what stood in the message: {reason}");
    assert!(reason.len() <= 1000, "{} bytes long: {reason}", reason.len());
    invalid.webhook_url.iter().for_each(valid_address);
}

fn valid_address(url: &url::Url) {
    let text = url.as_str();
    assert!(text.starts_with("http://") || text.starts_with("https://"), "{text}");
    assert!(url.username().is_empty() && url.password().is_none() && url.query().is_none(), "{text}");
}
