//! The page's fault switches, and the function that is started again after it was killed. Easel must lose no task by any of them.

use super::{
    aws_proxy::AwsProxy,
    record::{FunctionState, Mark, Station},
    tasks::TaskStore,
};
use crate::{
    aws::{Aws, Queue},
    backend::{Backend, CANCELLED, COMPLETE, FAILED, PROGRESS},
    lambda::Function,
    mapping::Invoke,
    paths::RunDir,
    sqs::SqsFault,
};
use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;
use std::{
    convert::Infallible,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::watch;

/// The visibility timeout of what a function held that was killed, in seconds.
const COMES_AGAIN: i32 = 10;
/// The status of a backend that is down for a while.
pub(super) const UNAVAILABLE: u16 = 503;

/// A fault switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultSwitch {
    /// SIGKILL to the function. It is started again.
    KillFunction,
    /// The backend refuses webhooks.
    DropWebhooks,
    /// SQS throttles send requests.
    ThrottleQueue,
}

/// The fault switches.
#[derive(Debug)]
pub struct FaultSwitches {
    /// The function.
    pub function: Arc<RestartingFunction>,
    /// The backend.
    pub backend: Arc<Backend>,
    /// The proxy to SQS.
    pub aws_proxy: Arc<AwsProxy>,
    /// Gets the status of the faults.
    pub tasks: Arc<TaskStore>,
}

impl FaultSwitches {
    /// Switches a fault on or off.
    pub async fn set(&self, fault: FaultSwitch, on: bool) {
        match fault {
            FaultSwitch::KillFunction => self.function.kill().await,
            FaultSwitch::DropWebhooks => {
                self.backend.accept_all();
                if on {
                    for path in [PROGRESS, COMPLETE, FAILED, CANCELLED] {
                        self.backend.refuse(path, UNAVAILABLE, usize::MAX);
                    }
                }
                self.tasks.set_status(|status| status.drops_webhooks = on);
            }
            FaultSwitch::ThrottleQueue => {
                self.aws_proxy.set_fault(on.then(SqsFault::throttle));
                self.tasks.set_status(|status| status.throttles_queue = on);
            }
        }
    }
}

/// A function that is started again when it has died, as Lambda replaces a dead execution environment. Events are not retried here;
/// the queue does that.
#[derive(Debug)]
pub struct RestartingFunction {
    current: watch::Sender<Option<Arc<Function>>>,
    doing: Mutex<Doing>,
    aws: Arc<Aws>,
    queue: Queue,
    tasks: Arc<TaskStore>,
}

/// What the running function has got.
#[derive(Debug, Default)]
struct Doing {
    tasks: Vec<i64>,
    answered: u64,
}

impl RestartingFunction {
    /// No function is running yet. Its messages come from this queue.
    pub fn new(tasks: Arc<TaskStore>, aws: Arc<Aws>, queue: Queue) -> Self {
        Self { current: watch::channel(None).0, doing: Mutex::default(), aws, queue, tasks }
    }

    /// Runs one function after the other. Ends only if one does not come up.
    ///
    /// # Errors
    /// The function does not come up.
    pub async fn run(&self, dir: &RunDir, env: &[(&'static str, String)]) -> Result<Infallible> {
        loop {
            let function = Arc::new(Function::start(dir, "function", env).await?);
            *self.doing() = Doing::default();
            self.current.send_replace(Some(function.clone()));
            self.tasks.set_status(|status| status.function_ready = true);
            tokio::select! {
                _ = function.process().exited() => {}
                _ = function.api().exited() => {}
            }
            self.current.send_replace(None);
            self.tasks.set_status(|status| status.function_ready = false);
        }
    }

    /// Waits for a running function.
    ///
    /// # Errors
    /// None in practice.
    pub async fn ready(&self) -> Result<Arc<Function>> {
        let mut current = self.current.subscribe();
        let function = current.wait_for(Option::is_some).await.context("no function runs")?;
        function.clone().context("no function runs")
    }

    /// What it is doing.
    pub fn state(&self) -> FunctionState {
        let Some(function) = self.current.borrow().clone() else { return FunctionState::default() };
        let doing = self.doing();
        FunctionState {
            pid: Some(function.process().id()),
            tasks: doing.tasks.clone(),
            answered: doing.answered,
            memory_mib: function.process().memory_kib("VmRSS").ok().map(|kib| kib / 1024),
        }
    }

    /// Makes the messages of an event whose function was killed come again while somebody watches. AWS does not: there they come when
    /// the queue's visibility timeout is over.
    async fn shorten(&self, event: &Value) {
        let records = event["Records"].as_array().into_iter().flatten();
        for handle in records.filter_map(|one| one["receiptHandle"].as_str()) {
            let change = self.aws.sqs.change_message_visibility().queue_url(&self.queue.url);
            if let Err(error) = change.receipt_handle(handle).visibility_timeout(COMES_AGAIN).send().await {
                let trouble =
                    format!("a task of the killed function comes again only after the queue's timeout: {error}");
                self.tasks.set_status(|status| status.trouble = Some(trouble));
            }
        }
    }

    fn doing(&self) -> MutexGuard<'_, Doing> {
        self.doing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// SIGKILL to the running function.
    pub async fn kill(&self) {
        let current = self.current.borrow().clone();
        if let Some(function) = current {
            self.tasks.set_status(|status| status.kills += 1);
            function.process().kill().await;
        }
    }
}

impl Invoke for RestartingFunction {
    async fn invoke(&self, event: &Value) -> Result<Value> {
        let tasks: Vec<_> = event["Records"].as_array().into_iter().flatten().filter_map(received).collect();
        let function = self.ready().await?;
        self.doing().tasks = tasks.iter().map(|(id, _)| *id).collect();
        for (id, count) in &tasks {
            self.tasks.change(*id, |record, at_ms| {
                record.receives = *count;
                let what = format!("the function has it, receive {count}");
                record.marks.push(Mark { station: Station::Function, at_ms, what, good: true });
            });
        }
        let answer = function.invoke(event).await;
        if answer.is_err() {
            self.shorten(event).await;
        }
        {
            let mut doing = self.doing();
            doing.tasks.clear();
            doing.answered += u64::from(answer.is_ok());
        }
        for (id, _) in &tasks {
            if answer.is_err() {
                self.tasks.mark(*id, Station::Function, false, "the function died with it; the queue brings it again");
                continue;
            }
            let stages = function.stages(Some(*id));
            self.tasks.change(*id, |record, _| record.stages = stages);
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
