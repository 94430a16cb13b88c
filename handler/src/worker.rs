//! The worker: long-polls SQS itself, for GPU hosts that are not Lambda. Runs the same job as the function.
//!
//! A message's visibility is extended for as long as the work on it goes on. SIGTERM ends polling, not the task in work.

use crate::{
    config::WorkerConfig,
    job::{Message, Outcome, Workshop},
    queue::Queue,
};
use aws_sdk_sqs::types::{Message as SqsMessage, MessageSystemAttributeName};
use backon::{BackoffBuilder, ExponentialBuilder};
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Polls until SIGTERM or SIGINT, then returns once the task in work is done.
///
/// # Errors
/// The model cannot be loaded.
pub async fn serve(config: &WorkerConfig) -> anyhow::Result<()> {
    let aws = aws_config::load_from_env().await;
    let workshop = Workshop::open(&config.service, &aws).await?;
    let queue = Queue::new(&aws, &config.sqs_queue_url);
    let stop = stop_signal()?;
    tracing::info!(queue = queue.url, "polling");
    poll(&queue, config.visibility_timeout, &workshop, &stop).await;
    tracing::info!("stopped");
    Ok(())
}

async fn poll(queue: &Queue, visibility: i32, workshop: &Workshop, stop: &CancellationToken) {
    let delays =
        ExponentialBuilder::default().with_max_delay(Duration::from_secs(30)).without_max_times().with_jitter();
    let mut delay = delays.build();
    while !stop.is_cancelled() {
        let received = tokio::select! {
            // A message that this poll was about to bring becomes visible again by itself.
            () = stop.cancelled() => break,
            received = queue.receive(visibility) => received,
        };
        match received {
            Ok(Some(message)) => {
                delay = delays.build();
                work(queue, visibility, workshop, &message).await;
            }
            Ok(None) => delay = delays.build(),
            Err(error) => {
                tracing::warn!(error, "receive failed, polling again");
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(delay.next().unwrap_or_default()) => {}
                }
            }
        }
    }
}

/// Runs the job under a heartbeat, then deletes the message or gives it back.
async fn work(queue: &Queue, visibility: i32, workshop: &Workshop, message: &SqsMessage) {
    let attributes = message.attributes().and_then(|map| map.get(&MessageSystemAttributeName::ApproximateReceiveCount));
    let receive_count: u32 = attributes.and_then(|count| count.parse().ok()).unwrap_or(1);
    let job = Message { body: message.body().unwrap_or_default().to_string(), receive_count, deadline: None };
    let Some(handle) = message.receipt_handle() else {
        tracing::warn!("a message without receipt handle cannot be worked on");
        return;
    };
    let ended = match queue.keep_invisible(handle, visibility, workshop.handle(&job)).await {
        Outcome::Consumed => queue.delete(handle).await,
        Outcome::GivenBack(wait) => {
            let seconds = i32::try_from(wait.as_secs()).unwrap_or(i32::MAX);
            queue.set_visibility(handle, seconds.min(visibility)).await
        }
    };
    if let Err(error) = ended {
        tracing::warn!(error, "the queue did not hear of the outcome: the message will come again");
    }
}

fn stop_signal() -> std::io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping: the task in work is finished first");
        token.cancel();
    });
    Ok(stop)
}
