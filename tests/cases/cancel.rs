//! The backend wants a picture no more, and says so where it hears of its progress.

use crate::scene::{PATIENCE, case};
use e2e::backend::PROGRESS;

#[test]
fn an_answer_of_410_to_progress_ends_the_painting_without_a_word() {
    case(|scene| async move {
        // So many that the first answer comes long before the second milestone.
        let task = scene.task().with("num_inference_steps", 150);
        scene.backend.refuse(PROGRESS, 410, usize::MAX);
        scene.publish(&task.body()).await?;
        let record = scene.stack.line.mapping.handled(&task.body(), 1, PATIENCE).await?;
        assert!(record.deleted, "it would come again: {record:?}");
        let calls = scene.backend.calls();
        assert_eq!(calls.len(), 1, "told on: {calls:?}");
        assert_eq!(scene.etag(&task).await, None, "it was painted to its end");
        Ok(())
    });
}
