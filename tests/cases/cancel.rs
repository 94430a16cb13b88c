//! The backend wants a picture no more, and says so where it hears of its progress or its end.

use crate::scene::{PATIENCE, Scene, case};
use anyhow::{Context, Result};
use e2e::{
    backend::{COMPLETE, FAILED, PROGRESS},
    task::Task,
};
use serde_json::Value;

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

#[test]
fn an_answer_of_409_to_complete_is_the_last_word() {
    case(|scene| async move {
        let task = scene.task();
        scene.backend.refuse(COMPLETE, 409, usize::MAX);
        scene.publish(&task.body()).await?;
        let record = scene.stack.line.mapping.handled(&task.body(), 1, PATIENCE).await?;
        assert!(record.deleted, "it would come again: {record:?}");
        assert_eq!(ends(&scene), [(COMPLETE.to_string(), 409)], "told again");
        assert!(scene.etag(&task).await.is_some(), "the picture is gone");
        assert_eq!(ending(&scene, &task)?, "refused-by-backend");
        Ok(())
    });
}

#[test]
fn an_answer_of_410_to_failed_is_the_last_word() {
    case(|scene| async move {
        let task = scene.task().with("num_images", 5);
        scene.backend.refuse(FAILED, 410, usize::MAX);
        scene.publish(&task.body()).await?;
        let record = scene.stack.line.mapping.handled(&task.body(), 1, PATIENCE).await?;
        assert!(record.deleted, "it would come again: {record:?}");
        assert_eq!(ends(&scene), [(FAILED.to_string(), 410)], "told again");
        assert_eq!(ending(&scene, &task)?, "refused-by-backend");
        Ok(())
    });
}

/// What was told of ends, refused or not.
fn ends(scene: &Scene) -> Vec<(String, u16)> {
    let calls = scene.backend.calls();
    let told = calls.iter().filter(|call| [COMPLETE, FAILED].contains(&call.path.as_str()));
    told.map(|call| (call.path.to_string(), call.status)).collect()
}

/// How the function's log says that a task ended.
fn ending(scene: &Scene, task: &Task) -> Result<String> {
    let log = scene.stack.function.process().log_text();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ended = |line: &Value| line["message"] == "task ended" && line["span"]["generation_id"] == task.id();
    let line = lines.into_iter().find(ended).context("no line says that it ended")?;
    Ok(line["ending"].as_str().unwrap_or_default().to_string())
}
