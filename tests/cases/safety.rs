//! Hosts and buckets that are not allowed are refused before anything is painted.

use crate::context::{PATIENCE, TestContext, case};
use anyhow::Result;
use e2e::{backend::FAILED, lambda::Function, task::Task};
use serde_json::{Value, json};

/// A function with other settings than the shared one.
pub(crate) async fn function(ctx: &TestContext, name: &str, changes: &[(&'static str, &str)]) -> Result<Function> {
    let stack = ctx.stack;
    let mut env = ctx.env(name)?;
    env.retain(|(key, _)| changes.iter().all(|(change, _)| change != key));
    let set = changes.iter().filter(|(_, value)| !value.is_empty());
    env.extend(set.map(|(key, value)| (*key, value.to_string())));
    Function::start(&stack.run, name, &env).await
}

/// Invokes it with one message; whether that is given back.
pub(crate) async fn given_back(function: &Function, body: &str) -> Result<bool> {
    let event =
        json!({ "Records": [{ "messageId": "m", "body": body, "attributes": { "ApproximateReceiveCount": "1" } }] });
    let answer = function.invoke(&event).await?;
    Ok(answer["batchItemFailures"].as_array().is_some_and(|failures| !failures.is_empty()))
}

async fn assert_untold(ctx: &TestContext, function: &Function, task: &Task) -> Result<()> {
    assert!(given_back(function, &task.body()).await?, "left for the dead-letter queue");
    // Nor does that host hear of a bad task.
    assert!(given_back(function, &task.clone().with("prompt_tags", Value::Null).body()).await?);
    assert_eq!(ctx.backend.calls(), [], "the host is not allowed");
    assert_eq!(ctx.etag(task).await, None, "something was painted");
    Ok(())
}

#[test]
fn without_a_list_a_backend_that_is_not_public_hears_nothing() {
    case(|ctx| async move {
        let function = function(&ctx, "function-public", &[("EASEL_ALLOW_PRIVATE_WEBHOOKS", "")]).await?;
        assert_untold(&ctx, &function, &ctx.task()).await?;
        let log = function.process().log_text();
        assert!(log.contains("`webhook_url` leads to a loopback address") && log.contains("generation_id"), "{log}");
        Ok(())
    });
}

#[test]
fn with_lists_only_listed_hosts_and_buckets_are_reached() {
    case(|ctx| async move {
        let host = ctx.backend.url().replace("http://", "");
        let lists = [("EASEL_WEBHOOK_HOSTS", host.as_str()), ("EASEL_LORA_BUCKETS", "*-models")];
        let changes = [&[("EASEL_ALLOW_PRIVATE_WEBHOOKS", "")], &lists[..]].concat();
        let function = function(&ctx, "function-lists", &changes).await?;
        let elsewhere = ctx.task().with("webhook_url", ctx.backend.url().replace("127.0.0.1", "localhost"));
        assert_untold(&ctx, &function, &elsewhere).await?;
        let other_bucket = ctx.task().with("lora_model_url", "s3://stylelicense-images/k");
        assert!(!given_back(&function, &other_bucket.body()).await?);
        let failed = ctx.backend.end_of(other_bucket.id(), PATIENCE).await?;
        let message = failed.error_message();
        assert!(failed.path == FAILED && message.contains("`lora_model_url` names a bucket"), "{}", failed.line());
        // A listed host may have a private address.
        let task = ctx.task();
        assert!(!given_back(&function, &task.body()).await?);
        ctx.painting(&task).await?;
        Ok(())
    });
}
