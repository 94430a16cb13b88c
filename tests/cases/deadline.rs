//! An invocation that is too short for a task is answered in time, and the task's message is visible again at once.

use crate::context::{HOUR, PATIENCE, case};
use anyhow::Context;
use e2e::{
    aws::IMAGES,
    backend::{COMPLETE, FAILED, PROGRESS},
};
use std::time::{Duration, Instant};

/// No failed messages.
const NONE: [&str; 0] = [];
/// Too short for waiting until a claim expires.
const SHORT: Duration = Duration::from_secs(4);
/// The time of an invocation that is kept for the steps after the painting.
const KEPT: Duration = Duration::from_secs(2);

#[test]
fn a_task_that_does_not_fit_the_invocation_is_given_back_in_time() {
    case(|ctx| async move {
        let (aws, mut own) = (&ctx.stack.aws, ctx.own_function("deadline").await?);
        let task = ctx.task().with("num_inference_steps", 150);
        let first = own.receive(aws, &task.body()).await?;
        let id = first[0].message_id().context("no message id")?;
        // The first event also waits for the model.
        assert_eq!(own.invoke(&[], HOUR).await?, NONE);
        // A third of the steps takes a third of the time on any machine: too short for all of them.
        let third = own.receive(aws, &ctx.task().with("num_inference_steps", 50).body()).await?;
        let started = Instant::now();
        assert_eq!(own.invoke(&third, HOUR).await?, NONE);
        let short = started.elapsed() + KEPT;
        let started = Instant::now();
        let failures = own.invoke(&first, short).await?;
        assert!(started.elapsed() < short, "it took {:?} of {short:?}", started.elapsed());
        assert_eq!(failures, [id]);
        let calls = ctx.backend.calls_of(task.id());
        assert!(calls.iter().all(|call| call.path == PROGRESS), "{calls:?}");
        let again = aws.receive(&own.queue.url, 20, 1).await?;
        assert_eq!(again.first().and_then(|message| message.message_id()), Some(id), "not visible at once");
        let short_task = ctx.task();
        let next = own.receive(aws, &short_task.body()).await?;
        assert_eq!(own.invoke(&next, HOUR).await?, NONE);
        assert_eq!(ctx.backend.end_of(short_task.id(), PATIENCE).await?.path, COMPLETE);
        Ok(())
    });
}

#[test]
fn a_finished_neighbour_is_answered_while_a_task_waits_for_its_claim() {
    case(|ctx| async move {
        let (aws, mut own) = (&ctx.stack.aws, ctx.own_function("deadline-claim").await?);
        let (done, waiting) = (ctx.task().with("prompt_tags", 1), ctx.task());
        aws.put(IMAGES, &format!("claims/gen_{}", waiting.id()), b"somebody 1\n".to_vec()).await?;
        for task in [&done, &waiting] {
            aws.send(&own.queue.url, &task.body()).await?;
        }
        let mut messages = aws.receive(&own.queue.url, 20, 2).await?;
        if messages.len() < 2 {
            messages.extend(aws.receive(&own.queue.url, 20, 1).await?);
        }
        let is_waiting = |body: Option<&str>| body == Some(waiting.body().as_str());
        let theirs = messages.iter().find(|message| is_waiting(message.body())).context("not received")?;
        let id = theirs.message_id().context("no message id")?;
        let started = Instant::now();
        let failures = own.invoke(&messages, SHORT).await?;
        assert!(started.elapsed() < SHORT, "it took {:?}", started.elapsed());
        assert_eq!(failures, [id]);
        assert_eq!(ctx.backend.end_of(done.id(), Duration::ZERO).await?.path, FAILED);
        assert_eq!(ctx.backend.calls_of(waiting.id()), []);
        Ok(())
    });
}

#[test]
fn a_backend_that_takes_nothing_holds_up_no_answer_and_hears_of_the_picture_later() {
    case(|ctx| async move {
        let mut own = ctx.own_function("deadline-webhook").await?;
        let task = ctx.task();
        let messages = own.receive(&ctx.stack.aws, &task.body()).await?;
        let id = messages[0].message_id().context("no message id")?;
        ctx.backend.refuse(COMPLETE, 503, usize::MAX);
        // Enough for a picture, too short for all attempts of its webhook.
        let limit = Duration::from_secs(8);
        let started = Instant::now();
        let failures = own.invoke(&messages, limit).await?;
        assert!(started.elapsed() < limit, "it took {:?}", started.elapsed());
        assert_eq!(failures, [id]);
        ctx.backend.accept_all();
        assert_eq!(own.invoke(&messages, HOUR).await?, NONE);
        assert_eq!(ctx.backend.end_of(task.id(), Duration::ZERO).await?.path, COMPLETE);
        Ok(())
    });
}
