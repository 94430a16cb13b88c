//! The workers of a run: real `handler worker` processes, killed in turn and started again.
//!
//! Refuses to start one again that ended by itself: that is a fault of the handler.

use crate::{
    aws::{Aws, Queue},
    paths::{RunDir, binary},
    process::{Process, Spec},
    stack::function_env,
};
use anyhow::{Context, Result, bail, ensure};
use std::{fs, path::Path, time::Duration};

/// Short, so that a dead worker's task comes soon to the next.
pub(super) const VISIBILITY: Duration = Duration::from_secs(5);
/// As many receives as SQS can count: no worker's death uses them up.
pub(super) const RECEIVES: u32 = 1_000;
const CLAIM_LEASE: &str = "5";
const CONCURRENCY: &str = "2";
/// Tasks in work are finished first.
const END: Duration = Duration::from_secs(120);

/// What a worker is started with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) run: &'a RunDir,
    pub(super) aws: &'a Aws,
    pub(super) model: &'a Path,
    pub(super) queue: &'a Queue,
    pub(super) s3: &'a str,
    pub(super) sqs: &'a str,
}

/// The workers.
#[derive(Debug)]
pub(super) struct Crew<'a> {
    place: Place<'a>,
    workers: Vec<Process>,
    kills: u64,
}

impl Place<'_> {
    /// A worker; the next one of the same number finds its cache.
    fn worker(&self, number: usize) -> Result<Process> {
        let name = format!("load-worker-{number}");
        Spec::new(&name, binary("handler")?)
            .args(["worker"])
            .envs(function_env(self.aws, self.run, &name, self.model)?)
            .env("AWS_ENDPOINT_URL_S3", self.s3)
            .env("AWS_ENDPOINT_URL_SQS", self.sqs)
            .env("SQS_QUEUE_URL", &self.queue.url)
            .env("EASEL_VISIBILITY_TIMEOUT", VISIBILITY.as_secs().to_string())
            .env("EASEL_MAX_RECEIVE_COUNT", RECEIVES.to_string())
            .env("EASEL_CLAIM_LEASE", CLAIM_LEASE)
            .env("EASEL_CONCURRENCY", CONCURRENCY)
            .start(self.run)
    }
}

impl<'a> Crew<'a> {
    pub(super) fn start(place: Place<'a>, count: u16) -> Result<Self> {
        let workers = (0..usize::from(count)).map(|number| place.worker(number)).collect::<Result<_>>()?;
        Ok(Self { place, workers, kills: 0 })
    }

    /// Kills the next one in turn, and starts it again.
    pub(super) async fn kill_next(&mut self) -> Result<()> {
        let number = (self.kills % self.workers.len() as u64) as usize;
        self.check()?;
        self.workers[number].kill().await;
        self.workers[number] = self.place.worker(number)?;
        self.kills += 1;
        Ok(())
    }

    pub(super) fn kills(&self) -> u64 {
        self.kills
    }

    /// Fails if one has ended by itself.
    pub(super) fn check(&self) -> Result<()> {
        match self.workers.iter().find(|worker| !worker.is_running()) {
            Some(worker) => bail!(worker.fault("ended by itself")),
            None => Ok(()),
        }
    }

    /// The resident memory of the largest, in MiB.
    pub(super) fn rss_mib(&self) -> f64 {
        // One that ends at this very moment has none; `check` tells of that.
        self.workers.iter().filter_map(|worker| rss_mib(worker).ok()).fold(0.0, f64::max)
    }

    /// SIGTERM to all; each must end in order.
    pub(super) async fn end(&self) -> Result<()> {
        let ends = self.workers.iter().map(async |worker| {
            let status = worker.terminate(END).await?;
            ensure!(status.success(), worker.fault(&format!("ended with {status} after SIGTERM")));
            Ok(())
        });
        futures_util::future::try_join_all(ends).await.map(drop)
    }
}

fn rss_mib(process: &Process) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib / 1024.0)
}
