//! The Lambda function: SQS events through the Lambda Runtime API, answered with a partial batch response.

use crate::{
    config::ServiceConfig,
    job::{Message, Outcome, Workshop},
};
use aws_lambda_events::sqs::{SqsBatchResponse, SqsEvent, SqsMessage};
use lambda_runtime::{Error, LambdaEvent, service_fn};
use std::collections::HashMap;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::RwLock,
};

/// Serves events until the process is told to stop.
///
/// # Errors
/// The model cannot be loaded, or the Runtime API is out of reach.
pub async fn serve(config: &ServiceConfig) -> anyhow::Result<()> {
    let aws = aws_config::load_from_env().await;
    let workshop = Workshop::open(config, &aws)?;
    let busy = RwLock::new(());
    let service = service_fn(|event: LambdaEvent<SqsEvent>| {
        let (workshop, busy) = (&workshop, &busy);
        async move {
            let _busy = busy.read().await;
            handle(workshop, event.payload).await
        }
    });
    let mut terminate = signal(SignalKind::terminate())?;
    let runtime = lambda_runtime::run(service);
    tokio::pin!(runtime);
    // Registers at once: standard Lambda gives the start ten seconds and then begins it again. The first event's LoRA is fetched
    // meanwhile, and only the painting waits for the model.
    let cannot_load = async {
        match workshop.ready().await {
            Ok(()) => std::future::pending().await,
            Err(error) => error,
        }
    };
    tokio::select! {
        error = cannot_load => return Err(error.into()),
        ended = &mut runtime => return ended.map_err(|error| anyhow::anyhow!("Lambda Runtime API: {error}")),
        _ = terminate.recv() => tracing::info!("terminating: the event in work is finished first"),
    }
    tokio::select! {
        ended = &mut runtime => ended.map_err(|error| anyhow::anyhow!("Lambda Runtime API: {error}")),
        _ = busy.write() => Ok(()),
    }
}

/// One task after the other. Only what the queue must bring again is reported.
async fn handle(workshop: &Workshop, event: SqsEvent) -> Result<SqsBatchResponse, Error> {
    let mut response = SqsBatchResponse::default();
    let mut ordered_stop = false;
    for record in event.records {
        if !ordered_stop && workshop.handle(&message(&record)).await == Outcome::Consumed {
            continue;
        }
        // A FIFO queue keeps its order only if everything after the first failure comes back as well.
        ordered_stop = is_fifo(&record);
        // An empty identifier would make Lambda bring the whole batch again, the finished ones too.
        let id = record.message_id.filter(|id| !id.is_empty());
        response.add_failure(id.ok_or("a record without messageId cannot be reported on its own")?);
    }
    Ok(response)
}

fn message(record: &SqsMessage) -> Message {
    Message { body: record.body.clone().unwrap_or_default(), receive_count: receive_count(&record.attributes) }
}

/// The queue's own count of receives; 1 if it is absent.
fn receive_count(attributes: &HashMap<String, String>) -> u32 {
    attributes.get("ApproximateReceiveCount").and_then(|count| count.parse().ok()).unwrap_or(1)
}

fn is_fifo(record: &SqsMessage) -> bool {
    record.event_source_arn.as_deref().is_some_and(|arn| arn.ends_with(".fifo"))
}
