//! The workers of a run: real `handler worker` processes, killed in turn and started again. One that ends by itself is an error.

use crate::{
    aws::{Aws, Queue},
    paths::{RunDir, binary},
    process::{Process, Spec},
    stack::function_env,
};
use anyhow::{Result, bail, ensure};
use std::{path::Path, time::Duration};

/// Short, so that a dead worker's task is soon received by the next.
pub(super) const VISIBILITY: Duration = Duration::from_secs(5);
/// The most that SQS allows, so that killed workers do not use them up.
pub(super) const RECEIVES: u32 = 1_000;
const CLAIM_LEASE: &str = "5";
const CONCURRENCY: &str = "2";
/// Tasks in work are finished first.
const END: Duration = Duration::from_secs(120);

/// The settings of a worker.
#[derive(Debug, Clone, Copy)]
pub(super) struct WorkerConfig<'a> {
    pub(super) run: &'a RunDir,
    pub(super) aws: &'a Aws,
    pub(super) model: &'a Path,
    pub(super) queue: &'a Queue,
    pub(super) s3: &'a str,
    pub(super) sqs: &'a str,
}

/// The workers.
#[derive(Debug)]
pub(super) struct Workers<'a> {
    config: WorkerConfig<'a>,
    workers: Vec<Process>,
    kills: u64,
}

impl WorkerConfig<'_> {
    /// Starts a worker; the next one of the same number finds its cache.
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

impl<'a> Workers<'a> {
    pub(super) fn start(config: WorkerConfig<'a>, count: u16) -> Result<Self> {
        let workers = (0..usize::from(count)).map(|number| config.worker(number)).collect::<Result<_>>()?;
        Ok(Self { config, workers, kills: 0 })
    }

    /// Kills the next one in turn, and starts it again.
    pub(super) async fn kill_next(&mut self) -> Result<()> {
        let number = (self.kills % self.workers.len() as u64) as usize;
        self.check()?;
        self.workers[number].kill().await;
        self.workers[number] = self.config.worker(number)?;
        self.kills += 1;
        Ok(())
    }

    pub(super) fn kills(&self) -> u64 {
        self.kills
    }

    /// Fails if one has ended by itself.
    pub(super) fn check(&self) -> Result<()> {
        match self.workers.iter().find(|worker| !worker.is_running()) {
            Some(worker) => bail!(worker.error("ended by itself")),
            None => Ok(()),
        }
    }

    /// The resident memory of the largest worker, in MiB.
    pub(super) fn rss_mib(&self) -> f64 {
        // One that has just ended has none; `check` reports that.
        let kib = self.workers.iter().filter_map(|worker| worker.memory_kib("VmRSS").ok()).max();
        kib.unwrap_or(0) as f64 / 1024.0
    }

    /// SIGTERM to all; each must exit with 0.
    pub(super) async fn end(&self) -> Result<()> {
        let ends = self.workers.iter().map(async |worker| {
            let status = worker.terminate(END).await?;
            ensure!(status.success(), worker.error(&format!("ended with {status} after SIGTERM")));
            Ok(())
        });
        futures_util::future::try_join_all(ends).await.map(drop)
    }
}
