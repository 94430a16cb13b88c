//! Everything together: broker, SQS and S3, the function, and the main line between them.

use crate::{
    aws::{Aws, IMAGES, MODELS, PAYLOADS},
    broker::{Broker, Publisher},
    lambda::Function,
    line::{Line, LineOptions},
    paths::RunDir,
    process::Process,
};
use anyhow::Result;
use std::{future::Future, path::Path, sync::Arc, time::Instant};

/// The queue that the backend publishes to.
pub const QUEUE: &str = "image_generation";
/// What the backend knows the function by.
pub const TOKEN: &str = "token-of-this-run-only";

/// The running stack. Dropping it stops every process.
#[derive(Debug)]
pub struct Stack {
    /// The main line.
    pub line: Line,
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
    /// Starts everything; tells `ready` of each part with the milliseconds that it took.
    ///
    /// # Errors
    /// A part does not come up; the error names its log.
    pub async fn start(model: &Path, options: LineOptions, ready: impl Fn(&str, u64)) -> Result<Self> {
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
        let line = Line::lay(&run, QUEUE, &broker.url(), &aws, &function, options).await?;
        timed("relay");
        Ok(Self { line, function, publisher, aws, broker, run })
    }

    /// Stores a LoRA; gives its s3 URL.
    ///
    /// # Errors
    /// S3 refuses.
    pub async fn put_lora(&self, key: &str, content: Vec<u8>) -> Result<String> {
        self.aws.put(MODELS, key, content).await
    }

    /// The processes that must live.
    pub fn processes(&self) -> [&Process; 5] {
        let Self { line, function, aws, broker, .. } = self;
        [broker.process(), aws.process(), function.api(), function.process(), &line.relay.process]
    }

    /// Ends with `future`, or with an error as soon as a process of the stack ends.
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

/// The environment of a function or worker: the stand-in's address and the model. The pictures' address follows from the first.
///
/// # Errors
/// The disk.
pub fn function_env(aws: &Aws, run: &RunDir, name: &str, model: &Path) -> Result<Vec<(&'static str, String)>> {
    let mut env = aws.env();
    env.extend([
        ("EASEL_MODEL_DIR", model.display().to_string()),
        ("EASEL_CACHE_DIR", run.folder(&format!("{name}-cache"))?.display().to_string()),
        // Every receiver of webhooks here listens on a loopback address.
        ("EASEL_ALLOW_PRIVATE_WEBHOOKS", "true".to_string()),
        ("EASEL_PAYLOAD_BUCKET", PAYLOADS.to_string()),
        ("S3_BUCKET", IMAGES.to_string()),
        ("INTERNAL_API_TOKEN", TOKEN.to_string()),
    ]);
    Ok(env)
}
