//! The process between the broker and SQS: the relay, or a Python bridge to compare it with.

use crate::{
    ledger::options::{BridgeKind, QueueType},
    paths::{RunDir, binary, repo},
    ports,
    process::{Process, Spec},
};
use anyhow::{Context, Result, ensure};
use std::{fs, path::PathBuf, time::Duration};

const START: Duration = Duration::from_secs(60);
/// The unit of `utime` and `stime` in /proc: 100 per second on all common Linux systems.
const TICK_US: u64 = 10_000;

/// How to start it.
#[derive(Debug, Clone)]
pub(super) struct Bridge {
    pub(super) kind: BridgeKind,
    pub(super) python: PathBuf,
    pub(super) name: String,
    pub(super) amqp_url: String,
    pub(super) amqp_queue: String,
    pub(super) queue_type: QueueType,
    pub(super) prefetch: u16,
    pub(super) sqs_url: String,
    pub(super) fifo: bool,
    pub(super) linger_ms: Option<u64>,
}

impl Bridge {
    /// Starts it; does not wait for it.
    pub(super) fn start(&self, run: &RunDir) -> Result<Process> {
        let spec = match self.kind {
            BridgeKind::Relay => Spec::new(&self.name, binary("relay")?),
            BridgeKind::Python => self.python(&["single"])?,
            BridgeKind::PythonBatch => self.python(&["batch"])?,
        };
        let endpoint = self.sqs_url.split("/000000000000").next().unwrap_or_default();
        let mut spec = spec
            .env("AMQP_URL", &self.amqp_url)
            .env("AMQP_QUEUE", &self.amqp_queue)
            .env("AMQP_PREFETCH", self.prefetch.to_string())
            .env("RELAY_DECLARE", "true")
            // After the queue is deleted, the bridge or the ledger declares the same one.
            .env("AMQP_QUEUE_TYPE", self.queue_type.as_str())
            .env("RELAY_HEALTH_ADDR", format!("127.0.0.1:{}", ports::free()?))
            .env("SQS_QUEUE_URL", &self.sqs_url)
            .env("AWS_ENDPOINT_URL_SQS", endpoint);
        for (key, value) in [
            ("AWS_REGION", "us-east-1"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_CONFIG_FILE", "/dev/null"),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ] {
            spec = spec.env(key, value);
        }
        if let Some(linger) = self.linger_ms {
            spec = spec.env("RELAY_LINGER_MS", linger.to_string());
        }
        if self.fifo {
            spec = spec.env("SQS_MESSAGE_GROUP_ID", "json:/style_id");
        }
        spec.start(run)
    }

    fn python(&self, args: &[&str]) -> Result<Spec> {
        ensure!(
            self.python.is_file(),
            "{} is missing: run tests/bench/relay.py, which makes it",
            self.python.display()
        );
        let script = repo().join("tests/bench/bridge.py");
        Ok(Spec::new(&self.name, &self.python).args([script.as_os_str()]).args(args))
    }
}

/// Ends it with SIGTERM; it must exit with 0.
pub(super) async fn end(process: &Process) -> Result<()> {
    let status = process.terminate(START).await?;
    ensure!(status.success(), process.error(&format!("ended with {status} after SIGTERM")));
    Ok(())
}

/// The microseconds of processor time that it has used.
pub(super) fn cpu_us(process: &Process) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id()))?;
    // The name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').context("/proc stat")?.1.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u64>().ok()).context("/proc stat");
    Ok((ticks(11)? + ticks(12)?) * TICK_US)
}
