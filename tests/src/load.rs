//! The load test: numbered tasks through a real broker, the real relay and real workers, while workers are killed and faults are
//! injected into S3, SQS and the backend. The report says how each task ended, from what the backend heard and what is in S3.

mod proxy;
mod report;
mod workers;

pub use report::{Memory, Outcomes, Pictures, Report};

use self::{
    proxy::Service,
    workers::{WorkerConfig, Workers},
};
use crate::{
    aws::{Aws, MODELS, Queue},
    backend::Backend,
    broker::Broker,
    fault_injection::FaultInjector,
    paths::RunDir,
    random::Random,
    relay::Relay,
    task::Task,
};
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{interval, sleep_until};

/// The name of the queue in RabbitMQ and in SQS.
const QUEUE: &str = "load";
const STEPS: u32 = 2;
/// Tasks take turns, so that workers change LoRAs.
const STYLES: usize = 2;
const SAMPLE: Duration = Duration::from_millis(250);
/// After the last end: longer than the visibility timeout of a message whose worker was killed after its last webhook.
const SETTLING: Duration = Duration::from_secs(90);
const RELAY_END: Duration = Duration::from_secs(60);
/// Random streams.
const S3: u64 = 1;
const WEBHOOKS: u64 = 2;
const KILLS: u64 = 3;
const SQS: u64 = 4;
const RELAY: u64 = 5;

/// The options of one run.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How many tasks to publish
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    pub tasks: u32,
    /// How many workers to keep running
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: u16,
    /// Kill a worker with -9 each time so many seconds have passed, half as many to half again as many; 0 for never
    #[arg(long, default_value_t = 0, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=3_600))]
    pub kill_every: u64,
    /// Kill so many times at most
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    pub kills: u64,
    /// The share of requests to S3 and SQS, and of webhooks, that are refused, lose their answer or stall, from 0 to 0.9
    #[arg(long, default_value_t = 0.0, value_name = "SHARE", value_parser = share)]
    pub fault_rate: f64,
    /// How long an answer that comes too late takes at most, in seconds; 6 at least
    #[arg(long, default_value_t = 35, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(6..=600))]
    pub latest: u64,
    /// Repeats the random choices of an earlier run
    #[arg(long, default_value_t = u64::from(std::process::id()))]
    pub seed: u64,
    /// How long to wait for the last task before what is missing counts as neither complete nor failed, in seconds
    #[arg(long, default_value_t = 3_600, value_name = "SECONDS")]
    pub patience: u64,
}

impl Options {
    pub(super) fn latest(&self) -> Duration {
        Duration::from_secs(self.latest)
    }

    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }
}

/// Runs once. Broker and stand-in may be shared. The model folder has a `lora.safetensors`.
///
/// # Errors
/// A part does not come up, ends by itself, or does not exit with 0. What becomes of tasks is in the report.
pub async fn run(run: &RunDir, broker: &Broker, aws: &Aws, model: &Path, options: &Options) -> Result<Report> {
    let injector = |stream| Arc::new(FaultInjector::new(options.seed, stream, options.fault_rate, options.latest()));
    let [s3_faults, webhook_faults, sqs_faults, relay_faults] = [S3, WEBHOOKS, SQS, RELAY].map(injector);
    let backend = Backend::start_with(Some(webhook_faults.clone())).await?;
    let s3 = proxy::start(Service::S3, aws.endpoint(), s3_faults.clone()).await?;
    let sqs = proxy::start(Service::Sqs, aws.endpoint(), sqs_faults.clone()).await?;
    // Its own proxy, so that the requests of workers do not shift the relay's faults.
    let relay_sqs = proxy::start(Service::Sqs, aws.endpoint(), relay_faults.clone()).await?;
    let (s3_url, sqs_url, relay_sqs_url) = (s3.url(), sqs.url(), relay_sqs.url());
    let queue = aws.queue(QUEUE, workers::VISIBILITY, workers::RECEIVES).await?;
    let publisher = broker.publisher().await?;
    publisher.declare(QUEUE).await?;
    let sqs_of_relay = [("AWS_ENDPOINT_URL_SQS", relay_sqs_url.as_str())];
    let relay = Relay::start(run, QUEUE, &broker.url(), aws, &queue.url, &sqs_of_relay).await?;
    relay.ready().await?;
    let tasks = tasks(aws, model, &backend.url(), options.tasks).await?;
    let mut workers =
        Workers::start(WorkerConfig { run, aws, model, queue: &queue, s3: &s3_url, sqs: &sqs_url }, options.workers)?;

    let started = Instant::now();
    let bodies: Vec<String> = tasks.iter().map(Task::body).collect();
    publisher.publish_all(QUEUE, bodies.iter().map(String::as_bytes)).await?;
    let memory = tokio::select! {
        memory = until_all_ended(&mut workers, &backend, options) => memory?,
        error = relay.process.died() => return Err(error),
    };
    let seconds = started.elapsed().as_secs_f64();
    let left_in_queue = settle(aws, &queue, &workers).await?;
    workers.end().await?;
    let status = relay.process.terminate(RELAY_END).await?;
    ensure!(status.success(), relay.process.error(&format!("ended with {status} after SIGTERM")));

    let ids: Vec<i64> = tasks.iter().map(Task::id).collect();
    let outcomes = Outcomes::of(&ids, &backend.calls());
    let completed = |task: &&Task| outcomes.complete.contains(&task.id()) || outcomes.both.contains(&task.id());
    let pictures = Pictures::check(aws, tasks.iter().filter(completed)).await?;
    Ok(Report {
        tasks: tasks.len(),
        outcomes,
        pictures,
        left_in_queue,
        kills: workers.kills(),
        s3_faults: s3_faults.counts(),
        sqs_faults: sqs_faults.counts(),
        relay_faults: relay_faults.counts(),
        webhook_faults: webhook_faults.counts(),
        memory,
        seconds,
    })
}

/// Tasks that differ in their seed, and the LoRAs for them.
async fn tasks(aws: &Aws, model: &Path, webhook_url: &str, count: u32) -> Result<Vec<Task>> {
    let lora = fs::read(model.join("lora.safetensors")).context("the model's LoRA")?;
    let mut loras = Vec::new();
    for style in 0..STYLES {
        loras.push(aws.put(MODELS, &format!("load/style_{style}.safetensors"), lora.clone()).await?);
    }
    let task = |number: u32| {
        let style = number as usize % STYLES;
        Task::new(webhook_url, &loras[style])
            .with("style_id", style)
            .with("seed", number)
            .with("num_inference_steps", STEPS)
    };
    Ok((0..count).map(task).collect())
}

/// Kills workers and samples their memory until each task has ended or the patience is over. The first is killed as soon as a
/// task has started.
async fn until_all_ended(workers: &mut Workers<'_>, backend: &Backend, options: &Options) -> Result<Memory> {
    let (tasks, every) = (options.tasks as usize, options.kill_every * 1_000);
    let (mut random, mut memory) = (Random::new(options.seed, KILLS), Memory::default());
    let (mut calls, mut samples) = (backend.follow(), interval(SAMPLE));
    let over = tokio::time::Instant::now() + options.patience();
    let mut kill_at = None;
    loop {
        let (ended, begun) = {
            let calls = calls.borrow_and_update();
            (report::ended(&calls), !calls.is_empty())
        };
        if ended >= tasks {
            return Ok(memory);
        }
        if begun && kill_at.is_none() && every > 0 {
            kill_at = Some(tokio::time::Instant::now());
        }
        tokio::select! {
            () = sleep_until(over) => return Ok(memory),
            () = sleep_until(kill_at.unwrap_or(over)), if kill_at.is_some() && workers.kills() < options.kills => {
                workers.kill_next().await?;
                kill_at = Some(tokio::time::Instant::now() + random.millis(every / 2, every * 3 / 2));
            }
            _ = samples.tick() => {
                workers.check()?;
                memory.note(ended, tasks, workers.rss_mib());
            }
            changed = calls.changed() => changed.context("the receiver is gone")?,
        }
    }
}

/// Waits until the queue is empty; gives the number of messages left.
async fn settle(aws: &Aws, queue: &Queue, workers: &Workers<'_>) -> Result<u32> {
    let emptied = aws.has_depth(&queue.url, (0, 0), SETTLING).await;
    workers.check()?;
    let mut left = 0;
    for url in [&queue.url, &queue.dead_letter_url] {
        let (visible, in_flight) = aws.depth(url).await?;
        left += visible + in_flight;
    }
    ensure!(emptied.is_ok() || left > 0, "the queue's depth is not known");
    Ok(left)
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=0.9).contains(share));
    share.ok_or_else(|| "must be a number from 0 to 0.9".into())
}
