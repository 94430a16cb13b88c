//! The demo: starts everything on this machine, sends one task through it, and shows what comes back. It stops every
//! process it started, however it ends.

mod keep;
mod options;
mod progress;
mod report;
mod task;

use anyhow::{Context, Result, anyhow, bail};
use clap::Parser;
use e2e::{
    backend::Backend,
    stack::RouteOptions,
    stack::{QUEUE, Stack},
    studio::{Gallery, Studio, StudioStack, Style, TaskStore, open},
    wait,
};
use options::Options;
use progress::{Outcome, Screen};
use report::Report;
use std::{
    env, fs,
    process::{Command, ExitCode, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};
use task::Styles;
use tokio::signal::unix::{SignalKind, signal};

/// Short, so that a hopeless task is soon in the dead-letter queue.
const ROUTE: RouteOptions = RouteOptions { visibility: Duration::from_secs(10), max_receive_count: 3, batch_size: 1 };
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
        // The side that loses is dropped, and the stack with it.
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
        // Without handlers the default applies: we die, and the kernel kills the children.
        return std::future::pending().await;
    };
    tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
}

async fn run(options: &Options) -> Result<()> {
    if let Some(stack) = &options.to {
        return keep::publish(stack, options).await;
    }
    if options.studio {
        return run_studio(options).await;
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
    let stack = Stack::start(model, ROUTE, |part, ms| println!("  {part} ready after {:.1} s", ms as f64 / 1000.0));
    let stack = stack.await?;
    let started = clock.elapsed();
    let styles = task::store(&stack.aws, folder, options.lora.as_deref()).await?;
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
    let outcome = wait::at_most("end of the task", limit, progress::outcome(&mut screen, stack, backend, body)).await;
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
            stack.route.queue.max_receive_count
        ),
        Outcome::Complete(_) | Outcome::OtherReceiver => {}
    }
    match picture? {
        Some(path) => println!("{}\npicture: {}", task::title(body, styles), path.display()),
        None => println!("no picture: the task's webhooks went to another address than $WEBHOOK"),
    }
    Ok(())
}

/// Starts everything and serves the page; never ends by itself.
async fn run_studio(options: &Options) -> Result<()> {
    let (model, folder) = (options.model()?, options.styles()?);
    let tasks = Arc::new(TaskStore::open(Gallery::open(&options.out.join("studio"))?)?);
    println!("starting the stack");
    let clock = Instant::now();
    let ready = |part: &str| println!("  {part} ready after {:.1} s", clock.elapsed().as_secs_f64());
    let stack = StudioStack::start(model, tasks, ready).await?;
    let stored = task::store(&stack.aws, folder, options.lora.as_deref()).await?;
    let style =
        |(name, style): (String, task::Style)| Style { name, id: style.id, artist: style.artist, url: style.url };
    let studio = Arc::new(Studio { stack, styles: stored.into_iter().map(style).collect() });
    let (addr, served) = open(studio.clone()).await?;
    let stack = &studio.stack;
    let announced = async {
        stack.faults.function.ready().await?;
        ready("function");
        println!("\nstudio: http://{addr}\n  pictures  {}", stack.tasks.gallery().path().display());
        println!("  logs      {}\nIt stays until ctrl-C.", stack.run.path().display());
        open_browser(&format!("http://{addr}"));
        std::future::pending::<Result<()>>().await
    };
    tokio::select! {
        ended = stack.run() => match ended? {},
        ended = served => ended?,
        ended = announced => ended?,
    }
    bail!("the page's server has ended")
}

/// Opens the page in a browser if there is a display.
fn open_browser(url: &str) {
    if ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| env::var_os(name).is_some()) {
        let quiet = || Stdio::null();
        // Without a browser the address is still printed.
        let _ = Command::new("xdg-open").arg(url).stdin(quiet()).stdout(quiet()).stderr(quiet()).spawn();
    }
}
