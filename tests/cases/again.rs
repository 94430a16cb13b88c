//! The same task again: a picture that stands is announced, and not painted twice.

use crate::scene::{PATIENCE, Scene, case};
use anyhow::Result;
use e2e::{
    backend::{COMPLETE, Call},
    wait,
};

/// Waits until the backend has heard of a second completion.
pub(crate) async fn second_complete(scene: &Scene) -> Result<Vec<Call>> {
    let mut calls = scene.backend.follow();
    let twice = |calls: &Vec<Call>| calls.iter().filter(|call| call.path == COMPLETE).count() == 2;
    wait::at_most("second complete", PATIENCE, calls.wait_for(twice)).await??;
    Ok(scene.backend.calls())
}

#[test]
fn a_task_delivered_twice_is_painted_once_and_told_twice() {
    case(|scene| async move {
        let task = scene.task();
        let painting = scene.paint(&task).await?;
        let first = scene.etag(&task).await;
        scene.publish(&task.body()).await?;
        let calls = second_complete(&scene).await?;
        assert_eq!(calls.len(), painting.progress.len() + 2, "painted again");
        assert_eq!(calls.last().map(|call| &call.body), Some(&painting.complete.body), "told the same");
        assert!(first.is_some() && scene.etag(&task).await == first, "another picture");
        Ok(())
    });
}

#[test]
fn another_task_with_the_same_id_replaces_the_picture() {
    case(|scene| async move {
        let task = scene.task();
        let first = scene.paint(&task).await?;
        let other = task.with("seed", 43);
        scene.publish(&other.body()).await?;
        second_complete(&scene).await?;
        let second = scene.painting(&other).await?;
        assert_eq!(second.progress.len(), 2 * first.progress.len(), "not painted");
        assert!(first.picture != second.picture, "the first task's picture still stands");
        Ok(())
    });
}
