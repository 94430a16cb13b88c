//! Two deliveries of one task at the same time: one painting, told twice.

use crate::{
    scene::{PATIENCE, case},
    worker::{VISIBILITY, worker},
};
use e2e::{
    backend::{COMPLETE, PROGRESS},
    wait,
};

#[test]
fn two_deliveries_at_once_paint_once() {
    case(|scene| async move {
        let aws = &scene.stack.aws;
        let queue = aws.queue("claim", VISIBILITY, 3).await?;
        let _workers = [worker(&scene, "claim-1", &queue, &[])?, worker(&scene, "claim-2", &queue, &[])?];
        let task = scene.task().with("num_inference_steps", 10);
        for _ in 0..2 {
            aws.send(&queue.url, &task.body()).await?;
        }
        let mut calls = scene.backend.follow();
        let twice = calls.wait_for(|calls| calls.iter().filter(|call| call.path == COMPLETE).count() == 2);
        wait::at_most("both are told", PATIENCE, twice).await??;
        let calls = scene.backend.calls_of(task.id());
        assert_eq!(calls.iter().filter(|call| call.path == PROGRESS).count(), 5, "painted more than once");
        assert!(calls.iter().all(|call| call.path == COMPLETE || call.path == PROGRESS), "{calls:?}");
        aws.has_depth(&queue.url, (0, 0), PATIENCE).await?;
        Ok(())
    });
}
