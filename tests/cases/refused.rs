//! Tasks that cannot be painted: the failed webhook names the bad field, the message is consumed, and the same process paints
//! the next task.

use crate::{
    context::{PATIENCE, case},
    happy::assert_headers,
};
use anyhow::{Context, ensure};
use e2e::{
    aws::MODELS,
    backend::FAILED,
    stack::{Route, RouteOptions},
    task::Task,
};
use serde_json::{Value, json};
use std::time::Duration;

/// What makes a task unfit, and the field that its failed webhook names.
type Change = (&'static str, fn(Task) -> Task);

const CHANGES: [Change; 22] = [
    ("artist_name", |task| task.without("artist_name")),
    ("prompt_tags", |task| task.without("prompt_tags")),
    ("lora_model_url", |task| task.without("lora_model_url")),
    ("style_id", |task| task.without("style_id")),
    ("prompt_tags", |task| task.with("prompt_tags", "red circle")),
    ("prompt_tags", |task| task.with("prompt_tags", json!(["red", 7]))),
    ("seed", |task| task.with("seed", "42")),
    ("style_id", |task| task.with("style_id", 1.5)),
    ("artist_name", |task| task.with("artist_name", Value::Null)),
    ("style_id", |task| task.with("style_id", -1)),
    ("prompt_tags", |task| task.with("prompt_tags", json!([]))),
    ("artist_name", |task| task.with("artist_name", "x".repeat(10_000))),
    ("artist_name", |task| task.with("artist_name", "🦀 ❤\u{fe0f}")),
    ("lora_model_url", |task| task.with("lora_model_url", "https://h/lora.safetensors")),
    ("num_inference_steps", |task| task.with("num_inference_steps", 0)),
    ("height", |task| task.with("width", 512)),
    ("width", |task| task.with("width", 260).with("height", 512)),
    ("width", |task| task.with("width", 248).with("height", 512)),
    ("height", |task| task.with("width", 512).with("height", 1032)),
    ("lora_model_url", |task| task.with("lora_model_url", format!("s3://{MODELS}/none"))),
    ("lora_model_url", |task| task.with("lora_model_url", "s3://no-such-bucket/none")),
    ("generation_id", |task| {
        let id = task.id();
        task.with("generation_id", -id)
    }),
];

#[test]
fn what_cannot_be_painted_is_reported_once_and_the_process_goes_on() {
    case(|ctx| async move {
        let function = ctx.stack.function.process();
        let pid = function.id();
        let url = ctx.stack.put_lora("models/style_11/lora_weights.safetensors", b"no tensors".repeat(99)).await?;
        let mut tasks: Vec<_> = CHANGES.iter().map(|(field, change)| (*field, change(ctx.task()))).collect();
        tasks.push(("lora_model_url", ctx.task().with("lora_model_url", url)));
        for (_, task) in &tasks {
            ctx.publish(&task.body()).await?;
        }
        for (field, task) in &tasks {
            let failed = ctx.backend.end_of(task.id(), PATIENCE).await?;
            let sent = task.body();
            assert_eq!((failed.method.as_str(), failed.path.as_str()), ("POST", FAILED), "{sent}");
            assert_headers(&failed);
            let message = failed.error_message();
            assert!(message.contains(&format!("`{field}")), "the message must name {field}: {message}");
            let body = json!({ "generation_id": task.id(), "error_message": message,
                               "error_code": "GENERATION_FAILED", "retry_count": 0 });
            assert_eq!(failed.body, body);
            let record = ctx.stack.route.mapping.handled(&sent, 1, PATIENCE).await?;
            assert!(record.deleted, "the message must be consumed: {record:?}");
        }
        let painting = ctx.paint(&ctx.task().with("num_inference_steps", 1)).await?;
        assert_eq!(painting.complete.body["metadata"]["steps"], 1);
        assert!(function.is_running() && function.id() == pid, "the function's process was replaced");
        for (_, task) in &tasks {
            assert_eq!(
                ctx.backend.calls_of(task.id()).len(),
                1,
                "one failed webhook and nothing else: {}",
                task.body()
            );
            assert_eq!(ctx.etag(task).await, None, "something was painted: {}", task.body());
            assert_eq!(ctx.stack.route.mapping.receives(&task.body()).len(), 1, "it came again: {}", task.body());
        }
        Ok(())
    });
}

/// The task's JSON with more members at its end.
fn and(task: &Task, members: &str) -> String {
    task.body().trim_end_matches('}').to_string() + "," + members + "}"
}

/// Values that most JSON readers cannot hold, and texts that are not JSON: the backend is notified of each.
#[test]
fn what_can_hardly_be_read_is_told() {
    case(|ctx| async move {
        let with = |members: &str| {
            let task = ctx.task();
            (task.id(), and(&task, members))
        };
        let changed = |change: fn(String) -> String| {
            let task = ctx.task();
            (task.id(), change(task.body()))
        };
        let deep = "[".repeat(130) + &"]".repeat(130);
        let bodies = [
            (with(r#""negative_prompt":"\ud83d""#), "`negative_prompt` is a string with half of a surrogate pair"),
            (with(r#""guidance_scale":1e400"#), "`guidance_scale` is 1e400, must be a number from"),
            (with(&format!("\"seed\":{}", "9".repeat(100))), "`seed` is an integer of 100 digits, must be"),
            (with(&format!("\"loras\":{deep}")), "`loras[0]` is an array, must be an object"),
            (with("\u{feff}\"seed\":1"), "no JSON: a byte order mark (U+FEFF) stands at line 1"),
            (with("\"guidance_scale\":NaN"), "no JSON: expected value at line 1"),
            (with("\"negative_prompt\":\"a\nb\""), "no JSON: control character"),
            (changed(|body| body + "}"), "no JSON: trailing characters at line 1"),
            (changed(|body| body.trim_end_matches('}').to_string()), "no JSON: it ends too early, at line 1"),
        ];
        for ((_, body), _) in &bodies {
            ctx.publish(body).await?;
        }
        for ((id, body), expected) in &bodies {
            let failed = ctx.backend.end_of(*id, PATIENCE).await?;
            let message = failed.error_message();
            assert!(failed.path == FAILED && message.contains(expected), "not `{expected}`: {}", failed.line());
            let record = ctx.stack.route.mapping.handled(body, 1, PATIENCE).await?;
            assert!(record.deleted, "the message must be consumed: {record:?}");
        }
        assert_eq!(ctx.backend.calls().len(), bodies.len(), "one failed webhook each and nothing else");
        Ok(())
    });
}

/// The backend may add fields of any kind before we know them.
#[test]
fn fields_of_tomorrow_may_hold_what_few_readers_take() {
    case(|ctx| async move {
        let task = ctx.task().with("num_inference_steps", 1);
        let deep = "[".repeat(5000) + &"]".repeat(5000);
        let more = format!(r#""new":["\ud83d",1e400,{}],"\udc00":{deep}"#, "9".repeat(100));
        ctx.publish(&format!("\u{feff}{}", and(&task, &more))).await?;
        assert_eq!(ctx.painting(&task).await?.complete.body["metadata"]["steps"], 1);
        Ok(())
    });
}

#[test]
fn a_lora_with_names_of_20_mb_is_told_in_few_bytes() {
    case(|ctx| async move {
        let name = "x".repeat(20_000_000);
        let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
        let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat();
        let url = ctx.stack.put_lora("models/style_12/lora_weights.safetensors", file).await?;
        let task = ctx.task().with("lora_model_url", url);
        ctx.publish(&task.body()).await?;
        let failed = ctx.backend.end_of(task.id(), PATIENCE).await?;
        let message = failed.error_message();
        ensure!(failed.path == FAILED && message.contains("(cut, 20000000 bytes in all)`"), "{:.2000}", failed.text);
        assert!(failed.text.len() < 2000, "a webhook of {} bytes", failed.text.len());
        let record = ctx.stack.route.mapping.handled(&task.body(), 1, PATIENCE).await?;
        assert!(record.deleted, "the message must be consumed: {record:?}");
        let log = ctx.stack.function.process().log_text();
        let longest = log.lines().map(str::len).max().context("no log")?;
        assert!(longest < 8000, "a log line of {longest} bytes");
        Ok(())
    });
}

/// No backend can be notified of these: after the last receive each is in the dead-letter queue, unchanged.
#[test]
fn what_nobody_can_be_told_of_ends_in_the_dead_letter_queue() {
    case(|ctx| async move {
        let stack = ctx.stack;
        let options = RouteOptions { visibility: Duration::from_secs(1), max_receive_count: 2, batch_size: 1 };
        let route =
            Route::start(&stack.run, "hopeless", &stack.broker.url(), &stack.aws, &stack.function, options).await?;
        let mut bodies = vec![
            "{\"generation_id\": 500,".to_string(),
            "[]".to_string(),
            // Cut off within the id, which may be 5001.
            format!("{{\"webhook_url\": \"{}\", \"generation_id\": 500", ctx.backend.url()),
            ctx.task().with("generation_id", "500").body(),
            ctx.task().without("webhook_url").body(),
            ctx.task().with("webhook_url", "not an address").body(),
        ];
        stack.publisher.publish_all("hopeless", bodies.iter().map(String::as_bytes)).await?;
        for body in &bodies {
            let record = route.mapping.handled(body, 2, PATIENCE).await?;
            assert!(!record.deleted && record.receive_count == 2, "{record:?}");
        }
        let dead_letters = &route.queue.dead_letter_url;
        stack.aws.has_depth(dead_letters, (bodies.len() as u32, 0), PATIENCE).await?;
        let mut dead = stack.aws.empty(dead_letters).await?;
        dead.sort();
        bodies.sort();
        assert_eq!(dead, bodies);
        assert_eq!(stack.aws.depth(&route.queue.url).await?, (0, 0));
        assert_eq!(ctx.backend.calls(), [], "no webhook was possible");
        let pid = stack.function.process().id();
        ctx.paint(&ctx.task()).await?;
        assert_eq!(stack.function.process().id(), pid);
        Ok(())
    });
}
