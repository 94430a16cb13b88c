//! The demo's stack with two openings: a gate in front of SQS and S3, and a function that may die. Refuses to do without any of
//! the real parts.

use super::{
    book::Book,
    faults::Faults,
    gate::Gate,
    hands::Hands,
    order::{self, Style},
    record::Station,
    watch,
};
use crate::{
    aws::{Aws, Queue},
    backend::Backend,
    broker::{Broker, Publisher},
    line::Relay,
    mapping::Mapping,
    paths::RunDir,
    stack::{QUEUE, function_env},
};
use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::{convert::Infallible, path::Path, sync::Arc, time::Duration};

/// A task whose function has died comes again after this time.
const VISIBILITY: Duration = Duration::from_secs(10);
/// More kills than a person gives one task.
const MAX_RECEIVE_COUNT: u32 = 6;
/// How long a dead function keeps its task from the next one.
const CLAIM_LEASE_SECONDS: &str = "3";

/// The running parts. Dropping it stops every process.
#[derive(Debug)]
pub struct Stage {
    /// The switches.
    pub faults: Faults,
    /// What is shown.
    pub book: Arc<Book>,
    /// SQS and S3.
    pub aws: Arc<Aws>,
    /// Logs and data.
    pub run: RunDir,
    mapping: Mapping,
    relay: Relay,
    queue: Queue,
    publisher: Publisher,
    broker: Broker,
    env: Vec<(&'static str, String)>,
}

impl Stage {
    /// Starts everything but the function; tells `ready` of each part.
    ///
    /// # Errors
    /// A part does not come up; the error names its log.
    pub async fn start(model: &Path, book: Arc<Book>, ready: impl Fn(&str)) -> Result<Self> {
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
        let gate = Arc::new(Gate::start(aws.endpoint(), book.clone()).await?);
        let publisher = broker.publisher().await?;
        publisher.declare(QUEUE).await?;
        let queue = aws.queue(QUEUE, VISIBILITY, MAX_RECEIVE_COUNT).await?;
        let through = [("AWS_ENDPOINT_URL", gate.url())];
        let options = through.each_ref().map(|(name, url)| (*name, url.as_str()));
        let relay = Relay::start_with(&run, QUEUE, &broker.url(), &aws, &queue.url, &options).await?;
        relay.ready().await?;
        ready("relay");
        let mut env = function_env(&aws, &run, "function", model)?;
        env.extend(through);
        env.extend(credentials(&book)?);
        env.push(("EASEL_ERROR_CODES", "fine".to_string()));
        env.push(("EASEL_CLAIM_LEASE", CLAIM_LEASE_SECONDS.to_string()));
        let hands = Arc::new(Hands::new(book.clone()));
        let mapping = Mapping::start(aws.clone(), queue.clone(), hands.clone(), 1);
        let backend = Arc::new(Backend::start().await?);
        let faults = Faults { hands, backend, gate, book: book.clone() };
        Ok(Self { faults, book, aws, run, mapping, relay, queue, publisher, broker, env })
    }

    /// Keeps a function at work and the book up to date; ends only with the error that ends the studio.
    ///
    /// # Errors
    /// A part has ended.
    pub async fn work(&self) -> Result<Infallible> {
        let Faults { hands, backend, .. } = &self.faults;
        tokio::select! {
            error = self.broker.process().died() => Err(error),
            error = self.aws.process().died() => Err(error),
            error = self.relay.process.died() => Err(error),
            ended = hands.work(&self.run, &self.env) => ended,
            ended = watch::webhooks(backend, &self.book) => ended,
            ended = watch::batches(&self.mapping, self.queue.max_receive_count, &self.book) => ended,
        }
    }

    /// Publishes a task to RabbitMQ and waits until that has it; gives its id.
    ///
    /// # Errors
    /// RabbitMQ does not take it.
    pub async fn publish(&self, order: &Map<String, Value>, styles: &[Style]) -> Result<i64> {
        let webhook = self.faults.backend.url();
        let id = self.book.enter(order::style(order), |id| order::body(order, styles, id, &webhook));
        let body = self.book.record(id).context("the task is gone")?.task.to_string();
        self.publisher.publish(QUEUE, body.as_bytes()).await?;
        self.book.mark_once(id, Station::Broker, "RabbitMQ has confirmed it");
        Ok(id)
    }
}

/// What the function signs its pictures with.
fn credentials(book: &Book) -> Result<[(&'static str, String); 2]> {
    let signer = book.shelf().signer()?;
    Ok([
        ("EASEL_CREDENTIAL_CERTIFICATE", signer.certificate.display().to_string()),
        ("EASEL_CREDENTIAL_KEY", signer.key.display().to_string()),
    ])
}
