//! The Lambda function: SQS events through the Lambda Runtime API, answered with a partial batch response.

use crate::{
    entry::{FINISHING, sqs::Queues},
    job::{Deadline, JobRunner, Message, Outcome, options::ServiceConfig},
    observe::trace::{CARRIED, FLUSH_LIMIT},
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

/// Tasks of one event in work at a time.
const AT_ONCE: usize = 10;

/// Serves events until the process is told to stop.
///
/// # Errors
/// A setting cannot work, this is not Lambda, the model cannot be loaded, the GPU is lost, or the Runtime API is out of reach.
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
                // No task is given up for its trace.
                let left = end.map_or(FLUSH_LIMIT, |end| end.saturating_duration_since(Instant::now()) / 2);
                traces.flush(left.min(FLUSH_LIMIT)).await;
            }
            answer
        }
    });
    let stop = service::on_signal(&Asked::default(), FINISHING)?;
    // As many at a time as AWS_LAMBDA_MAX_CONCURRENCY says, which Managed Instances set; else one.
    let runtime = Runtime::new(service).layer(MapFutureLayer::new(until_answered(busy.clone()))).run_concurrent();
    tokio::pin!(runtime);
    // Registers at once: standard Lambda gives the start ten seconds and then begins it again. The first event's LoRA is fetched
    // meanwhile, and only the painting waits for the model.
    let broken = tokio::select! {
        broken = runner.broken() => Some(broken),
        ended = &mut runtime => return ended.map_err(out_of_reach),
        () = stop.cancelled() => None,
    };
    // What cannot be painted is given back.
    tokio::select! {
        ended = &mut runtime => ended.map_err(out_of_reach)?,
        _ = busy.write() => {}
    }
    broken.map_or(Ok(()), |broken| Err(broken.into()))
}

/// Without these the client of the Runtime API would panic.
fn is_on_lambda() -> anyhow::Result<()> {
    for variable in ["AWS_LAMBDA_RUNTIME_API", "AWS_LAMBDA_FUNCTION_NAME"] {
        anyhow::ensure!(
            std::env::var_os(variable).is_some(),
            "{variable} is not set: only AWS Lambda can start the function; elsewhere use handler worker"
        );
    }
    Ok(())
}

/// Lets an event count as in work until its answer has been sent.
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

/// All tasks of an event at once; of a FIFO queue one after the other. Only what the queue must bring again is reported.
async fn handle(
    runner: &JobRunner,
    queues: &Queues,
    event: SqsEvent,
    deadline: Deadline,
) -> Result<SqsBatchResponse, Error> {
    let at_once = if event.records.iter().any(is_fifo) { 1 } else { AT_ONCE };
    let stopped = &AtomicBool::new(false);
    let works = event.records.into_iter().map(async |record| {
        let outcome = match stopped.load(Ordering::Relaxed) {
            false => runner.handle(&message(&record, deadline)).await,
            true => Outcome::GivenBack(Duration::ZERO),
        };
        let Outcome::GivenBack(wait) = outcome else { return None };
        // A FIFO queue keeps its order only if everything after the first failure comes back as well.
        stopped.fetch_or(is_fifo(&record), Ordering::Relaxed);
        if deadline.settle(rest(queues, &record, wait)).await.is_err() {
            tracing::warn!("no time to say when the message comes again: after the queue's visibility timeout");
        }
        Some(record)
    });
    let given_back: Vec<Option<SqsMessage>> = stream::iter(works).buffered(at_once).collect().await;
    let mut response = SqsBatchResponse::default();
    for record in given_back.into_iter().flatten() {
        // An empty identifier would make Lambda bring the whole batch again, the finished ones too.
        let id = record.message_id.filter(|id| !id.is_empty());
        response.add_failure(id.ok_or("a record without messageId cannot be reported on its own")?);
    }
    Ok(response)
}

fn message(record: &SqsMessage, deadline: Deadline) -> Message {
    let body = record.body.clone().unwrap_or_default();
    let number = |name: &str| record.attributes.get(name)?.parse::<u64>().ok();
    let carried = |name: &str| record.message_attributes.get(name)?.string_value.clone();
    Message {
        body,
        id: record.message_id.clone(),
        carrier: CARRIED.iter().filter_map(|name| Some((name.to_string(), carried(name)?))).collect(),
        receive_count: number("ApproximateReceiveCount").and_then(|count| count.try_into().ok()).unwrap_or(1),
        deadline,
        sent_at: number("SentTimestamp").map(|ms| UNIX_EPOCH + Duration::from_millis(ms)),
    }
}

/// Lets the queue bring a message again after `wait`. Otherwise that takes the queue's whole visibility timeout, which is several
/// times the function's timeout.
async fn rest(queues: &Queues, record: &SqsMessage, wait: Duration) {
    let (Some(arn), Some(handle)) = (&record.event_source_arn, &record.receipt_handle) else { return };
    let seconds = i32::try_from(wait.as_secs()).unwrap_or(i32::MAX);
    let set = async { queues.by_arn(arn).await?.set_visibility(handle, seconds).await };
    if let Err(error) = set.await {
        tracing::warn!(error, "the message comes again only after the queue's visibility timeout");
    }
}

/// When the invocation ends. A Runtime API that tells no time, or one that has passed, sets no limit.
fn instant(deadline: SystemTime) -> Option<Instant> {
    let left = deadline.duration_since(SystemTime::now()).ok()?;
    Instant::now().checked_add(left)
}

fn is_fifo(record: &SqsMessage) -> bool {
    record.event_source_arn.as_deref().is_some_and(|arn| arn.ends_with(".fifo"))
}
