//! The real relay binary on one queue.

use crate::{
    aws::Aws,
    paths::{RunDir, binary},
    ports,
    process::{Process, Spec},
    wait,
};
use anyhow::Result;
use serde_json::Value;
use std::time::Duration;

const START: Duration = Duration::from_secs(60);

/// A running relay.
#[derive(Debug)]
pub struct Relay {
    /// Its process.
    pub process: Process,
    /// Address of its health endpoint.
    pub health: String,
    /// The RabbitMQ queue that it consumes.
    pub amqp_queue: String,
}

impl Relay {
    /// Starts a relay that declares its queue; does not wait for it. Variables in `options` replace those given here.
    ///
    /// # Errors
    /// It is not built.
    pub async fn start(
        run: &RunDir,
        queue: &str,
        amqp_url: &str,
        aws: &Aws,
        sqs_url: &str,
        options: &[(&str, &str)],
    ) -> Result<Self> {
        let addr = format!("127.0.0.1:{}", ports::free()?);
        let process = Spec::new(&format!("relay-{queue}"), binary("relay")?)
            .env("AMQP_URL", amqp_url)
            .env("AMQP_QUEUE", queue)
            .env("RELAY_DECLARE", "true")
            .env("RELAY_HEALTH_ADDR", &addr)
            .env("SQS_QUEUE_URL", sqs_url)
            .envs(aws.env())
            .envs(options.iter().copied())
            .start(run)?;
        Ok(Self { process, health: format!("http://{addr}"), amqp_queue: queue.to_string() })
    }

    /// The text of its Prometheus metrics.
    ///
    /// # Errors
    /// It does not answer with 200.
    pub async fn metrics(&self) -> Result<String> {
        let http = crate::http_client()?;
        Ok(http.get(format!("{}/metrics", self.health)).send().await?.error_for_status()?.text().await?)
    }

    /// One metric by its name with labels; `None` if it does not exist.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.metrics().await.ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?.parse().ok()
    }

    /// Waits until a metric is `least` or more.
    ///
    /// # Errors
    /// Not in time.
    pub async fn reaches(&self, name: &str, least: f64, within: Duration) -> Result<()> {
        let reached = async || self.metric(name).await.filter(|value| *value >= least).map(drop);
        wait::until(&format!("{name} {least}"), within, reached).await
    }

    /// Waits until it consumes.
    ///
    /// # Errors
    /// It ended or was not ready in time.
    pub async fn ready(&self) -> Result<()> {
        self.process.ready(START, async || self.status("/readyz").await == Some(200)).await
    }

    /// The status of `/readyz` and its body; `None` when nothing listens.
    pub async fn readiness(&self) -> Option<(u16, Value)> {
        let answer = crate::http_client().ok()?.get(format!("{}/readyz", self.health)).send().await.ok()?;
        Some((answer.status().as_u16(), answer.json().await.ok()?))
    }

    /// The status of its health endpoint at `path`; `None` when nothing listens.
    pub async fn status(&self, path: &str) -> Option<u16> {
        let http = crate::http_client().ok()?;
        Some(http.get(format!("{}{path}", self.health)).send().await.ok()?.status().as_u16())
    }
}
