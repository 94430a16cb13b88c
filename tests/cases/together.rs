//! Several tasks in work at a time: those that wait for the GPU and go together are one batch, each with its own picture.

use crate::{
    scene::{PATIENCE, case},
    worker::{VISIBILITY, worker},
};
use e2e::{
    backend::PROGRESS,
    collector::{Collector, Span},
};
use serde_json::Value;

#[test]
fn tasks_that_wait_together_are_painted_together() {
    case(|scene| async move {
        let aws = &scene.stack.aws;
        let queue = aws.queue("together", VISIBILITY, 3).await?;
        let collector = Collector::start().await?;
        let endpoint = collector.url();
        let options =
            [("EASEL_CONCURRENCY", "4"), ("EASEL_BATCH", "3"), ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
        let worker = worker(&scene, "together", &queue, &options)?;
        // Keeps the painter busy while the others gather.
        let first = scene.task().with("num_inference_steps", 50);
        aws.send(&queue.url, &first.body()).await?;
        scene.backend.call("first progress", PATIENCE, |call| call.path == PROGRESS).await?;
        let others = [1, 2, 3].map(|seed| scene.task().with("seed", seed));
        for task in &others {
            aws.send(&queue.url, &task.body()).await?;
        }
        let mut files = vec![scene.painting(&first).await?.file];
        for task in &others {
            let painting = scene.painting(task).await?;
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
        // Each of them has the stages that it shared in its own trace.
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
