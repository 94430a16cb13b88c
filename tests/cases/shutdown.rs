//! A function that is told to end: what is in work is finished and answered first.

use crate::scene::{HOUR, PATIENCE, Solo, case};
use e2e::{
    backend::{COMPLETE, PROGRESS},
    mapping, wait,
};
use rustix::process::Signal;
use serde_json::json;
use std::time::Duration;

/// An answer that is lost brings the event again, after the queue's whole visibility timeout.
#[test]
fn sigterm_lets_the_event_in_work_be_painted_and_answered() {
    case(|scene| async move {
        let (aws, Solo { queue, mut api, function }) = (&scene.stack.aws, scene.solo("shutdown").await?);
        let task = scene.task().with("num_inference_steps", 7);
        aws.send(&queue.url, &task.body()).await?;
        let messages = aws.receive(&queue.url, 20, 1).await?;
        let answer = api.invoke(mapping::event(&messages, &queue.arn()), HOUR);
        let ended = async {
            scene.backend.call("progress", PATIENCE, |call| call.path == PROGRESS).await?;
            function.terminate(PATIENCE).await
        };
        let (answer, ended) = wait::at_most("answer and end", PATIENCE, async { tokio::join!(answer, ended) }).await?;
        assert_eq!(answer?, Ok(json!({ "batchItemFailures": [] })));
        assert!(ended?.success(), "{}", function.fault("no clean end"));
        assert_eq!(scene.backend.end_of(task.id(), Duration::ZERO).await?.path, COMPLETE);
        Ok(())
    });
}

#[test]
fn a_second_signal_ends_the_function_at_once() {
    case(|scene| async move {
        let (aws, Solo { queue, mut api, function }) = (&scene.stack.aws, scene.solo("shutdown-twice").await?);
        // However fast it is painted, it is in work until it is told.
        scene.backend.refuse_until(COMPLETE, 503, usize::MAX, "1");
        let task = scene.task();
        aws.send(&queue.url, &task.body()).await?;
        let messages = aws.receive(&queue.url, 20, 1).await?;
        let answer = api.invoke(mapping::event(&messages, &queue.arn()), HOUR);
        let ended = async {
            scene.backend.call("progress", PATIENCE, |call| call.path == PROGRESS).await?;
            function.signal(Signal::INT);
            let told = async || function.log_text().contains("a second signal").then_some(());
            wait::until("it says that it ends", PATIENCE, told).await?;
            assert!(function.is_running(), "{}", function.fault("ended by the first one"));
            function.signal(Signal::TERM);
            wait::at_most("end", Duration::from_secs(3), function.exited()).await
        };
        let status = tokio::select! {
            answer = answer => anyhow::bail!("it was answered first: {answer:?}"),
            status = ended => status?,
        };
        assert_eq!(status.code(), Some(128 + Signal::TERM.as_raw()), "{}", function.fault(&status.to_string()));
        Ok(())
    });
}
