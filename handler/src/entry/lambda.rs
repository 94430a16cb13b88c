//! The Lambda function: SQS events through the Lambda Runtime API, answered with a partial batch response.

use crate::{
    entry::{FINISHING, sqs::Queues},
    job::{Deadline, JobRunner, Message, Outcome, options::ServiceConfig},
    observe::trace::{CARRIER_FIELDS, FLUSH_LIMIT},
};
use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream};
use lambda_runtime::{Error, LambdaEvent, Runtime, service_fn};
use service::Asked;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use telemetry::Traces;
use tokio::sync::RwLock;
use tower::util::MapFutureLayer;

/// Most tasks of one event that are in work at once.
const MAX_CONCURRENT: usize = 10;

/// Serves events until SIGTERM or SIGINT.
///
/// # Errors
/// A setting cannot work, this is not Lambda, the model cannot be loaded, the GPU is lost, or the Runtime API does not answer.
pub async fn serve(config: &ServiceConfig, traces: Option<Traces>) -> anyhow::Result<()> {
    let aws = settings::sdk_config().await?;
    let runner = JobRunner::open(config, &aws).await?;
    is_on_lambda()?;
    let (queues, busy) = (Arc::new(Queues::new(&aws)), Arc::new(RwLock::new(())));
    let shared = (runner.clone(), queues, traces);
    let service = service_fn(move |event: LambdaEvent<SqsEvent>| {
        let (runner, queues, traces) = shared.clone();
        async move {
            let end = instant(event.context.deadline());
            let deadline = end.map_or(Deadline::NONE, Deadline::at);
            let answer = handle(&runner, &queues, event.payload, deadline).await;
            if let Some(traces) = traces {
                // At most half of the time that is left: the answer matters more than its trace.
                let left = end.map_or(FLUSH_LIMIT, |end| end.saturating_duration_since(Instant::now()) / 2);
                traces.flush(left.min(FLUSH_LIMIT)).await;
            }
            answer
        }
    });
    let stop = service::on_signal(&Asked::default(), FINISHING)?;
    // As many events at once as AWS_LAMBDA_MAX_CONCURRENCY says, which Managed Instances set; else one.
    let runtime = Runtime::new(service).layer(MapFutureLayer::new(until_answered(busy.clone()))).run_concurrent();
    tokio::pin!(runtime);
    // Registers before the model is loaded: standard Lambda restarts a process that has not registered after ten seconds. The first
    // event's LoRA is fetched meanwhile; only the painting waits for the model.
    let broken = tokio::select! {
        broken = runner.broken() => Some(broken),
        ended = &mut runtime => return ended.map_err(out_of_reach),
        () = stop.cancelled() => None,
    };
    // Events in work end first; tasks that cannot be painted are given back.
    tokio::select! {
        ended = &mut runtime => ended.map_err(out_of_reach)?,
        _ = busy.write() => {}
    }
    broken.map_or(Ok(()), |broken| Err(broken.into()))
}

/// The client of the Runtime API panics without these variables.
fn is_on_lambda() -> anyhow::Result<()> {
    for variable in ["AWS_LAMBDA_RUNTIME_API", "AWS_LAMBDA_FUNCTION_NAME"] {
        anyhow::ensure!(
            std::env::var_os(variable).is_some(),
            "{variable} is not set: only AWS Lambda can start the function; elsewhere use handler worker"
        );
    }
    Ok(())
}

/// Holds a read lock of `busy` until the event's answer has been sent.
fn until_answered<F>(busy: Arc<RwLock<()>>) -> impl FnMut(F) -> BoxFuture<'static, F::Output> + Clone
where
    F: Future<Output: Send> + Send + 'static,
{
    move |answered| {
        let busy = busy.clone();
        async move {
            let _busy = busy.read_owned().await;
            answered.await
        }
        .boxed()
    }
}

fn out_of_reach(error: Error) -> anyhow::Error {
    anyhow::anyhow!("Lambda Runtime API: {error}")
}

/// Handles all messages of an event at once, those of a FIFO queue one after the other. The answer lists those that SQS shall redeliver.
async fn handle(
    runner: &JobRunner,
    queues: &Queues,
    event: SqsEvent,
    deadline: Deadline,
) -> Result<SqsBatchResponse, Error> {
    let at_once = if event.records.iter().any(is_fifo) { 1 } else { MAX_CONCURRENT };
    let stopped = &AtomicBool::new(false);
    let works = event.records.into_iter().map(async |record| {
        let outcome = match stopped.load(Ordering::Relaxed) {
            false => runner.handle(&job_message(&record, deadline)).await,
            true => Outcome::GivenBack(Duration::ZERO),
        };
        let Outcome::GivenBack(wait) = outcome else { return None };
        // To keep a FIFO queue's order, everything after the first failure is given back, too.
        stopped.fetch_or(is_fifo(&record), Ordering::Relaxed);
        if deadline.settle(set_visible_after(queues, &record, wait)).await.is_err() {
            tracing::warn!("no time to say when the message comes again: after the queue's visibility timeout");
        }
        Some(record)
    });
    let given_back: Vec<Option<SqsMessage>> = stream::iter(works).buffered(at_once).collect().await;
    let mut response = SqsBatchResponse::default();
    for record in given_back.into_iter().flatten() {
        // An empty identifier would make Lambda redeliver the whole batch, finished messages included.
        let id = record.message_id.filter(|id| !id.is_empty());
        response.add_failure(id.ok_or("a record without messageId cannot be reported on its own")?);
    }
    Ok(response)
}

fn job_message(record: &SqsMessage, deadline: Deadline) -> Message {
    let body = record.body.clone().unwrap_or_default();
    let number = |name: &str| record.attributes.get(name)?.parse::<u64>().ok();
    let carried = |name: &str| record.message_attributes.get(name)?.string_value.clone();
    Message {
        body,
        id: record.message_id.clone(),
        carrier: CARRIER_FIELDS.iter().filter_map(|name| Some((name.to_string(), carried(name)?))).collect(),
        receive_count: number("ApproximateReceiveCount").and_then(|count| count.try_into().ok()).unwrap_or(1),
        deadline,
        sent_at: number("SentTimestamp").map(|ms| UNIX_EPOCH + Duration::from_millis(ms)),
    }
}

/// Makes a message visible again after `wait`. Otherwise that takes the queue's visibility timeout, several times the function's.
async fn set_visible_after(queues: &Queues, record: &SqsMessage, wait: Duration) {
    let (Some(arn), Some(handle)) = (&record.event_source_arn, &record.receipt_handle) else { return };
    let seconds = i32::try_from(wait.as_secs()).unwrap_or(i32::MAX);
    let set = async { queues.by_arn(arn).await?.set_visibility(handle, seconds).await };
    if let Err(error) = set.await {
        tracing::warn!(error, "the message comes again only after the queue's visibility timeout");
    }
}

/// When the invocation ends. None if the Runtime API gives no time, or one in the past.
fn instant(deadline: SystemTime) -> Option<Instant> {
    let left = deadline.duration_since(SystemTime::now()).ok()?;
    Instant::now().checked_add(left)
}

fn is_fifo(record: &SqsMessage) -> bool {
    record.event_source_arn.as_deref().is_some_and(|arn| arn.ends_with(".fifo"))
}
