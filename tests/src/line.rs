//! One line from RabbitMQ to the function: queue, relay, SQS queue with dead-letter queue, event source mapping.

use crate::{
    aws::{Aws, Queue},
    lambda::Function,
    mapping::Mapping,
    paths::{RunDir, binary},
    ports,
    process::{Process, Spec},
};
use anyhow::Result;
use std::{sync::Arc, time::Duration};

const START: Duration = Duration::from_secs(60);

/// How a line is laid.
#[derive(Debug, Clone, Copy)]
pub struct LineOptions {
    /// Visibility timeout of the SQS queue. AWS asks for six times the function's timeout; the stand-ins here take one
    /// batch at a time, so that even a short one brings no message to two workers.
    pub visibility: Duration,
    /// Receives after which a message moves to the dead-letter queue.
    pub max_receive_count: u32,
    /// Messages to an invocation.
    pub batch_size: i32,
}

/// The line.
#[derive(Debug)]
pub struct Line {
    /// The SQS queue.
    pub queue: Queue,
    /// The relay.
    pub relay: Relay,
    /// The mapping.
    pub mapping: Mapping,
}

/// The real relay binary on one queue.
#[derive(Debug)]
pub struct Relay {
    /// Its process.
    pub process: Process,
    /// Address of its health endpoint.
    pub health: String,
    /// The RabbitMQ queue that it empties.
    pub amqp_queue: String,
}

impl Line {
    /// Lays a line; `name` is the RabbitMQ queue, the SQS queue and the relay's log.
    ///
    /// # Errors
    /// A part does not come up.
    pub async fn lay(
        run: &RunDir,
        name: &str,
        amqp_url: &str,
        aws: &Arc<Aws>,
        function: &Arc<Function>,
        options: LineOptions,
    ) -> Result<Self> {
        let queue = aws.queue(name, options.visibility, options.max_receive_count).await?;
        let relay = Relay::start(run, name, amqp_url, aws, &queue.url).await?;
        relay.ready().await?;
        let mapping = Mapping::start(aws.clone(), queue.clone(), function.clone(), options.batch_size);
        Ok(Self { queue, relay, mapping })
    }
}

impl Relay {
    /// Starts a relay that declares its queue; does not wait for it.
    ///
    /// # Errors
    /// It is not built.
    pub async fn start(run: &RunDir, queue: &str, amqp_url: &str, aws: &Aws, sqs_url: &str) -> Result<Self> {
        Self::start_with(run, queue, amqp_url, aws, sqs_url, &[]).await
    }

    /// As [`start`](Self::start), with more options, by their variables.
    ///
    /// # Errors
    /// It is not built.
    pub async fn start_with(
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

    /// What its health endpoint shows to Prometheus.
    ///
    /// # Errors
    /// It does not answer, or not with success.
    pub async fn metrics(&self) -> Result<String> {
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(http.get(format!("{}/metrics", self.health)).send().await?.error_for_status()?.text().await?)
    }

    /// Waits until it consumes.
    ///
    /// # Errors
    /// It ended or was not ready in time.
    pub async fn ready(&self) -> Result<()> {
        self.process.ready(START, async || self.status("/readyz").await == Some(200)).await
    }

    /// What its health endpoint answers at `path`; `None` when nothing listens.
    pub async fn status(&self, path: &str) -> Option<u16> {
        let http = reqwest::Client::builder().no_proxy().build().ok()?;
        Some(http.get(format!("{}{path}", self.health)).send().await.ok()?.status().as_u16())
    }
}
