//! Several messages in one invocation: one bad task never touches its neighbours.

use crate::scene::{PATIENCE, case};
use e2e::{
    backend::{COMPLETE, FAILED},
    mapping::Mapping,
    wait,
};
use serde_json::json;
use std::time::Duration;

#[test]
fn only_the_broken_message_of_a_batch_is_reported() {
    case(|scene| async move {
        let aws = &scene.stack.aws;
        // Two receives, far apart: the test ends before the second.
        let queue = aws.queue("batch", Duration::from_secs(600), 2).await?;
        let (good, refused) = (scene.task(), scene.task().with("seed", "none"));
        let bodies = ["{broken".to_string(), good.body(), refused.body()];
        let mut ids = Vec::new();
        for body in &bodies {
            ids.push(aws.send(&queue.url, body).await?);
        }
        let mapping = Mapping::start(aws.clone(), queue.clone(), scene.stack.function.clone(), 10);
        let mut batches = mapping.follow();
        wait::at_most("batch", PATIENCE, batches.wait_for(|batches| !batches.is_empty())).await??;
        let batch = batches.borrow()[0].clone();
        assert_eq!(batch.records.len(), 3, "not one batch: {batch:?}");
        assert_eq!(batch.answer, Ok(json!({ "batchItemFailures": [{ "itemIdentifier": ids[0] }] })));
        for record in &batch.records {
            assert_eq!(record.deleted, record.message_id != ids[0], "{record:?}");
        }
        assert_eq!(aws.depth(&queue.url).await?, (0, 1), "only the broken one is still there");
        assert_eq!(scene.backend.end_of(good.id(), PATIENCE).await?.path, COMPLETE);
        assert_eq!(scene.backend.end_of(refused.id(), PATIENCE).await?.path, FAILED);
        let painting = scene.painting(&good).await?;
        assert_eq!(painting.progress.len(), 3, "0, then 50 and 100 percent of two steps");
        Ok(())
    });
}
