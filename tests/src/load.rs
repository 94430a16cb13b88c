//! The load: numbered tasks through a real broker, the real relay and real workers, while workers are killed and S3, SQS and the
//! backend fail by chance; and a ledger that says what became of each task.
//!
//! It does not look into the handler: it sees what the backend hears and what lies in S3.

mod books;
mod crew;
mod options;
mod pictures;
mod proxy;
mod report;

pub use books::Books;
pub use options::Options;
pub use pictures::Pictures;
pub use report::{Memory, Report};

use self::{
    crew::{Crew, Place},
    proxy::Service,
};
use crate::{
    aws::{Aws, MODELS, Queue},
    backend::Backend,
    broker::Broker,
    chance::Chance,
    line::Relay,
    mishap::Mishaps,
    paths::RunDir,
    task::Task,
};
use anyhow::{Context, Result, ensure};
use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::time::{interval, sleep_until};

/// The queues' name on both sides.
const QUEUE: &str = "load";
const STEPS: u32 = 2;
/// Tasks take turns, so that workers change LoRAs.
const STYLES: usize = 2;
const SAMPLE: Duration = Duration::from_millis(250);
/// For what is left when all have ended: the visibility of a message whose worker was killed behind its last webhook, and rest.
const SETTLING: Duration = Duration::from_secs(90);
const RELAY_END: Duration = Duration::from_secs(60);
/// Streams of chance.
const S3: u64 = 1;
const WEBHOOKS: u64 = 2;
const KILLS: u64 = 3;
const SQS: u64 = 4;
const RELAY: u64 = 5;

/// Runs once, on a broker and a stand-in that may serve others too. The model folder has a `lora.safetensors`.
///
/// # Errors
/// A part does not come up, ends by itself, or does not end in order. What becomes of tasks is no error but in the report.
pub async fn run(run: &RunDir, broker: &Broker, aws: &Aws, model: &Path, options: &Options) -> Result<Report> {
    let mishaps = |stream| Arc::new(Mishaps::new(options.seed, stream, options.fault_rate, options.latest()));
    let [s3_mishaps, webhook_mishaps, sqs_mishaps, relay_mishaps] = [S3, WEBHOOKS, SQS, RELAY].map(mishaps);
    let backend = Backend::start_with(Some(webhook_mishaps.clone())).await?;
    let s3 = proxy::start(Service::S3, aws.endpoint(), s3_mishaps.clone()).await?;
    let sqs = proxy::start(Service::Sqs, aws.endpoint(), sqs_mishaps.clone()).await?;
    // Of its own, so that what the workers ask for does not choose what the relay meets with.
    let relay_sqs = proxy::start(Service::Sqs, aws.endpoint(), relay_mishaps.clone()).await?;
    let (s3_url, sqs_url, relay_sqs_url) = (s3.url(), sqs.url(), relay_sqs.url());
    let queue = aws.queue(QUEUE, crew::VISIBILITY, crew::RECEIVES).await?;
    let publisher = broker.publisher().await?;
    publisher.declare(QUEUE).await?;
    let sqs_of_relay = [("AWS_ENDPOINT_URL_SQS", relay_sqs_url.as_str())];
    let relay = Relay::start_with(run, QUEUE, &broker.url(), aws, &queue.url, &sqs_of_relay).await?;
    relay.ready().await?;
    let tasks = tasks(aws, model, &backend.url(), options.tasks).await?;
    let mut crew = Crew::start(Place { run, aws, model, queue: &queue, s3: &s3_url, sqs: &sqs_url }, options.workers)?;

    let started = Instant::now();
    let bodies: Vec<String> = tasks.iter().map(Task::body).collect();
    publisher.publish_all(QUEUE, bodies.iter().map(String::as_bytes)).await?;
    let memory = tokio::select! {
        memory = until_all_ended(&mut crew, &backend, options) => memory?,
        error = relay.process.died() => return Err(error),
    };
    let seconds = started.elapsed().as_secs_f64();
    let left_in_queue = settle(aws, &queue, &crew).await?;
    crew.end().await?;
    let status = relay.process.terminate(RELAY_END).await?;
    ensure!(status.success(), relay.process.fault(&format!("ended with {status} after SIGTERM")));

    let ids: Vec<i64> = tasks.iter().map(Task::id).collect();
    let books = Books::of(&ids, &backend.calls());
    let told = |task: &&Task| books.complete.contains(&task.id()) || books.both.contains(&task.id());
    let pictures = Pictures::look(aws, tasks.iter().filter(told)).await?;
    Ok(Report {
        tasks: tasks.len(),
        books,
        pictures,
        left_in_queue,
        kills: crew.kills(),
        s3_faults: s3_mishaps.counts(),
        sqs_faults: sqs_mishaps.counts(),
        relay_faults: relay_mishaps.counts(),
        webhook_faults: webhook_mishaps.counts(),
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

/// Kills workers and looks at their memory until each task has ended, or the patience is over. The first is killed as soon as a
/// task is in work.
async fn until_all_ended(crew: &mut Crew<'_>, backend: &Backend, options: &Options) -> Result<Memory> {
    let (tasks, every) = (options.tasks as usize, options.kill_every * 1_000);
    let (mut chance, mut memory) = (Chance::new(options.seed, KILLS), Memory::default());
    let (mut calls, mut samples) = (backend.follow(), interval(SAMPLE));
    let over = tokio::time::Instant::now() + options.patience();
    let mut kill_at = None;
    loop {
        let (ended, begun) = {
            let calls = calls.borrow_and_update();
            (books::ended(&calls), !calls.is_empty())
        };
        if ended >= tasks {
            return Ok(memory);
        }
        if begun && kill_at.is_none() && every > 0 {
            kill_at = Some(tokio::time::Instant::now());
        }
        tokio::select! {
            () = sleep_until(over) => return Ok(memory),
            () = sleep_until(kill_at.unwrap_or(over)), if kill_at.is_some() && crew.kills() < options.kills => {
                crew.kill_next().await?;
                kill_at = Some(tokio::time::Instant::now() + chance.millis(every / 2, every * 3 / 2));
            }
            _ = samples.tick() => {
                crew.check()?;
                memory.note(ended, tasks, crew.rss_mib());
            }
            changed = calls.changed() => changed.context("the receiver is gone")?,
        }
    }
}

/// Waits until the queue is empty; gives how many messages it holds if it does not become so.
async fn settle(aws: &Aws, queue: &Queue, crew: &Crew<'_>) -> Result<u32> {
    let emptied = aws.has_depth(&queue.url, (0, 0), SETTLING).await;
    crew.check()?;
    let mut left = 0;
    for url in [&queue.url, &queue.dead_letter_url] {
        let (visible, in_flight) = aws.depth(url).await?;
        left += visible + in_flight;
    }
    ensure!(emptied.is_ok() || left > 0, "the queue's depth is not known");
    Ok(left)
}
