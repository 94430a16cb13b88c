//! The function, which can be killed and comes back: what Lambda does with an execution environment that has died. Refuses to try
//! an event again; that is the queue's business.

use super::{
    book::Book,
    record::{Mark, Station},
};
use crate::{lambda::Function, mapping::Invoke, paths::RunDir, timings};
use anyhow::{Context, Result};
use serde_json::Value;
use std::{convert::Infallible, sync::Arc};
use tokio::sync::watch;

/// One function after the other.
#[derive(Debug)]
pub struct Hands {
    current: watch::Sender<Option<Arc<Function>>>,
    book: Arc<Book>,
}

impl Hands {
    /// Nobody works yet.
    pub fn new(book: Arc<Book>) -> Self {
        Self { current: watch::channel(None).0, book }
    }

    /// Has a function work, and another when that has died. Ends only if none comes up.
    ///
    /// # Errors
    /// The function does not come up.
    pub async fn work(&self, run: &RunDir, env: &[(&'static str, String)]) -> Result<Infallible> {
        loop {
            let function = Arc::new(Function::start(run, "function", env).await?);
            self.current.send_replace(Some(function.clone()));
            self.book.set_status(|status| status.function_ready = true);
            tokio::select! {
                _ = function.process().exited() => {}
                _ = function.api().exited() => {}
            }
            self.current.send_replace(None);
            self.book.set_status(|status| status.function_ready = false);
        }
    }

    /// Waits until somebody works.
    ///
    /// # Errors
    /// Never in fact.
    pub async fn ready(&self) -> Result<Arc<Function>> {
        let mut current = self.current.subscribe();
        let function = current.wait_for(Option::is_some).await.context("nobody works")?;
        function.clone().context("nobody works")
    }

    /// SIGKILL to whoever works now.
    pub async fn kill(&self) {
        let current = self.current.borrow().clone();
        if let Some(function) = current {
            self.book.set_status(|status| status.kills += 1);
            function.process().kill().await;
        }
    }
}

impl Invoke for Hands {
    async fn invoke(&self, event: &Value) -> Result<Value> {
        let tasks: Vec<_> = event["Records"].as_array().into_iter().flatten().filter_map(received).collect();
        let function = self.ready().await?;
        for (id, count) in &tasks {
            self.book.change(*id, |record, at_ms| {
                record.receives = *count;
                let what = format!("the function has it, receive {count}");
                record.marks.push(Mark { station: Station::Function, at_ms, what, good: true });
            });
        }
        let answer = function.invoke(event).await;
        for (id, _) in &tasks {
            if answer.is_err() {
                self.book.mark(*id, Station::Function, false, "the function died with it; the queue brings it again");
                continue;
            }
            let stages = timings::stages(&function.process().log_text(), Some(*id));
            self.book.change(*id, |record, _| record.stages = stages);
        }
        answer
    }
}

/// Generation and receive count of a record of an event.
fn received(record: &Value) -> Option<(i64, u32)> {
    let body: Value = serde_json::from_str(record["body"].as_str()?).ok()?;
    let count = record["attributes"]["ApproximateReceiveCount"].as_str()?.parse().ok()?;
    Some((body["generation_id"].as_i64()?, count))
}
