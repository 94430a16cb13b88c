//! The studio: the demo's stack, and a page on loopback that publishes tasks, shows where each was seen, keeps the pictures and
//! injects faults.

pub mod aws_proxy;
pub mod faults;
pub mod gallery;
pub mod monitor;
pub mod record;
pub mod server;
pub mod settings;
pub mod tasks;
pub mod watch;

pub use gallery::Gallery;
pub use server::{Studio, open};
pub use tasks::TaskStore;

use self::{
    aws_proxy::AwsProxy,
    faults::{FaultSwitches, RestartingFunction},
    monitor::Monitor,
    record::Station,
    settings::{CANCELS, SKETCHES},
};
use crate::{
    aws::{Aws, MODELS, Queue},
    backend::Backend,
    broker::{Broker, Publisher},
    mapping::Mapping,
    paths::RunDir,
    relay::Relay,
    stack::{QUEUE, function_env},
};
use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::{convert::Infallible, path::Path, sync::Arc, time::Duration};

/// The visibility timeout of the queue: six times as long as a function of the template for AWS may take, as AWS recommends it.
const VISIBILITY: Duration = Duration::from_secs(6 * 300);
/// More often than a person kills the function during one task.
const MAX_RECEIVE_COUNT: u32 = 6;

/// The form's fields, and those of a task that they set.
const FIELDS: [(&str, &str); 13] = [
    ("tags", "prompt_tags"),
    ("artist", "artist_name"),
    ("aspect_ratio", "aspect_ratio"),
    ("seed", "seed"),
    ("steps", "num_inference_steps"),
    ("width", "width"),
    ("height", "height"),
    ("scheduler", "scheduler"),
    ("strength", "strength"),
    ("lora_scale", "lora_scale"),
    ("lora_weights", "lora_weights"),
    ("clip_skip", "clip_skip"),
    ("long_prompt", "long_prompt"),
];

/// A style in the storage.
#[derive(Debug, Clone, Serialize)]
pub struct Style {
    /// Its name.
    pub name: String,
    /// `style_id`.
    pub id: u64,
    /// `artist_name`.
    pub artist: String,
    /// `lora_model_url`.
    pub url: String,
}

/// The running parts: a function that may be killed, and a proxy in front of SQS and S3. Dropping it stops every process.
#[derive(Debug)]
pub struct StudioStack {
    /// The fault switches.
    pub faults: FaultSwitches,
    /// What the page shows.
    pub tasks: Arc<TaskStore>,
    /// SQS and S3.
    pub aws: Arc<Aws>,
    /// Logs and data.
    pub run: RunDir,
    mapping: Mapping,
    relay: Relay,
    queue: Queue,
    publisher: Publisher,
    inspector: Publisher,
    broker: Broker,
    env: Vec<(&'static str, String)>,
}

impl StudioStack {
    /// Starts everything but the function; calls `ready` with the name of each part.
    ///
    /// # Errors
    /// A part does not come up; the error names its log.
    pub async fn start(model: &Path, tasks: Arc<TaskStore>, ready: impl Fn(&str)) -> Result<Self> {
        let run = RunDir::create()?;
        let broker = async {
            let broker = Broker::start(&run, "rabbitmq").await?;
            ready("RabbitMQ");
            anyhow::Ok(broker)
        };
        let aws = async {
            let aws = Aws::start(&run).await?;
            ready("SQS and S3");
            anyhow::Ok(Arc::new(aws))
        };
        let (broker, aws) = tokio::try_join!(broker, aws)?;
        aws.s3.create_bucket().bucket(SKETCHES).send().await.context("create bucket")?;
        let aws_proxy = Arc::new(AwsProxy::start(aws.endpoint(), tasks.clone()).await?);
        let (publisher, inspector) = (broker.publisher().await?, broker.publisher().await?);
        publisher.declare(QUEUE).await?;
        let queue = aws.queue(QUEUE, VISIBILITY, MAX_RECEIVE_COUNT).await?;
        let through = [("AWS_ENDPOINT_URL", aws_proxy.url())];
        let mut options = through.each_ref().map(|(name, url)| (*name, url.as_str())).to_vec();
        options.extend(settings::RELAY.map(|setting| (setting.name, setting.value)));
        let relay = Relay::start(&run, QUEUE, &broker.url(), &aws, &queue.url, &options).await?;
        relay.ready().await?;
        ready("relay");
        let mut env = function_env(&aws, &run, "function", model)?;
        env.extend(through);
        env.extend(credentials(&tasks)?);
        env.extend(settings::FUNCTION.map(|setting| (setting.name, setting.value.to_string())));
        let function = Arc::new(RestartingFunction::new(tasks.clone(), aws.clone(), queue.clone()));
        let mapping = Mapping::start(aws.clone(), queue.clone(), function.clone(), 1);
        let backend = Arc::new(Backend::start().await?);
        let faults = FaultSwitches { function, backend, aws_proxy, tasks: tasks.clone() };
        Ok(Self { faults, tasks, aws, run, mapping, relay, queue, publisher, inspector, broker, env })
    }

    /// Keeps a function running and the tasks up to date. Ends only with an error.
    ///
    /// # Errors
    /// A part has ended.
    pub async fn run(&self) -> Result<Infallible> {
        let FaultSwitches { function, backend, .. } = &self.faults;
        let monitor =
            Monitor { broker: &self.inspector, aws: &self.aws, queue: &self.queue, relay: &self.relay, function };
        tokio::select! {
            error = self.broker.process().died() => Err(error),
            error = self.aws.process().died() => Err(error),
            error = self.relay.process.died() => Err(error),
            ended = function.run(&self.run, &self.env) => ended,
            never = monitor.run(&self.tasks) => match never {},
            ended = watch::webhooks(backend, &self.tasks) => ended,
            ended = watch::batches(&self.mapping, self.queue.max_receive_count, &self.tasks) => ended,
        }
    }

    /// Publishes a task with confirmation; gives its id.
    ///
    /// # Errors
    /// RabbitMQ does not take it.
    pub async fn publish(&self, form: &Map<String, Value>, styles: &[Style]) -> Result<i64> {
        if let Some(name) = sketch(form) {
            self.store_sketch(name).await?;
        }
        let webhook = self.faults.backend.url();
        let id = self.tasks.add(style(form), |id| body(form, styles, id, &webhook));
        let body = self.tasks.record(id).context("the task is gone")?.task.to_string();
        self.publisher.publish(QUEUE, body.as_bytes()).await?;
        self.tasks.mark_once(id, Station::Broker, "RabbitMQ has confirmed it");
        Ok(id)
    }

    /// Puts a sketch of the gallery into S3, unless it is there. One of an earlier run is not yet; for one that nobody has, it is the
    /// function that says so.
    async fn store_sketch(&self, name: &str) -> Result<()> {
        let Some(path) = self.tasks.gallery().sketch(name) else { return Ok(()) };
        if self.aws.etag(SKETCHES, name).await.is_none() {
            let content = tokio::fs::read(&path).await.with_context(|| path.display().to_string())?;
            self.aws.put(SKETCHES, name, content).await?;
        }
        Ok(())
    }

    /// Publishes the message that cancels a task, to the queue for such messages.
    ///
    /// # Errors
    /// RabbitMQ does not take it.
    pub async fn cancel(&self, id: i64) -> Result<Cancel> {
        match self.tasks.record(id).filter(|_| self.tasks.is_of_this_run(id)) {
            None => return Ok(Cancel::Unknown),
            Some(record) if record.end.is_some() => return Ok(Cancel::Ended),
            Some(_) => {}
        }
        self.publisher.publish(CANCELS, json!({ "cancel": id }).to_string().as_bytes()).await?;
        self.tasks.change(id, |record, at_ms| record.cancel_ms = record.cancel_ms.or(Some(at_ms)));
        self.tasks.mark_once(id, Station::Cancel, "RabbitMQ has confirmed the message that cancels it");
        Ok(Cancel::Asked)
    }
}

/// What became of the wish to cancel a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancel {
    /// The message was published.
    Asked,
    /// There is no such task in this run.
    Unknown,
    /// It has ended already.
    Ended,
}

/// The variables for the certificate of the function's pictures.
fn credentials(tasks: &TaskStore) -> Result<[(&'static str, String); 2]> {
    let signer = tasks.gallery().signer()?;
    Ok([
        ("EASEL_CREDENTIAL_CERTIFICATE", signer.certificate.display().to_string()),
        ("EASEL_CREDENTIAL_KEY", signer.key.display().to_string()),
    ])
}

/// The body of a task from the form. It is not checked; an unknown style gives the URL of a LoRA that does not exist.
fn body(form: &Map<String, Value>, styles: &[Style], id: i64, webhook: &str) -> Value {
    let name = style(form);
    let url = || format!("s3://{MODELS}/models/{name}/lora_weights.safetensors");
    let found = styles.iter().find(|style| style.name == name);
    let mut body = json!({
        "generation_id": id,
        "style_id": found.map_or(0, |style| style.id),
        "lora_model_url": found.map_or_else(url, |style| style.url.clone()),
        "webhook_url": webhook,
    });
    for (ours, theirs) in FIELDS {
        if let Some(value) = form.get(ours) {
            body[theirs] = value.clone();
        }
    }
    if let Some(name) = sketch(form) {
        body["image_url"] = format!("s3://{SKETCHES}/{name}").into();
    }
    body
}

/// The style that the form names.
fn style(form: &Map<String, Value>) -> &str {
    form.get("style").and_then(Value::as_str).unwrap_or_default()
}

/// The sketch that the form names.
fn sketch(form: &Map<String, Value>) -> Option<&str> {
    form.get("sketch").and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_task_has_the_values_of_the_form_right_or_wrong() {
        let style = Style { name: "dots".into(), id: 10, artist: "B".into(), url: "s3://b/10".into() };
        let Value::Object(form) = json!({ "style": "dots", "tags": [], "seed": "x", "steps": 0, "else": 1 }) else {
            panic!("no object");
        };
        let task = body(&form, std::slice::from_ref(&style), 7, "http://w");
        let expected = json!({ "generation_id": 7, "style_id": 10, "lora_model_url": "s3://b/10",
            "webhook_url": "http://w", "prompt_tags": [], "seed": "x", "num_inference_steps": 0 });
        assert_eq!(task, expected);
        let task = body(&Map::new(), &[style], 7, "http://w");
        assert_eq!(task["lora_model_url"], "s3://stylelicense-models/models//lora_weights.safetensors");
        let Value::Object(form) = json!({ "sketch": "a.png", "strength": 2, "lora_weights": "x" }) else {
            panic!("no object");
        };
        let task = body(&form, &[], 7, "http://w");
        let begun = ["image_url", "strength", "lora_weights"].map(|field| task[field].clone());
        assert_eq!(begun, [json!("s3://stylelicense-sketches/a.png"), json!(2), json!("x")]);
    }
}
