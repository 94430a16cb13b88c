//! An invocation that is too short for its task: given back in time, visible again at once, and told to nobody.

use crate::scene::{HOUR, PATIENCE, Solo, case};
use anyhow::Context;
use e2e::{
    backend::{COMPLETE, PROGRESS},
    mapping, wait,
};
use serde_json::json;
use std::time::{Duration, Instant};

/// Too short for the task, long enough to measure a step.
const SHORT: Duration = Duration::from_secs(4);

#[test]
fn a_task_that_does_not_fit_the_invocation_is_given_back_in_time() {
    case(|scene| async move {
        let (aws, Solo { queue, mut api, function: _function }) = (&scene.stack.aws, scene.solo("deadline").await?);
        let task = scene.task().with("num_inference_steps", 150);
        aws.send(&queue.url, &task.body()).await?;
        let first = aws.receive(&queue.url, 20, 1).await?;
        let id = first[0].message_id().context("no message id")?.to_string();
        let event = |messages| mapping::event(messages, &queue.arn());
        // The first event also waits for the model.
        let ready = wait::at_most("function", PATIENCE, api.invoke(json!({ "Records": [] }), HOUR)).await??;
        assert_eq!(ready, Ok(json!({ "batchItemFailures": [] })));
        let started = Instant::now();
        let answer = wait::at_most("answer", PATIENCE, api.invoke(event(&first), SHORT)).await??;
        assert!(started.elapsed() < SHORT, "it took {:?}", started.elapsed());
        assert_eq!(answer, Ok(json!({ "batchItemFailures": [{ "itemIdentifier": id }] })));
        let calls = scene.backend.calls_of(task.id());
        assert!(calls.iter().all(|call| call.path == PROGRESS), "{calls:?}");
        let again = aws.receive(&queue.url, 20, 1).await?;
        assert_eq!(again.first().and_then(|message| message.message_id()), Some(id.as_str()), "not visible at once");
        let short_task = scene.task();
        aws.send(&queue.url, &short_task.body()).await?;
        let next = aws.receive(&queue.url, 20, 1).await?;
        let answer = wait::at_most("answer", PATIENCE, api.invoke(event(&next), HOUR)).await??;
        assert_eq!(answer, Ok(json!({ "batchItemFailures": [] })));
        assert_eq!(scene.backend.end_of(short_task.id(), PATIENCE).await?.path, COMPLETE);
        Ok(())
    });
}
