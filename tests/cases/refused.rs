//! Tasks that cannot be painted: the backend is told which field is at fault, the message is consumed, nothing is painted,
//! and the same process paints the next task.

use crate::{
    happy::assert_headers,
    scene::{PATIENCE, Scene, case},
};
use anyhow::Result;
use e2e::{
    aws::MODELS,
    backend::FAILED,
    line::{Line, LineOptions},
    task::Task,
};
use serde_json::{Value, json};
use std::time::Duration;

async fn refused(scene: &Scene, task: &Task, field: &str) -> Result<()> {
    let function = scene.stack.function.process();
    let pid = function.id();
    scene.publish(&task.body()).await?;
    let failed = scene.backend.end_of(task.id(), PATIENCE).await?;
    assert_eq!((failed.method.as_str(), failed.path.as_str()), ("POST", FAILED));
    assert_headers(&failed);
    let message = failed.body["error_message"].as_str().unwrap_or_default();
    assert!(message.contains(&format!("`{field}")), "the message must name {field}: {message}");
    let body = json!({ "generation_id": task.id(), "error_message": message,
                       "error_code": "GENERATION_FAILED", "retry_count": 0 });
    assert_eq!(failed.body, body);
    let record = scene.stack.line.mapping.handled(&task.body(), 1, PATIENCE).await?;
    assert!(record.deleted, "the message must be consumed: {record:?}");
    // The next task is painted behind it, by the same process.
    let painting = scene.paint(&scene.task().with("num_inference_steps", 1)).await?;
    assert_eq!(painting.complete.body["metadata"]["steps"], 1);
    assert!(function.is_running() && function.id() == pid, "the function's process was replaced");
    assert_eq!(scene.backend.calls_of(task.id()), [failed], "one failed webhook and nothing else");
    assert_eq!(scene.etag(task).await, None, "something was painted");
    assert_eq!(scene.stack.line.mapping.receives(&task.body()).len(), 1, "it came again");
    Ok(())
}

macro_rules! refused {
    ($($name:ident: $field:literal, $change:expr;)*) => {$(
        #[test]
        fn $name() {
            case(|scene| async move {
                let change: fn(Task) -> Task = $change;
                refused(&scene, &change(scene.task()), $field).await
            });
        }
    )*};
}

refused! {
    a_missing_artist_name: "artist_name", |task| task.without("artist_name");
    missing_tags: "prompt_tags", |task| task.without("prompt_tags");
    a_missing_lora_address: "lora_model_url", |task| task.without("lora_model_url");
    a_missing_style: "style_id", |task| task.without("style_id");
    tags_that_are_a_string: "prompt_tags", |task| task.with("prompt_tags", "red circle");
    a_tag_that_is_a_number: "prompt_tags", |task| task.with("prompt_tags", json!(["red", 7]));
    a_seed_that_is_a_string: "seed", |task| task.with("seed", "42");
    a_style_that_is_a_fraction: "style_id", |task| task.with("style_id", 1.5);
    an_artist_name_that_is_null: "artist_name", |task| task.with("artist_name", Value::Null);
    a_negative_style: "style_id", |task| task.with("style_id", -1);
    empty_tags: "prompt_tags", |task| task.with("prompt_tags", json!([]));
    an_artist_name_of_10_000_characters: "artist_name", |task| task.with("artist_name", "x".repeat(10_000));
    an_artist_name_of_emoji_alone: "artist_name", |task| task.with("artist_name", "🦀 ❤\u{fe0f}");
    a_lora_address_that_is_not_s3: "lora_model_url", |task| task.with("lora_model_url", "https://h/lora.safetensors");
    zero_steps: "num_inference_steps", |task| task.with("num_inference_steps", 0);
    a_missing_lora_object: "lora_model_url", |task| task.with("lora_model_url", format!("s3://{MODELS}/none"));
    a_missing_lora_bucket: "lora_model_url", |task| task.with("lora_model_url", "s3://no-such-bucket/none");
}

#[test]
fn a_negative_id() {
    case(|scene| async move {
        let task = scene.task();
        let id = task.id();
        refused(&scene, &task.with("generation_id", -id), "generation_id").await
    });
}

#[test]
fn a_lora_that_is_no_safetensors() {
    case(|scene| async move {
        let url = scene.stack.put_lora("models/style_11/lora_weights.safetensors", b"no tensors".repeat(99)).await?;
        refused(&scene, &scene.task().with("lora_model_url", url), "lora_model_url").await
    });
}

/// Nobody can be told of these: after its last receive each lies in the dead-letter queue, unchanged.
#[test]
fn what_nobody_can_be_told_of_ends_in_the_dead_letter_queue() {
    case(|scene| async move {
        let stack = scene.stack;
        let options = LineOptions { visibility: Duration::from_secs(1), max_receive_count: 2, batch_size: 1 };
        let line = Line::lay(&stack.run, "hopeless", &stack.broker.url(), &stack.aws, &stack.function, options).await?;
        let mut bodies = vec![
            "{\"generation_id\": 500,".to_string(),
            "[]".to_string(),
            scene.task().with("generation_id", "500").body(),
            scene.task().without("webhook_url").body(),
            scene.task().with("webhook_url", "not an address").body(),
        ];
        stack.publisher.publish_all("hopeless", bodies.iter().map(String::as_bytes)).await?;
        for body in &bodies {
            let record = line.mapping.handled(body, 2, PATIENCE).await?;
            assert!(!record.deleted && record.receive_count == 2, "{record:?}");
        }
        let dead_letters = &line.queue.dead_letter_url;
        stack.aws.has_depth(dead_letters, (bodies.len() as u32, 0), PATIENCE).await?;
        let mut dead = stack.aws.empty(dead_letters).await?;
        dead.sort();
        bodies.sort();
        assert_eq!(dead, bodies);
        assert_eq!(stack.aws.depth(&line.queue.url).await?, (0, 0));
        assert_eq!(scene.backend.calls(), [], "there was nobody to tell");
        let pid = stack.function.process().id();
        scene.paint(&scene.task()).await?;
        assert_eq!(stack.function.process().id(), pid);
        Ok(())
    });
}
