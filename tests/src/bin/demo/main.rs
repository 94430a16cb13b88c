//! The demo: starts everything on this machine, sends one task through it, and shows what comes back. It stops every
//! process it started, however it ends.

mod keep;
mod options;
mod outcome;
mod report;
mod screen;
mod studio;
mod styles;
mod task;

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use e2e::{
    backend::Backend,
    line::LineOptions,
    stack::{QUEUE, Stack},
    wait,
};
use options::Options;
use outcome::Outcome;
use report::Report;
use screen::Screen;
use std::{
    fs,
    process::ExitCode,
    time::{Duration, Instant},
};
use styles::Styles;
use tokio::signal::unix::{SignalKind, signal};

/// A task that was given back comes again after this time, so that a hopeless one ends soon in the dead-letter queue.
const LINE: LineOptions = LineOptions { visibility: Duration::from_secs(10), max_receive_count: 3, batch_size: 1 };
/// Exit code of a program that a signal has stopped: 128 and SIGINT.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        // Whichever side loses is dropped, and the stack with it.
        tokio::select! {
            ended = run(&options) => Some(ended),
            () = stopped() => None,
        }
    });
    match ended {
        Some(Ok(())) => ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
        None => {
            eprintln!("\ndemo: stopped");
            ExitCode::from(INTERRUPTED)
        }
    }
}

async fn stopped() {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let [Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)] = kinds.map(signal) else {
        // Without handlers the default holds: we die, and the kernel takes the children.
        return std::future::pending().await;
    };
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
}

async fn run(options: &Options) -> Result<()> {
    if let Some(stack) = &options.to {
        return keep::publish(stack, options).await;
    }
    if options.studio {
        return studio::run(options).await;
    }
    let (model, folder) = (options.model()?, options.styles()?);
    options.find_files()?;
    let out = &options.out;
    fs::create_dir_all(out).with_context(|| format!("--out {}", out.display()))?;
    report::remove_old(out)?;
    if options::is_noise(model) {
        println!("note: the model in {} has random weights: the picture will be noise", model.display());
    }
    println!("starting the stack");
    let clock = Instant::now();
    let backend = Backend::start().await?;
    let stack = Stack::start(model, LINE, |part, ms| println!("  {part} ready after {:.1} s", ms as f64 / 1000.0));
    let stack = stack.await?;
    let started = clock.elapsed();
    let styles = styles::store(&stack.aws, folder, options.lora.as_deref()).await?;
    let body = task::body(options, &backend.url(), &styles)?;
    let ended = stack.alive(follow(options, &stack, &backend, &styles, &body, started)).await;
    let logs = stack.run.path().display();
    let ended = ended.map_err(|error| anyhow!("{error:#}\ndemo: the logs are in {logs}; begin with function.log"));
    if !options.keep {
        return ended;
    }
    if let Err(error) = ended {
        eprintln!("\ndemo: {error:#}");
    }
    let addresses = keep::Addresses::of(&stack, &backend, &styles);
    stack.alive(keep::wait(&addresses, &stack, &backend, out)).await
}

/// Publishes the task, shows what happens to it, and reports.
async fn follow(
    options: &Options,
    stack: &Stack,
    backend: &Backend,
    styles: &Styles,
    body: &str,
    started: Duration,
) -> Result<()> {
    let published_ms = backend.now_ms();
    stack.publisher.publish(QUEUE, body.as_bytes()).await?;
    println!("task published to RabbitMQ ({} bytes)", body.len());
    let mut screen = Screen::new();
    let limit = Duration::from_secs(options.timeout);
    let outcome = wait::at_most("end of the task", limit, outcome::of(&mut screen, stack, backend, body)).await;
    screen.clear();
    let outcome = outcome.and_then(|outcome| outcome);
    let mut report = Report::new(stack, backend, body, published_ms, started);
    let picture = match &outcome {
        Ok(outcome) => report.fetch_picture(stack, outcome, &options.out, task::id(body)).await,
        Err(_) => Ok(None),
    };
    report.write(&options.out)?;
    report.print();
    match outcome? {
        Outcome::Failed(message) => bail!("the task failed: {message}"),
        Outcome::DeadLettered => bail!(
            "the message was given back {} times and is now in the dead-letter queue",
            stack.line.queue.max_receive_count
        ),
        Outcome::Complete(_) | Outcome::ToldElsewhere => {}
    }
    match picture? {
        Some(path) => println!("{}\npicture: {}", task::title(body, styles), path.display()),
        None => println!("no picture: the task's webhooks went to another address than $WEBHOOK"),
    }
    Ok(())
}
