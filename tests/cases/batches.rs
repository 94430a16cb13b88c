//! Several messages in one invocation, and several tasks that are painted together.

use crate::{
    context::{PATIENCE, case},
    worker::{SHORT_VISIBILITY, worker},
};
use e2e::{
    backend::{COMPLETE, FAILED, PROGRESS},
    collector::{Collector, Span},
    mapping::Mapping,
    wait,
};
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn only_the_broken_message_of_a_batch_is_reported() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        // The test ends before a second receive.
        let queue = aws.queue("batch", Duration::from_secs(600), 2).await?;
        let (good, refused) = (ctx.task(), ctx.task().with("seed", "none"));
        let bodies = ["{broken".to_string(), good.body(), refused.body()];
        let mut ids = Vec::new();
        for body in &bodies {
            ids.push(aws.send(&queue.url, body).await?);
        }
        let mapping = Mapping::start(aws.clone(), queue.clone(), ctx.stack.function.clone(), 10);
        let mut batches = mapping.follow();
        wait::at_most("batch", PATIENCE, batches.wait_for(|batches| !batches.is_empty())).await??;
        let batch = batches.borrow()[0].clone();
        assert_eq!(batch.records.len(), 3, "not one batch: {batch:?}");
        assert_eq!(batch.answer, Ok(json!({ "batchItemFailures": [{ "itemIdentifier": ids[0] }] })));
        for record in &batch.records {
            assert_eq!(record.deleted, record.message_id != ids[0], "{record:?}");
        }
        assert_eq!(aws.depth(&queue.url).await?, (0, 1), "only the broken one is still there");
        assert_eq!(ctx.backend.end_of(good.id(), PATIENCE).await?.path, COMPLETE);
        assert_eq!(ctx.backend.end_of(refused.id(), PATIENCE).await?.path, FAILED);
        let painting = ctx.painting(&good).await?;
        assert_eq!(painting.progress.len(), 3, "0, then 50 and 100 percent of two steps");
        Ok(())
    });
}

#[test]
fn tasks_that_wait_together_are_painted_together() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        let queue = aws.queue("together", SHORT_VISIBILITY, 3).await?;
        let collector = Collector::start().await?;
        let endpoint = collector.url();
        let options =
            [("EASEL_CONCURRENCY", "4"), ("EASEL_BATCH", "3"), ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
        let worker = worker(&ctx, "together", &queue, &options)?;
        // Keeps the batcher busy while the others gather.
        let first = ctx.task().with("num_inference_steps", 50);
        aws.send(&queue.url, &first.body()).await?;
        ctx.backend.call("first progress", PATIENCE, |call| call.path == PROGRESS).await?;
        let others = [1, 2, 3].map(|seed| ctx.task().with("seed", seed));
        for task in &others {
            aws.send(&queue.url, &task.body()).await?;
        }
        let mut files = vec![ctx.painting(&first).await?.file];
        for task in &others {
            let painting = ctx.painting(task).await?;
            assert_eq!(painting.progress.len(), 3, "two steps are three milestones");
            files.push(painting.file);
        }
        aws.has_depth(&queue.url, (0, 0), PATIENCE).await?;
        assert!(worker.terminate(PATIENCE).await?.success(), "{}", worker.log_text());
        files.sort();
        files.dedup();
        assert_eq!(files.len(), 4, "a task has another one's picture");
        let lines = worker.log_text();
        let lines = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let batches: Vec<u64> = lines.filter_map(|line| line["tasks"].as_u64()).collect();
        assert_eq!(batches, [3]);
        // Each trace has the shared stages, too.
        let spans = collector.spans();
        let tasks: Vec<_> = spans.iter().filter(|span| span.name == "task").collect();
        assert_eq!(tasks.len(), 4);
        for task in tasks {
            for stage in ["wait", "lora", "denoise", "decode", "sign"] {
                let own = |span: &&Span| span.name == stage && span.parent == task.id && span.trace_id == task.trace_id;
                assert_eq!(spans.iter().filter(own).count(), 1, "{stage}");
            }
        }
        Ok(())
    });
}
