//! The backend refuses webhooks, or is down, while a task is painted.

use crate::{
    scene::{PATIENCE, Scene, case, model},
    worker::worker,
};
use anyhow::Result;
use e2e::{
    backend::{COMPLETE, Call, FAILED, PROGRESS},
    deletions::DeletionProxy,
    lambda::Function,
    line::{Line, LineOptions},
    stack::function_env,
    task::Task,
    wait,
};
use std::{sync::Arc, time::Duration};

/// The five milestones of seven steps.
fn task(scene: &Scene) -> Task {
    scene.task().with("num_inference_steps", 7)
}

fn statuses(calls: &[Call], path: &str) -> Vec<u16> {
    calls.iter().filter(|call| call.path == path).map(|call| call.status).collect()
}

/// A line and a function of its own: they wait long for a backend that is down, and nobody else shall wait with them.
async fn own_line(scene: &Scene, name: &str) -> Result<Line> {
    let stack = scene.stack;
    let env = function_env(&stack.aws, &stack.run, name, &model())?;
    let function = Arc::new(Function::start(&stack.run, &format!("function-{name}"), &env).await?);
    let options = LineOptions { visibility: Duration::from_secs(2), max_receive_count: 3, batch_size: 1 };
    Line::lay(&stack.run, name, &stack.broker.url(), &stack.aws, &function, options).await
}

#[test]
fn refused_progress_does_no_harm() {
    case(|scene| async move {
        let task = task(&scene);
        scene.backend.refuse(PROGRESS, 500, usize::MAX);
        let painting = scene.paint(&task).await?;
        let calls = scene.backend.calls();
        assert_eq!(statuses(&calls, PROGRESS), [500; 5], "each milestone is told once, taken or not");
        assert_eq!(statuses(&calls, COMPLETE), [200]);
        assert_eq!(painting.picture.width(), 512);
        let record = scene.stack.line.mapping.handled(&task.body(), 1, PATIENCE).await?;
        assert!(record.deleted, "{record:?}");
        Ok(())
    });
}

#[test]
fn a_backend_that_is_down_while_it_is_painted_hears_of_the_end() {
    case(|mut scene| async move {
        let line = own_line(&scene, "down-while-painting").await?;
        let task = task(&scene);
        scene.backend.close().await;
        scene.stack.publisher.publish("down-while-painting", task.body().as_bytes()).await?;
        wait::until("picture in S3", PATIENCE, async || scene.etag(&task).await).await?;
        scene.backend.open().await?;
        let painting = scene.painting(&task).await?;
        assert_eq!(painting.progress, [], "progress is never repeated");
        assert_eq!(statuses(&scene.backend.calls(), COMPLETE), [200]);
        let record = line.mapping.handled(&task.body(), 1, PATIENCE).await?;
        assert!(record.deleted, "{record:?}");
        Ok(())
    });
}

#[test]
fn complete_is_tried_again_until_it_is_taken() {
    case(|scene| async move {
        let line = own_line(&scene, "complete-refused-twice").await?;
        let task = task(&scene);
        scene.backend.refuse(COMPLETE, 503, 2);
        scene.stack.publisher.publish("complete-refused-twice", task.body().as_bytes()).await?;
        let painting = scene.painting(&task).await?;
        let calls = scene.backend.calls();
        assert_eq!(statuses(&calls, COMPLETE), [503, 503, 200]);
        for call in calls.iter().filter(|call| call.path == COMPLETE) {
            assert_eq!(call.body, painting.complete.body, "every try says the same");
        }
        assert_eq!(painting.progress.len(), 5, "painted once");
        let record = line.mapping.handled(&task.body(), 1, PATIENCE).await?;
        assert!(record.deleted && record.receive_count == 1, "{record:?}");
        Ok(())
    });
}

#[test]
fn complete_that_nobody_takes_brings_the_message_back_with_the_same_result() {
    case(|scene| async move {
        let line = own_line(&scene, "complete-refused").await?;
        let task = task(&scene);
        scene.backend.refuse(COMPLETE, 500, usize::MAX);
        scene.stack.publisher.publish("complete-refused", task.body().as_bytes()).await?;
        let record = line.mapping.handled(&task.body(), 1, PATIENCE).await?;
        assert!(!record.deleted, "nobody heard of the end, and the message is gone: {record:?}");
        let tries = statuses(&scene.backend.calls(), COMPLETE).len();
        assert!(tries >= 5, "only {tries} tries");
        let first = scene.etag(&task).await;
        scene.backend.take();
        let painting = scene.painting(&task).await?;
        assert_eq!(painting.complete.body["generation_id"], task.id());
        assert!(first.is_some() && scene.etag(&task).await == first, "another result");
        assert_eq!(painting.progress.len(), 5, "a picture that stands is announced again, not painted again");
        let record = line.mapping.handled(&task.body(), 2, PATIENCE).await?;
        assert!(record.deleted && record.receive_count == 2, "{record:?}");
        Ok(())
    });
}

#[test]
fn a_picture_that_stands_is_never_told_as_failed_and_rests_as_long_as_retry_after_says() {
    case(|scene| async move {
        let (aws, name) = (&scene.stack.aws, "retry-after");
        let queue = aws.queue(name, Duration::from_secs(60), 9).await?;
        let proxy = DeletionProxy::start(aws.endpoint()).await?;
        // Every receive is the last one.
        let options = [("AWS_ENDPOINT_URL_SQS", proxy.url()), ("EASEL_MAX_RECEIVE_COUNT", "1".to_string())];
        let options = options.each_ref().map(|(name, value)| (*name, value.as_str()));
        let worker = worker(&scene, name, &queue, &options)?;
        let task = task(&scene);
        scene.backend.refuse_until(COMPLETE, 429, usize::MAX, "3600");
        aws.send(&queue.url, &task.body()).await?;
        assert_eq!(proxy.hidden(60, PATIENCE).await?, 3600);
        let calls = scene.backend.calls();
        assert_eq!(statuses(&calls, COMPLETE), [429], "the backend was called before it wanted to be");
        assert_eq!(statuses(&calls, FAILED), [0; 0]);
        assert!(scene.etag(&task).await.is_some(), "no picture");
        scene.backend.take();
        // Another delivery, as the dead-letter queue's redrive makes it.
        aws.send(&queue.url, &task.body()).await?;
        let painting = scene.painting(&task).await?;
        assert_eq!(painting.progress.len(), 5, "painted again");
        assert!(worker.terminate(PATIENCE).await?.success());
        Ok(())
    });
}

#[test]
fn a_failure_that_the_backend_has_no_time_for_is_told_later() {
    case(|scene| async move {
        let (aws, name) = (&scene.stack.aws, "retry-after-failed");
        let queue = aws.queue(name, Duration::from_secs(60), 9).await?;
        let proxy = DeletionProxy::start(aws.endpoint()).await?;
        let worker = worker(&scene, name, &queue, &[("AWS_ENDPOINT_URL_SQS", &proxy.url())])?;
        let task = scene.task().with("prompt_tags", 1);
        scene.backend.refuse_until(FAILED, 503, 1, "120");
        aws.send(&queue.url, &task.body()).await?;
        assert_eq!(proxy.hidden(60, PATIENCE).await?, 120);
        assert_eq!(statuses(&scene.backend.calls(), FAILED), [503]);
        assert!(worker.terminate(PATIENCE).await?.success());
        Ok(())
    });
}
