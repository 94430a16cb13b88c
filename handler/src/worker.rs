//! The worker: long-polls SQS itself, for GPU hosts that are not Lambda. Runs the same job as the function.
//!
//! A message's visibility is extended for as long as the work on it goes on. SIGTERM ends polling, not the task in work.

use crate::{
    config::WorkerConfig,
    job::{Message, Outcome, Workshop},
};
use aws_config::timeout::TimeoutConfig;
use aws_sdk_sqs::{
    Client,
    config::Builder,
    error::DisplayErrorContext,
    types::{Message as SqsMessage, MessageSystemAttributeName},
};
use backon::{BackoffBuilder, ExponentialBuilder};
use std::{future::Future, time::Duration};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

/// Longest wait of one poll, SQS' maximum.
const POLL_SECONDS: i32 = 20;
/// Visibility of a message that was given back, per receive so far: a fault gets time to pass.
const GIVE_BACK_SECONDS: i32 = 5;

/// Polls until SIGTERM or SIGINT, then returns once the task in work is done.
///
/// # Errors
/// The model cannot be loaded.
pub async fn serve(config: &WorkerConfig) -> anyhow::Result<()> {
    let aws = aws_config::load_from_env().await;
    let workshop = Workshop::open(&config.service, &aws)?;
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(5))
        .operation_attempt_timeout(Duration::from_secs(POLL_SECONDS as u64 + 10))
        .build();
    let sqs = Client::from_conf(Builder::from(&aws).timeout_config(timeouts).build());
    let queue = Queue { sqs, url: config.sqs_queue_url.clone(), visibility: config.visibility_timeout };
    let stop = stop_signal()?;
    // Messages that wait in the queue can go to another worker; ones that were taken cannot.
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        loaded = workshop.ready() => loaded?,
    }
    tracing::info!(queue = queue.url, "polling");
    poll(&queue, &workshop, &stop).await;
    tracing::info!("stopped");
    Ok(())
}

async fn poll(queue: &Queue, workshop: &Workshop, stop: &CancellationToken) {
    let delays =
        ExponentialBuilder::default().with_max_delay(Duration::from_secs(30)).without_max_times().with_jitter();
    let mut delay = delays.build();
    while !stop.is_cancelled() {
        let received = tokio::select! {
            // A message that this poll was about to bring becomes visible again by itself.
            () = stop.cancelled() => break,
            received = queue.receive() => received,
        };
        match received {
            Ok(Some(message)) => {
                delay = delays.build();
                work(queue, workshop, &message).await;
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
async fn work(queue: &Queue, workshop: &Workshop, message: &SqsMessage) {
    let attributes = message.attributes().and_then(|map| map.get(&MessageSystemAttributeName::ApproximateReceiveCount));
    let receive_count: u32 = attributes.and_then(|count| count.parse().ok()).unwrap_or(1);
    let job = Message { body: message.body().unwrap_or_default().to_string(), receive_count };
    let Some(handle) = message.receipt_handle() else {
        tracing::warn!("a message without receipt handle cannot be worked on");
        return;
    };
    let ended = match queue.keep_invisible(handle, workshop.handle(&job)).await {
        Outcome::Consumed => queue.delete(handle).await,
        Outcome::GivenBack => {
            let wait = GIVE_BACK_SECONDS.saturating_mul(receive_count.min(100) as i32).min(queue.visibility);
            queue.set_visibility(handle, wait).await
        }
    };
    if let Err(error) = ended {
        tracing::warn!(error, "the queue did not hear of the outcome: the message will come again");
    }
}

struct Queue {
    sqs: Client,
    url: String,
    visibility: i32,
}

impl Queue {
    async fn receive(&self) -> Result<Option<SqsMessage>, String> {
        let request = self.sqs.receive_message().queue_url(&self.url).max_number_of_messages(1);
        let request = request.wait_time_seconds(POLL_SECONDS).visibility_timeout(self.visibility);
        let request = request.message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount);
        let answer = request.send().await.map_err(|error| DisplayErrorContext(error).to_string())?;
        Ok(answer.messages.unwrap_or_default().into_iter().next())
    }

    async fn keep_invisible<T>(&self, handle: &str, work: impl Future<Output = T>) -> T {
        let mut beat = interval(Duration::from_secs(self.visibility as u64) / 3);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick comes at once, and the message has just been received.
        beat.tick().await;
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = beat.tick() => {
                    if let Err(error) = self.set_visibility(handle, self.visibility).await {
                        tracing::warn!(error, "the visibility timeout was not extended");
                    }
                }
            }
        }
    }

    async fn set_visibility(&self, handle: &str, seconds: i32) -> Result<(), String> {
        let request = self.sqs.change_message_visibility().queue_url(&self.url).receipt_handle(handle);
        let sent = request.visibility_timeout(seconds).send().await;
        sent.map(|_| ()).map_err(|error| DisplayErrorContext(error).to_string())
    }

    async fn delete(&self, handle: &str) -> Result<(), String> {
        let sent = self.sqs.delete_message().queue_url(&self.url).receipt_handle(handle).send().await;
        sent.map(|_| ()).map_err(|error| DisplayErrorContext(error).to_string())
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
