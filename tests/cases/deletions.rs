//! A worker deletes the messages of finished tasks in batches, and no deletion is lost.

use crate::{
    context::{PATIENCE, TestContext, case},
    worker::worker,
};
use anyhow::Result;
use e2e::{
    aws::Queue,
    aws_proxies::DeletionProxy,
    backend::{COMPLETE, Call, FAILED, PROGRESS},
    process::Process,
    task::Task,
    wait,
};
use std::time::Duration;

/// A worker with three concurrent tasks, with a proxy for its deletions.
async fn start(ctx: &TestContext, name: &str, visibility: &str) -> Result<(Queue, DeletionProxy, Process)> {
    let aws = &ctx.stack.aws;
    let queue = aws.queue(name, Duration::from_secs(visibility.parse()?), 9).await?;
    let proxy = DeletionProxy::start(aws.endpoint()).await?;
    let options = [
        ("AWS_ENDPOINT_URL_SQS", proxy.url()),
        ("EASEL_CONCURRENCY", "3".to_string()),
        ("EASEL_VISIBILITY_TIMEOUT", visibility.to_string()),
    ];
    let options = options.each_ref().map(|(name, value)| (*name, value.as_str()));
    let worker = worker(ctx, name, &queue, &options)?;
    Ok((queue, proxy, worker))
}

/// Tasks that fail as soon as they are read.
fn short(ctx: &TestContext, count: usize) -> Vec<Task> {
    (0..count).map(|_| ctx.task().with("prompt_tags", 1)).collect()
}

async fn ended(ctx: &TestContext, queue: &Queue, tasks: &[Task]) -> Result<()> {
    for task in tasks {
        ctx.stack.aws.send(&queue.url, &task.body()).await?;
    }
    for task in tasks {
        assert_eq!(ctx.backend.end_of(task.id(), PATIENCE).await?.path, FAILED);
    }
    Ok(())
}

#[test]
fn tasks_that_end_while_a_deletion_is_on_its_way_are_deleted_with_one_request() {
    case(|ctx| async move {
        let (queue, proxy, worker) = start(&ctx, "deletions", "60").await?;
        let tasks = short(&ctx, 14);
        proxy.hold(true);
        ended(&ctx, &queue, &tasks[..1]).await?;
        proxy.requests(1, PATIENCE).await?;
        // Their slots are free although no message is deleted yet: more of them end than there are slots, and than SQS deletes
        // with one request.
        ended(&ctx, &queue, &tasks[1..]).await?;
        // The last deletions may be queued only now.
        proxy.hold(false);
        ctx.stack.aws.has_depth(&queue.url, (0, 0), PATIENCE).await?;
        let batches = proxy.batches();
        assert_eq!(batches.iter().sum::<usize>(), 14, "{batches:?}");
        assert!(batches.len() <= 4 && batches.iter().all(|&entries| entries <= 10), "{batches:?}");
        assert!(worker.terminate(PATIENCE).await?.success());
        Ok(())
    });
}

#[test]
fn an_entry_that_was_not_deleted_is_tried_again_alone() {
    case(|ctx| async move {
        let (queue, proxy, worker) = start(&ctx, "deletions-entry", "60").await?;
        let tasks = short(&ctx, 3);
        proxy.hold(true);
        proxy.fail(2);
        ended(&ctx, &queue, &tasks).await?;
        proxy.requests(1, PATIENCE).await?;
        proxy.hold(false);
        ctx.stack.aws.has_depth(&queue.url, (0, 0), PATIENCE).await?;
        assert_eq!(proxy.batches().iter().sum::<usize>(), 3 + 2, "{:?}", proxy.batches());
        for task in &tasks {
            assert_eq!(ctx.backend.calls_of(task.id()).len(), 1, "it came again");
        }
        assert!(worker.terminate(PATIENCE).await?.success());
        Ok(())
    });
}

/// SQS reports a throttled entry with `SenderFault` true.
#[test]
fn an_entry_that_was_throttled_is_tried_again() {
    case(|ctx| async move {
        let (queue, proxy, worker) = start(&ctx, "deletions-throttled", "60").await?;
        proxy.throttle(1);
        ended(&ctx, &queue, &short(&ctx, 1)).await?;
        ctx.stack.aws.has_depth(&queue.url, (0, 0), Duration::from_secs(30)).await?;
        assert_eq!(proxy.batches(), [1, 1]);
        assert!(worker.terminate(PATIENCE).await?.success());
        Ok(())
    });
}

/// The heartbeat is under way while the task ends and is deleted.
#[test]
fn the_work_on_a_task_does_not_wait_for_its_heartbeat() {
    case(|ctx| async move {
        let (queue, proxy, worker) = start(&ctx, "heartbeat", "3").await?;
        proxy.ignore_extensions();
        // The task stays in work until the heartbeat is under way.
        ctx.backend.refuse_with_retry_after(COMPLETE, 503, usize::MAX, "1");
        let task = ctx.task();
        ctx.stack.aws.send(&queue.url, &task.body()).await?;
        proxy.ignored(PATIENCE).await?;
        ctx.backend.accept_all();
        // Sooner than any timeout of the unanswered request.
        assert_eq!(ctx.backend.end_of(task.id(), Duration::from_secs(8)).await?.path, COMPLETE);
        worker.kill().await;
        Ok(())
    });
}

#[test]
fn an_entry_that_sqs_refuses_for_good_is_not_tried_again() {
    case(|ctx| async move {
        let (queue, proxy, worker) = start(&ctx, "deletions-refused", "60").await?;
        proxy.refuse(1);
        ended(&ctx, &queue, &short(&ctx, 1)).await?;
        proxy.requests(1, PATIENCE).await?;
        assert!(worker.terminate(PATIENCE).await?.success());
        assert_eq!(proxy.batches(), [1]);
        assert!(worker.log_text().contains("was not deleted: it comes again"), "{}", worker.log_text());
        assert_eq!(ctx.stack.aws.depth(&queue.url).await?, (0, 1));
        Ok(())
    });
}

#[test]
fn sigterm_right_after_a_task_loses_no_deletion() {
    case(|ctx| async move {
        let (queue, proxy, worker) = start(&ctx, "deletions-term", "60").await?;
        proxy.hold(true);
        proxy.fail(1);
        let tasks = short(&ctx, 2);
        ended(&ctx, &queue, &tasks).await?;
        proxy.requests(1, PATIENCE).await?;
        let (status, ()) = tokio::join!(worker.terminate(PATIENCE), async { proxy.hold(false) });
        let status = status?;
        assert!(status.success(), "{}", worker.error(&status.to_string()));
        assert_eq!(ctx.stack.aws.depth(&queue.url).await?, (0, 0));
        Ok(())
    });
}

#[test]
fn an_sqs_that_answers_no_more_holds_up_no_end() {
    case(|ctx| async move {
        let (queue, proxy, worker) = start(&ctx, "deletions-hang", "60").await?;
        proxy.hold(true);
        ended(&ctx, &queue, &short(&ctx, 1)).await?;
        proxy.requests(1, PATIENCE).await?;
        assert!(worker.terminate(Duration::from_secs(30)).await?.success());
        assert!(worker.log_text().contains("were not deleted: they come again"), "{}", worker.log_text());
        Ok(())
    });
}

#[test]
fn a_message_that_is_never_deleted_comes_again_and_is_announced_not_painted() {
    case(|ctx| async move {
        let (queue, proxy, worker) = start(&ctx, "deletions-never", "3").await?;
        let task = ctx.task();
        // Deletions with the first receipt fail until it expires.
        proxy.fail(usize::MAX);
        ctx.stack.aws.send(&queue.url, &task.body()).await?;
        ctx.painting(&task).await?;
        let (mut calls, id) = (ctx.backend.follow(), Some(task.id()));
        let is_complete = |call: &&Call| call.path == COMPLETE && call.generation_id() == id;
        let again = calls.wait_for(|calls| calls.iter().filter(is_complete).count() > 1);
        wait::at_most("second complete", PATIENCE, again).await??;
        proxy.fail(0);
        ctx.stack.aws.has_depth(&queue.url, (0, 0), PATIENCE).await?;
        let mut starts = ctx.backend.calls_of(task.id());
        starts.retain(|call| call.path == PROGRESS && call.body["progress"]["current_step"] == 0);
        assert_eq!(starts.len(), 1, "painted again");
        assert!(worker.terminate(PATIENCE).await?.success());
        Ok(())
    });
}
