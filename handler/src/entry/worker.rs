//! The worker: long-polls SQS itself, for GPU hosts that are not Lambda. Runs the same job as the function.
//!
//! A message's visibility is extended for as long as the work on it goes on; those of finished tasks are deleted together. SIGTERM ends
//! polling, not the tasks in work.

#[cfg(test)]
mod tests;

use crate::{
    entry::{
        FINISHING,
        health::Health,
        options::WorkerConfig,
        sqs::{Deleter, Deletion, Deletions, Queue},
    },
    job::{Deadline, JobRunner, Message, Outcome},
    observe::trace::{CARRIED, Carrier},
};
use aws_config::SdkConfig;
use aws_sdk_sqs::types::{Message as SqsMessage, MessageSystemAttributeName};
use backon::{BackoffBuilder, ExponentialBuilder};
use service::Asked;
use std::time::{Duration, Instant, UNIX_EPOCH};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// Polls until SIGTERM or SIGINT, or until there was nothing to do for as long as configured; returns once the tasks in work are done.
///
/// # Errors
/// The model cannot be loaded, the health address is taken, or the GPU is lost.
pub async fn serve(config: &WorkerConfig) -> anyhow::Result<()> {
    let aws = settings::sdk_config().await?;
    let runner = JobRunner::open(&config.service, &aws).await?;
    serve_until(service::on_signal(&Asked::default(), FINISHING)?, &runner, config, &aws).await
}

async fn serve_until(
    stop: CancellationToken,
    runner: &JobRunner,
    config: &WorkerConfig,
    aws: &SdkConfig,
) -> anyhow::Result<()> {
    let health = match config.health_addr {
        Some(addr) => Some(Health::serve(addr, runner.metrics().clone()).await?),
        None => None,
    };
    let set_ready = |ready| health.iter().for_each(|health| health.set_ready(ready));
    let queue = Queue::new(aws, &config.sqs_queue_url);
    // Messages that wait in the queue can go to another worker; ones that were taken cannot.
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        loaded = runner.ready() => loaded?,
    }
    tracing::info!(queue = queue.url, "polling");
    set_ready(true);
    let deletions = Deletions::start(queue.clone());
    let broken = {
        let deleter = deletions.deleter();
        let polling = poll(&queue, config, runner, &deleter, &stop);
        tokio::pin!(polling);
        tokio::select! {
            () = &mut polling => None,
            broken = runner.broken() => {
                set_ready(false);
                stop.cancel();
                polling.await;
                Some(broken)
            }
        }
    };
    set_ready(false);
    deletions.finish().await;
    tracing::info!("stopped");
    broken.map_or(Ok(()), |broken| Err(broken.into()))
}

async fn poll(queue: &Queue, config: &WorkerConfig, runner: &JobRunner, deleter: &Deleter, stop: &CancellationToken) {
    let idle_exit = Duration::from_secs(config.idle_exit.into());
    let delays =
        ExponentialBuilder::default().with_max_delay(Duration::from_secs(30)).without_max_times().with_jitter();
    let (mut delay, mut idle_since) = (delays.build(), Instant::now());
    let mut works = JoinSet::new();
    while !stop.is_cancelled() {
        // Never beside a poll: one that is broken off may have been given a message, which then stays invisible for a while.
        while let Some(ended) = works.try_join_next() {
            tell(ended);
            idle_since = Instant::now();
        }
        if works.len() >= usize::from(config.concurrency) {
            tokio::select! {
                () = stop.cancelled() => break,
                ended = works.join_next() => ended.into_iter().for_each(tell),
            }
            idle_since = Instant::now();
            continue;
        }
        let patience = match idle_exit.is_zero() || !works.is_empty() {
            true => Duration::MAX,
            false => idle_exit.saturating_sub(idle_since.elapsed()),
        };
        if patience.is_zero() {
            tracing::info!(seconds = config.idle_exit, "nothing to do for so long: ending");
            break;
        }
        let received = tokio::select! {
            // A message that this poll was about to bring becomes visible again by itself.
            () = stop.cancelled() => break,
            received = queue.receive(config.visibility_timeout, patience) => received,
        };
        match received {
            Ok(Some(message)) => {
                delay = delays.build();
                let deleter = deleter.clone();
                works.spawn(work(queue.clone(), config.visibility_timeout, runner.clone(), deleter, message));
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
    while let Some(ended) = works.join_next().await {
        tell(ended);
    }
}

fn tell(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "the work on a task broke off: its message will come again");
    }
}

/// Runs the job under a heartbeat, then hands the message over for deletion or gives it back.
async fn work(queue: Queue, visibility: i32, runner: JobRunner, deleter: Deleter, message: SqsMessage) {
    let number = |name| message.attributes()?.get(&name)?.parse::<u64>().ok();
    let count = number(MessageSystemAttributeName::ApproximateReceiveCount);
    let job = Message {
        body: message.body().unwrap_or_default().to_string(),
        id: message.message_id().map(str::to_string),
        carrier: carrier(&message),
        receive_count: count.and_then(|count| count.try_into().ok()).unwrap_or(1),
        deadline: Deadline::NONE,
        sent_at: number(MessageSystemAttributeName::SentTimestamp).map(|ms| UNIX_EPOCH + Duration::from_millis(ms)),
    };
    let Some(handle) = message.receipt_handle() else {
        tracing::warn!("a message without receipt handle cannot be worked on");
        return;
    };
    let (outcome, until) = queue.keep_invisible(handle, visibility, runner.handle(&job)).await;
    let ended = match outcome {
        Outcome::Consumed => {
            deleter.send(Deletion::new(handle, until)).map_err(|_| "deleting has ended already".to_string())
        }
        Outcome::GivenBack(wait) => {
            let seconds = i32::try_from(wait.as_secs()).unwrap_or(i32::MAX);
            queue.set_visibility(handle, seconds).await
        }
    };
    if let Err(error) = ended {
        tracing::warn!(error, "the queue did not hear of the outcome: the message will come again");
    }
}

fn carrier(message: &SqsMessage) -> Carrier {
    let value = |name: &str| message.message_attributes()?.get(name)?.string_value().map(str::to_string);
    CARRIED.iter().filter_map(|name| Some((name.to_string(), value(name)?))).collect()
}
