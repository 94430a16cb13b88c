//! Everything together: broker, SQS and S3, the function, and the main route between them.

use crate::{
    aws::{Aws, IMAGES, MODELS, PAYLOADS, Queue},
    broker::{Broker, Publisher},
    lambda::Function,
    mapping::Mapping,
    paths::RunDir,
    process::Process,
    relay::Relay,
};
use anyhow::Result;
use std::{
    future::Future,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

/// The queue that the backend publishes to.
pub const QUEUE: &str = "image_generation";
/// The token that the function sends to the backend.
pub const TOKEN: &str = "token-of-this-run-only";

/// The running stack. Dropping it stops every process.
#[derive(Debug)]
pub struct Stack {
    /// The main route.
    pub route: Route,
    /// The function.
    pub function: Arc<Function>,
    /// A channel to the broker.
    pub publisher: Publisher,
    /// SQS and S3.
    pub aws: Arc<Aws>,
    /// The broker.
    pub broker: Broker,
    /// Logs and data.
    pub run: RunDir,
}

impl Stack {
    /// Starts everything; calls `ready` with the name of each part and the milliseconds since the start.
    ///
    /// # Errors
    /// A part does not come up; the error names its log.
    pub async fn start(model: &Path, options: RouteOptions, ready: impl Fn(&str, u64)) -> Result<Self> {
        let run = RunDir::create()?;
        let started = Instant::now();
        let timed = |part: &str| ready(part, started.elapsed().as_millis() as u64);
        let broker = async {
            let broker = Broker::start(&run, "rabbitmq").await?;
            timed("RabbitMQ");
            anyhow::Ok(broker)
        };
        let aws_and_function = async {
            let aws = Aws::start(&run).await?;
            timed("SQS and S3");
            let function = Function::start(&run, "function", &function_env(&aws, &run, "function", model)?).await?;
            timed("function");
            anyhow::Ok((Arc::new(aws), Arc::new(function)))
        };
        let (broker, (aws, function)) = tokio::try_join!(broker, aws_and_function)?;
        let publisher = broker.publisher().await?;
        publisher.declare(QUEUE).await?;
        let route = Route::start(&run, QUEUE, &broker.url(), &aws, &function, options).await?;
        timed("relay");
        Ok(Self { route, function, publisher, aws, broker, run })
    }

    /// Stores a LoRA; gives its s3 URL.
    ///
    /// # Errors
    /// S3 answers with an error.
    pub async fn put_lora(&self, key: &str, content: Vec<u8>) -> Result<String> {
        self.aws.put(MODELS, key, content).await
    }

    /// The processes that must keep running.
    pub fn processes(&self) -> [&Process; 5] {
        let Self { route, function, aws, broker, .. } = self;
        [broker.process(), aws.process(), function.api(), function.process(), &route.relay.process]
    }

    /// Waits for `future`, or for an error as soon as a process of the stack ends.
    ///
    /// # Errors
    /// Those of `future`, and a process that ended.
    pub async fn alive<T>(&self, future: impl Future<Output = Result<T>>) -> Result<T> {
        let [broker, aws, api, function, relay] = self.processes();
        tokio::select! {
            done = future => done,
            error = broker.died() => Err(error),
            error = aws.died() => Err(error),
            error = api.died() => Err(error),
            error = function.died() => Err(error),
            error = relay.died() => Err(error),
        }
    }
}

/// The settings of a route.
#[derive(Debug, Clone, Copy)]
pub struct RouteOptions {
    /// Visibility timeout of the SQS queue. AWS asks for six times the function's timeout; the stand-ins here take one
    /// batch at a time, so that even a short one brings no message to two workers.
    pub visibility: Duration,
    /// Receives after which a message moves to the dead-letter queue.
    pub max_receive_count: u32,
    /// The most messages in one invocation.
    pub batch_size: i32,
}

/// The way from RabbitMQ to the function: queue, relay, SQS queue with dead-letter queue, event source mapping.
#[derive(Debug)]
pub struct Route {
    /// The SQS queue.
    pub queue: Queue,
    /// The relay.
    pub relay: Relay,
    /// The mapping.
    pub mapping: Mapping,
}

impl Route {
    /// Starts a route; `name` is that of the RabbitMQ queue and of the SQS queue.
    ///
    /// # Errors
    /// A part does not come up.
    pub async fn start(
        run: &RunDir,
        name: &str,
        amqp_url: &str,
        aws: &Arc<Aws>,
        function: &Arc<Function>,
        options: RouteOptions,
    ) -> Result<Self> {
        let queue = aws.queue(name, options.visibility, options.max_receive_count).await?;
        let relay = Relay::start(run, name, amqp_url, aws, &queue.url, &[]).await?;
        relay.ready().await?;
        let mapping = Mapping::start(aws.clone(), queue.clone(), function.clone(), options.batch_size);
        Ok(Self { queue, relay, mapping })
    }
}

/// The environment of a function or worker: the stand-in's address and the model.
///
/// # Errors
/// The disk.
pub fn function_env(aws: &Aws, run: &RunDir, name: &str, model: &Path) -> Result<Vec<(&'static str, String)>> {
    let mut env = aws.env();
    env.extend([
        ("EASEL_MODEL_DIR", model.display().to_string()),
        ("EASEL_CACHE_DIR", run.folder(&format!("{name}-cache"))?.display().to_string()),
        // The webhook receivers listen on loopback addresses.
        ("EASEL_ALLOW_PRIVATE_WEBHOOKS", "true".to_string()),
        ("EASEL_PAYLOAD_BUCKET", PAYLOADS.to_string()),
        ("S3_BUCKET", IMAGES.to_string()),
        ("INTERNAL_API_TOKEN", TOKEN.to_string()),
    ]);
    Ok(env)
}
