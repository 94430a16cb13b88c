//! The gate between a task that is well-formed and one that is worked on: whether we may go where it sends us.
//!
//! Refuses by BadTask, as if the field were malformed. A webhook address that is refused is taken out of it, so that nothing
//! is told there.

use crate::{
    config::SafetyConfig,
    network::Guard,
    task::{BadTask, Task},
};

/// What tasks may reach.
#[derive(Clone)]
pub struct Gate {
    guard: Guard,
}

impl Gate {
    /// The gate that was asked for.
    pub fn new(config: &SafetyConfig) -> Self {
        Self { guard: Guard::new(config) }
    }

    /// The guard of the webhooks.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Lets a task through, or says what is wrong with it.
    ///
    /// # Errors
    /// The task was bad already, or may not reach what it names.
    pub async fn admit(&self, parsed: Result<Task, Box<BadTask>>) -> Result<Task, Box<BadTask>> {
        match parsed {
            Ok(task) => match self.guard.check_ahead(&task.webhook_url).await {
                Ok(()) => Ok(task),
                Err(refused) => Err(Box::new(BadTask {
                    reason: refused.to_string(),
                    generation_id: Some(task.generation_id),
                    webhook_url: None,
                })),
            },
            Err(mut bad) => {
                if let Some(url) = &bad.webhook_url
                    && let Err(refused) = self.guard.check_ahead(url).await
                {
                    bad.reason = format!("{}; {refused}", bad.reason);
                    bad.webhook_url = None;
                }
                Err(bad)
            }
        }
    }
}
