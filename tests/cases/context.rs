//! What the cases share: the stack, one runtime for all of them, and a context with a webhook receiver and helpers.

use anyhow::{Context, Result, ensure};
use aws_sdk_sqs::types::Message;
use e2e::{
    aws::{Aws, IMAGES, Queue},
    backend::{Backend, COMPLETE, Call, FAILED, PROGRESS},
    broker::Publisher,
    mapping,
    paths::{binary, repo},
    process::{Process, Spec, output},
    relay::Relay,
    runtime_api::RuntimeApi,
    sqs::Sqs,
    stack::RouteOptions,
    stack::{QUEUE, Stack, function_env},
    task::Task,
    wait,
};
use image::DynamicImage;
use serde_json::Value;
use std::{
    fs,
    future::Future,
    path::PathBuf,
    sync::{LazyLock, OnceLock},
    time::Duration,
};
use tokio::runtime::Runtime;

/// Longer than anything here takes.
pub(crate) const HOUR: Duration = Duration::from_secs(3600);
/// For anything that may have to wait for other cases on two cores.
pub(crate) const PATIENCE: Duration = Duration::from_secs(180);
/// The main route: no message may be received again while other cases keep the function busy.
const ROUTE: RouteOptions = RouteOptions { visibility: Duration::from_secs(600), max_receive_count: 3, batch_size: 1 };

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime"));
static STACK: OnceLock<Result<Shared, String>> = OnceLock::new();

struct Shared {
    stack: Stack,
    lora: String,
}

/// A case's own webhook receiver, and the shared stack.
pub(crate) struct TestContext {
    pub(crate) stack: &'static Stack,
    pub(crate) backend: Backend,
    /// The URL of a LoRA that fits the model.
    pub(crate) lora: &'static str,
}

/// A painted task.
pub(crate) struct Painting {
    pub(crate) file: Vec<u8>,
    pub(crate) picture: DynamicImage,
    pub(crate) complete: Call,
    pub(crate) progress: Vec<Call>,
}

/// A case's own function with a Runtime API that sets deadlines, and a queue with a long visibility timeout: within the case a
/// message is visible again only if the function makes it so.
pub(crate) struct OwnFunction {
    pub(crate) queue: Queue,
    pub(crate) api: RuntimeApi,
    pub(crate) function: Process,
}

/// Runs a case. All share one runtime, because connections belong to the runtime that opened them.
pub(crate) fn case<F: Future<Output = Result<()>>>(body: impl FnOnce(TestContext) -> F) {
    let ended = RUNTIME.block_on(async {
        let ctx = TestContext::open().await?;
        let stack = ctx.stack;
        stack.alive(body(ctx)).await
    });
    if let Err(error) = ended {
        panic!("{error:#}");
    }
}

/// Ends a relay with SIGTERM. Its queue must be empty then: all messages were acknowledged.
pub(crate) async fn drained(relay: &Relay, publisher: &Publisher) -> Result<()> {
    ensure!(relay.process.terminate(PATIENCE).await?.success(), "{}", relay.process.log_text());
    ensure!(publisher.ready_count(&relay.amqp_queue).await? == 0, "something was not acknowledged");
    Ok(())
}

/// The model that the cases paint with.
pub(crate) fn model() -> PathBuf {
    repo().join(".cache/toy-model")
}

/// The LoRA file for that model.
pub(crate) fn lora_file() -> PathBuf {
    model().join("lora.safetensors")
}

async fn shared() -> Result<&'static Shared> {
    let start = || {
        RUNTIME.block_on(async {
            let lora = fs::read(lora_file()).context("no toy model: run infra/local/test")?;
            let stack = Stack::start(&model(), ROUTE, |_, _| {}).await?;
            let lora = stack.put_lora("models/style_10/lora_weights.safetensors", lora).await?;
            anyhow::Ok(Shared { stack, lora })
        })
    };
    // The first case starts the stack and the others wait, on threads that may block.
    let started = tokio::task::spawn_blocking(move || {
        STACK.get_or_init(|| start().map_err(|error| format!("the stack did not start: {error:#}")))
    });
    started.await?.as_ref().map_err(|error| anyhow::anyhow!("{error}"))
}

impl OwnFunction {
    /// Puts a body into the queue and receives it, as an event source mapping would.
    pub(crate) async fn receive(&self, aws: &Aws, body: &str) -> Result<Vec<Message>> {
        aws.send(&self.queue.url, body).await?;
        aws.receive(&self.queue.url, 20, 1).await
    }

    /// Invokes it with these messages for this time; gives the ids that it reports as failed.
    pub(crate) async fn invoke(&mut self, messages: &[Message], time: Duration) -> Result<Vec<String>> {
        let event = mapping::event(messages, &self.queue.arn());
        let answer = wait::at_most("answer", PATIENCE, self.api.invoke(event, time)).await??;
        let answer = answer.map_err(anyhow::Error::msg)?;
        let id = |item: &Value| item["itemIdentifier"].as_str().map(str::to_string);
        let failures = answer["batchItemFailures"].as_array().and_then(|items| items.iter().map(id).collect());
        failures.with_context(|| format!("not an answer for SQS: {answer}"))
    }
}

impl TestContext {
    async fn open() -> Result<Self> {
        let Shared { stack, lora } = shared().await?;
        Ok(Self { stack, backend: Backend::start().await?, lora })
    }

    /// An SQS queue whose messages stay hidden longer than a case takes.
    pub(crate) async fn queue(&self, name: &str) -> Result<Queue> {
        self.stack.aws.queue(name, Duration::from_secs(600), 3).await
    }

    /// The environment of a handler that works; `name` is that of its cache.
    pub(crate) fn env(&self, name: &str) -> Result<Vec<(&'static str, String)>> {
        function_env(&self.stack.aws, &self.stack.run, name, &model())
    }

    /// Starts a relay on the shared broker; does not wait for it. `options` are environment variables.
    pub(crate) async fn start_relay(&self, name: &str, sqs_url: &str, options: &[(&str, &str)]) -> Result<Relay> {
        Relay::start(&self.stack.run, name, &self.stack.broker.url(), &self.stack.aws, sqs_url, options).await
    }

    /// As [`start_relay`](Self::start_relay), and waits until it consumes.
    pub(crate) async fn relay(&self, name: &str, sqs_url: &str, options: &[(&str, &str)]) -> Result<Relay> {
        let relay = self.start_relay(name, sqs_url, options).await?;
        relay.ready().await?;
        Ok(relay)
    }

    /// A relay from the shared broker to an SQS stand-in of the case's own.
    pub(crate) async fn relay_to(&self, sqs: &Sqs, name: &str, options: &[(&str, &str)]) -> Result<Relay> {
        let endpoint = format!("http://{}", sqs.addr());
        let options = [&[("AWS_ENDPOINT_URL_SQS", endpoint.as_str())], options].concat();
        self.relay(name, &sqs.queue_url(sqs.addr()), &options).await
    }

    /// Runs a program to its end; its exit code and all that it wrote.
    pub(crate) async fn output(&self, spec: Spec) -> Result<(i32, String)> {
        let (status, text) = output(&self.stack.run, spec, PATIENCE).await?;
        Ok((status.code().unwrap_or(-1), text))
    }

    /// Starts a function and a queue of that name.
    pub(crate) async fn own_function(&self, name: &str) -> Result<OwnFunction> {
        let (aws, run) = (&self.stack.aws, &self.stack.run);
        let queue = aws.queue(name, HOUR, 3).await?;
        let api = RuntimeApi::start().await?;
        let spec = Spec::new(name, binary("handler")?).envs(self.env(name)?);
        Ok(OwnFunction { queue, function: spec.envs(api.env()).start(run)?, api })
    }

    /// A good task of few steps.
    pub(crate) fn task(&self) -> Task {
        Task::new(&self.backend.url(), self.lora).with("num_inference_steps", 2)
    }

    /// Publishes a body to RabbitMQ.
    pub(crate) async fn publish(&self, body: &str) -> Result<()> {
        self.stack.publisher.publish(QUEUE, body.as_bytes()).await
    }

    /// Sends tasks through everything, each with what the message of its failure has to say.
    pub(crate) async fn refused(&self, tasks: &[(Task, &str)]) -> Result<()> {
        for (task, _) in tasks {
            self.publish(&task.body()).await?;
        }
        for (task, said) in tasks {
            let failed = self.backend.end_of(task.id(), PATIENCE).await?;
            ensure!(failed.path == FAILED, "{} has not failed", failed.line());
            ensure!(failed.error_message().contains(said), "{} does not say {said}", failed.error_message());
        }
        Ok(())
    }

    /// Sends a task through everything and waits for its picture.
    pub(crate) async fn paint(&self, task: &Task) -> Result<Painting> {
        self.publish(&task.body()).await?;
        self.painting(task).await
    }

    /// Waits for the picture of a task that was sent.
    pub(crate) async fn painting(&self, task: &Task) -> Result<Painting> {
        let complete = self.backend.end_of(task.id(), PATIENCE).await?;
        ensure!(complete.path == COMPLETE, "not painted: {}", complete.line());
        let url = complete.body["result_url"].as_str().context("no result_url")?;
        let answer = e2e::http_client()?.get(url).send().await?;
        ensure!(answer.status().is_success(), "{url}: {}", answer.status());
        let file = answer.bytes().await?.to_vec();
        let picture = image::load_from_memory(&file)?;
        let mut progress = self.backend.calls_of(task.id());
        progress.retain(|call| call.path == PROGRESS);
        Ok(Painting { file, picture, complete, progress })
    }

    /// The entity tag of a task's picture, if there is one.
    pub(crate) async fn etag(&self, task: &Task) -> Option<String> {
        self.stack.aws.etag(IMAGES, &task.key()).await
    }
}
