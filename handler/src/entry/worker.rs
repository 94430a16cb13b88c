//! The worker: long-polls SQS itself, for GPU hosts that are not Lambda.
//!
//! A message's visibility timeout is extended while its task is in work; the messages of finished tasks are deleted in batches. SIGTERM
//! ends polling, not the tasks in work.

use crate::{
    entry::{
        FINISHING,
        health::Health,
        sqs::{Deleter, Deletion, Deletions, Queue},
    },
    job::{Deadline, JobRunner, Message, Outcome, options::ServiceConfig},
    observe::trace::CARRIER_FIELDS,
};
use aws_config::SdkConfig;
use aws_sdk_sqs::types::{Message as SqsMessage, MessageSystemAttributeName};
use backon::{BackoffBuilder, ExponentialBuilder};
use clap::Args;
use service::Asked;
use settings::{queue_url, socket};
use std::{
    net::SocketAddr,
    time::{Duration, Instant, UNIX_EPOCH},
};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// Settings of `handler worker`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Queue")]
pub struct WorkerConfig {
    /// What it shares with the function.
    #[command(flatten)]
    pub service: ServiceConfig,
    /// The queue to poll.
    #[arg(long, env = "SQS_QUEUE_URL", value_name = "URL", value_parser = queue_url)]
    pub sqs_queue_url: String,
    /// Visibility timeout of a message in work, in seconds; it is extended for as long as the work goes on.
    #[arg(long, env = "EASEL_VISIBILITY_TIMEOUT", default_value_t = 120, value_name = "SECONDS",
          value_parser = clap::value_parser!(i32).range(3..=43_200))]
    pub visibility_timeout: i32,
    /// Tasks in work at a time. With more than one, those that wait for the GPU are fetched, and those that were painted are encoded and
    /// uploaded, while it paints; tasks of one LoRA, size and number of steps are painted as one batch.
    #[arg(long, env = "EASEL_CONCURRENCY", default_value_t = 1, value_name = "COUNT",
          value_parser = clap::value_parser!(u16).range(1..=100))]
    pub concurrency: u16,
    /// Seconds without a task after which the worker ends with exit code 0, for hosts that scale to zero; 0 for never.
    #[arg(long, env = "EASEL_IDLE_EXIT", default_value_t = 0, value_name = "SECONDS")]
    pub idle_exit: u32,
    /// Where to answer /healthz, /readyz and /metrics [default: nowhere]
    #[arg(long, env = "EASEL_HEALTH_ADDR", value_name = "IP:PORT", value_parser = socket)]
    pub health_addr: Option<SocketAddr>,
}

/// Polls until SIGTERM or SIGINT, or until it was idle for as long as configured. Returns once the tasks in work are done.
///
/// # Errors
/// The model cannot be loaded, the health address is in use, or the GPU is lost.
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
    // Not before: another worker can take messages that are still in the queue.
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
        // Not selected together with the poll: a cancelled poll may already have a message, which then stays invisible for a while.
        while let Some(ended) = works.try_join_next() {
            log_panic(ended);
            idle_since = Instant::now();
        }
        if works.len() >= usize::from(config.concurrency) {
            tokio::select! {
                () = stop.cancelled() => break,
                ended = works.join_next() => ended.into_iter().for_each(log_panic),
            }
            idle_since = Instant::now();
            continue;
        }
        let max_wait = match idle_exit.is_zero() || !works.is_empty() {
            true => Duration::MAX,
            false => idle_exit.saturating_sub(idle_since.elapsed()),
        };
        if max_wait.is_zero() {
            tracing::info!(seconds = config.idle_exit, "nothing to do for so long: ending");
            break;
        }
        let received = tokio::select! {
            // A message of the cancelled poll becomes visible again by itself.
            () = stop.cancelled() => break,
            received = queue.receive(config.visibility_timeout, max_wait) => received,
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
        log_panic(ended);
    }
}

fn log_panic(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "the work on a task broke off: its message will come again");
    }
}

/// Handles a message under a heartbeat, then hands it over for deletion or gives it back.
async fn work(queue: Queue, visibility: i32, runner: JobRunner, deleter: Deleter, message: SqsMessage) {
    let Some(handle) = message.receipt_handle() else {
        tracing::warn!("a message without receipt handle cannot be worked on");
        return;
    };
    let (outcome, visible_at) = queue.keep_invisible(handle, visibility, runner.handle(&job_message(&message))).await;
    let ended = match outcome {
        Outcome::Consumed => {
            deleter.send(Deletion::new(handle, visible_at)).map_err(|_| "deleting has ended already".to_string())
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

fn job_message(message: &SqsMessage) -> Message {
    let number = |name| message.attributes()?.get(&name)?.parse::<u64>().ok();
    let count = number(MessageSystemAttributeName::ApproximateReceiveCount);
    let carried = |name: &str| message.message_attributes()?.get(name)?.string_value().map(str::to_string);
    Message {
        body: message.body().unwrap_or_default().to_string(),
        id: message.message_id().map(str::to_string),
        carrier: CARRIER_FIELDS.iter().filter_map(|name| Some((name.to_string(), carried(name)?))).collect(),
        receive_count: count.and_then(|count| count.try_into().ok()).unwrap_or(1),
        deadline: Deadline::NONE,
        sent_at: number(MessageSystemAttributeName::SentTimestamp).map(|ms| UNIX_EPOCH + Duration::from_millis(ms)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cli::options::{Cli, Command},
        engine::{
            Preview,
            batcher::{
                Batcher,
                tests::{End, Fake, generation_request},
            },
            loader::{LoadError, ModelLoader},
        },
        observe::{CacheMetrics, metrics::Metrics, trace::Stage},
        storage::Store,
    };
    use aws_config::{BehaviorVersion, Region};
    use aws_sdk_sqs::config::{Credentials, SharedCredentialsProvider};
    use clap::Parser;
    use futures_util::{future::ready, poll};
    use std::ops::ControlFlow;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(10);

    fn config() -> WorkerConfig {
        let arguments = ["handler", "worker", "--model", "m", "--s3-bucket", "pictures", "--internal-api-token", "t"];
        let cli = Cli::try_parse_from(arguments.iter().chain(&["--sqs-queue-url", "http://127.0.0.1:1/q"])).unwrap();
        let Command::Worker(config) = cli.command else { panic!("another command") };
        config
    }

    fn aws() -> SdkConfig {
        let credentials = SharedCredentialsProvider::new(Credentials::new("test", "test", None, None, "test"));
        let aws = SdkConfig::builder().behavior_version(BehaviorVersion::latest()).region(Region::new("us-east-1"));
        aws.credentials_provider(credentials).endpoint_url("http://127.0.0.1:1").build()
    }

    /// With a fake engine; no queue is reached.
    #[tokio::test]
    async fn a_lost_gpu_ends_the_worker_with_an_error() {
        let (config, aws, (engine, control)) = (config(), aws(), Fake::new());
        let batcher = Batcher::start(engine, None, Metrics::new(&CacheMetrics::default())).unwrap();
        let (loader, store) = (ModelLoader::of(ready(Ok(batcher.clone()))), Store::new(&config.service.store, &aws));
        let metrics = Metrics::new(store.cache_metrics());
        let runner = JobRunner::with(loader, store, metrics, &config.service, &aws).await.unwrap();
        let serving = serve_until(CancellationToken::new(), &runner, &config, &aws);
        tokio::pin!(serving);
        assert!(poll!(&mut serving).is_pending());
        control.ends.send(End::Loss).unwrap();
        let on_step = Box::new(|_, _: &mut Preview<'_>| ControlFlow::Continue(()));
        assert!(batcher.paint(generation_request(512), on_step, Stage::begin("wait")).await.is_err());
        let ended = timeout(SOON, serving).await.unwrap();
        assert!(matches!(ended.unwrap_err().downcast_ref(), Some(LoadError::Lost)));
    }
}
