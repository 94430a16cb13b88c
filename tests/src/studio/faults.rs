//! The switches that break things, and what they have broken. Refuses to lose anything: each fault is one that Easel promises to
//! outlive.

use super::{book::Book, gate::Gate, hands::Hands};
use crate::{
    backend::{Backend, COMPLETE, FAILED, PROGRESS},
    sqs::Trouble,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a backend answers that is down for a while.
pub(super) const UNAVAILABLE: u16 = 503;

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// SIGKILL to the function. It is started again.
    KillFunction,
    /// The backend takes no webhooks.
    DropWebhooks,
    /// SQS takes no messages.
    ThrottleQueue,
}

/// What is broken now, and what was broken so far.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    /// Whether the function can take work.
    pub function_ready: bool,
    /// How often it was killed.
    pub kills: u64,
    /// Whether webhooks are not taken now.
    pub drops_webhooks: bool,
    /// Webhooks that were not taken.
    pub webhooks_dropped: u64,
    /// Whether SQS takes nothing now.
    pub throttles_queue: bool,
    /// Requests to send that SQS did not take.
    pub sends_refused: u64,
    /// What is wrong with the page's own affairs.
    pub trouble: Option<String>,
}

/// The switches.
#[derive(Debug)]
pub struct Faults {
    /// The function.
    pub hands: Arc<Hands>,
    /// The backend.
    pub backend: Arc<Backend>,
    /// The way to SQS.
    pub gate: Arc<Gate>,
    /// Where it is told.
    pub book: Arc<Book>,
}

impl Faults {
    /// Injects a fault, or lifts it.
    pub async fn set(&self, fault: Fault, on: bool) {
        match fault {
            Fault::KillFunction => self.hands.kill().await,
            Fault::DropWebhooks => {
                self.backend.take();
                if on {
                    for path in [PROGRESS, COMPLETE, FAILED] {
                        self.backend.refuse(path, UNAVAILABLE, usize::MAX);
                    }
                }
                self.book.set_status(|status| status.drops_webhooks = on);
            }
            Fault::ThrottleQueue => {
                self.gate.set_trouble(on.then(Trouble::throttle));
                self.book.set_status(|status| status.throttles_queue = on);
            }
        }
    }
}
