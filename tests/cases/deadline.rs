//! An invocation that is too short for a task is answered in time, and the task's message is visible again at once.

use crate::context::{HOUR, OwnFunction, PATIENCE, case};
use anyhow::Context;
use e2e::{
    aws::IMAGES,
    backend::{COMPLETE, FAILED, PROGRESS},
    mapping, wait,
};
use serde_json::json;
use std::time::{Duration, Instant};

/// Too short for waiting until a claim expires.
const SHORT: Duration = Duration::from_secs(4);
/// The time of an invocation that is kept for the steps after the painting.
const KEPT: Duration = Duration::from_secs(2);

#[test]
fn a_task_that_does_not_fit_the_invocation_is_given_back_in_time() {
    case(|ctx| async move {
        let (aws, OwnFunction { queue, mut api, function: _function }) =
            (&ctx.stack.aws, ctx.own_function("deadline").await?);
        let task = ctx.task().with("num_inference_steps", 150);
        aws.send(&queue.url, &task.body()).await?;
        let first = aws.receive(&queue.url, 20, 1).await?;
        let id = first[0].message_id().context("no message id")?.to_string();
        let event = |messages| mapping::event(messages, &queue.arn());
        // The first event also waits for the model.
        let ready = wait::at_most("function", PATIENCE, api.invoke(json!({ "Records": [] }), HOUR)).await??;
        assert_eq!(ready, Ok(json!({ "batchItemFailures": [] })));
        // A third of the steps takes a third of the time on any machine: too short for all of them.
        let third = ctx.task().with("num_inference_steps", 50);
        aws.send(&queue.url, &third.body()).await?;
        let received = aws.receive(&queue.url, 20, 1).await?;
        let started = Instant::now();
        let answer = wait::at_most("answer", PATIENCE, api.invoke(event(&received), HOUR)).await??;
        assert_eq!(answer, Ok(json!({ "batchItemFailures": [] })));
        let short = started.elapsed() + KEPT;
        let started = Instant::now();
        let answer = wait::at_most("answer", PATIENCE, api.invoke(event(&first), short)).await??;
        assert!(started.elapsed() < short, "it took {:?} of {short:?}", started.elapsed());
        assert_eq!(answer, Ok(json!({ "batchItemFailures": [{ "itemIdentifier": id }] })));
        let calls = ctx.backend.calls_of(task.id());
        assert!(calls.iter().all(|call| call.path == PROGRESS), "{calls:?}");
        let again = aws.receive(&queue.url, 20, 1).await?;
        assert_eq!(again.first().and_then(|message| message.message_id()), Some(id.as_str()), "not visible at once");
        let short_task = ctx.task();
        aws.send(&queue.url, &short_task.body()).await?;
        let next = aws.receive(&queue.url, 20, 1).await?;
        let answer = wait::at_most("answer", PATIENCE, api.invoke(event(&next), HOUR)).await??;
        assert_eq!(answer, Ok(json!({ "batchItemFailures": [] })));
        assert_eq!(ctx.backend.end_of(short_task.id(), PATIENCE).await?.path, COMPLETE);
        Ok(())
    });
}

#[test]
fn a_finished_neighbour_is_answered_while_a_task_waits_for_its_claim() {
    case(|ctx| async move {
        let (aws, OwnFunction { queue, mut api, function: _function }) =
            (&ctx.stack.aws, ctx.own_function("deadline-claim").await?);
        let (done, waiting) = (ctx.task().with("prompt_tags", 1), ctx.task());
        aws.put(IMAGES, &format!("claims/gen_{}", waiting.id()), b"somebody 1\n".to_vec()).await?;
        for task in [&done, &waiting] {
            aws.send(&queue.url, &task.body()).await?;
        }
        let mut messages = aws.receive(&queue.url, 20, 2).await?;
        if messages.len() < 2 {
            messages.extend(aws.receive(&queue.url, 20, 1).await?);
        }
        let is_waiting = |body: Option<&str>| body == Some(waiting.body().as_str());
        let theirs = messages.iter().find(|message| is_waiting(message.body())).context("not received")?;
        let id = theirs.message_id().context("no message id")?.to_string();
        let started = Instant::now();
        let answer =
            wait::at_most("answer", PATIENCE, api.invoke(mapping::event(&messages, &queue.arn()), SHORT)).await??;
        assert!(started.elapsed() < SHORT, "it took {:?}", started.elapsed());
        assert_eq!(answer, Ok(json!({ "batchItemFailures": [{ "itemIdentifier": id }] })));
        assert_eq!(ctx.backend.end_of(done.id(), Duration::ZERO).await?.path, FAILED);
        assert_eq!(ctx.backend.calls_of(waiting.id()), []);
        Ok(())
    });
}

#[test]
fn a_backend_that_takes_nothing_holds_up_no_answer_and_hears_of_the_picture_later() {
    case(|ctx| async move {
        let (aws, OwnFunction { queue, mut api, function: _function }) =
            (&ctx.stack.aws, ctx.own_function("deadline-webhook").await?);
        let task = ctx.task();
        aws.send(&queue.url, &task.body()).await?;
        let messages = aws.receive(&queue.url, 20, 1).await?;
        let event = mapping::event(&messages, &queue.arn());
        let id = messages[0].message_id().context("no message id")?.to_string();
        ctx.backend.refuse(COMPLETE, 503, usize::MAX);
        // Enough for a picture, too short for all attempts of its webhook.
        let limit = Duration::from_secs(8);
        let started = Instant::now();
        let answer = wait::at_most("answer", PATIENCE, api.invoke(event.clone(), limit)).await??;
        assert!(started.elapsed() < limit, "it took {:?}", started.elapsed());
        assert_eq!(answer, Ok(json!({ "batchItemFailures": [{ "itemIdentifier": id }] })));
        ctx.backend.take();
        let answer = wait::at_most("answer", PATIENCE, api.invoke(event, HOUR)).await??;
        assert_eq!(answer, Ok(json!({ "batchItemFailures": [] })));
        assert_eq!(ctx.backend.end_of(task.id(), Duration::ZERO).await?.path, COMPLETE);
        Ok(())
    });
}
