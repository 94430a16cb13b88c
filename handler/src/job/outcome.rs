//! What becomes of a message: whether it is consumed or given back to the queue, and what the backend hears of a failure.

use super::{
    JobRunner, Message,
    failure::{Failure, undelivered},
    options::ErrorCodes,
};
use crate::{
    observe::report::{Ending, Report},
    task::{
        Checked, InvalidTask, Task,
        fault::{GENERATION_FAILED, TaskFault},
    },
    webhook::{Subject, WebhookError},
};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tracing::{info, warn};

/// How long S3 may take to say whether the pictures are there, before the backend hears of a failure.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// What the queue does with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Deletes it: the task was painted, or failed for good and the backend knows or refused the webhook.
    Consumed,
    /// Shows it again after this time, for a retry or for the dead-letter queue.
    GivenBack(Duration),
}

impl JobRunner {
    /// Decides the outcome of a task by how its stages ended.
    pub(super) async fn conclude(
        &self,
        ended: Result<Ending, Failure>,
        task: &Task,
        message: &Message,
        report: &mut Report,
    ) -> Outcome {
        match ended {
            Ok(ending) => {
                report.ending = ending;
                Outcome::Consumed
            }
            Err(Failure::Cancelled(step)) => {
                info!(step, "cancelled by the backend");
                report.ending = Ending::Cancelled;
                Outcome::Consumed
            }
            Err(Failure::CancelledById) => self.end_cancelled(task, message, report).await,
            Err(failure @ (Failure::Unwanted(_) | Failure::Undelivered(..))) => unannounced(failure, message, report),
            Err(Failure::Permanent(fault, reason)) => {
                report.fault = Some(fault);
                self.give_up(&Subject::task(task), &reason, message, report).await
            }
            Err(Failure::Transient(fault, reason)) => {
                report.fault = Some(fault);
                self.give_back(task, &reason, message.retry_delay(), message, report).await
            }
            Err(failure @ Failure::OutOfTime(_)) => {
                report.fault = Some(TaskFault::Deadline);
                self.give_back(task, &failure.to_string(), Duration::ZERO, message, report).await
            }
        }
    }

    /// Ends a task that was cancelled by its id. If the backend wants to hear of it and cannot, the message is given back: the next delivery
    /// finds the marker, too.
    async fn end_cancelled(&self, task: &Task, message: &Message, report: &mut Report) -> Outcome {
        info!("cancelled by its id");
        report.ending = Ending::Cancelled;
        if !self.work.cancelled_webhook {
            return Outcome::Consumed;
        }
        let telling = self.backend.cancelled(task, message.deadline.end());
        let (reason, wait) = match message.deadline.notify(telling).await {
            Ok(Ok(()) | Err(WebhookError::Unwanted { .. })) => return Outcome::Consumed,
            Ok(Err(error)) => (error.to_string(), message.retry_delay_for(error.retry_after())),
            Err(late) => (late.to_string(), Duration::ZERO),
        };
        warn!(reason, ?wait, "the backend could not be told that the task is cancelled: given back to the queue");
        (report.ending, report.fault) = (Ending::GivenBack, Some(TaskFault::Backend));
        Outcome::GivenBack(wait)
    }

    /// Ends a message that is no valid task: reports it to the backend that it names. If it names none, it is left for the dead-letter
    /// queue.
    pub(super) async fn reject(&self, invalid: Box<InvalidTask>, message: &Message, report: &mut Report) -> Outcome {
        tracing::Span::current().record("generation_id", invalid.generation_id);
        (report.generation_id, report.fault) = (invalid.generation_id, Some(TaskFault::Task));
        let (Some(generation_id), Some(base)) = (invalid.generation_id, &invalid.webhook_url) else {
            warn!(error = %invalid, "not a task, and no backend to tell: given back for the dead-letter queue");
            report.ending = Ending::Unreadable;
            return Outcome::GivenBack(message.retry_delay());
        };
        let subject = Subject::message(base.clone(), generation_id, &message.body);
        self.give_up(&subject, &invalid.reason, message, report).await
    }

    /// Gives a message back, to be visible again after `delay`. On the last receive the backend is notified of the failure, unless the
    /// pictures are in S3.
    async fn give_back(
        &self,
        task: &Task,
        reason: &str,
        delay: Duration,
        message: &Message,
        report: &mut Report,
    ) -> Outcome {
        report.ending = Ending::GivenBack;
        if message.receive_count >= self.work.max_receive_count {
            if let Some(checked) = self.standing_pictures(task, message).await {
                report.checked = checked;
                info!(reason, "the picture stands all the same");
                let announcing = message.deadline.notify(self.announce(task, report, message.deadline));
                return match announcing.await.unwrap_or_else(|late| Err(undelivered(late))) {
                    Ok(()) => {
                        (report.ending, report.fault) = (Ending::AnnouncedAgain, None);
                        Outcome::Consumed
                    }
                    Err(failure) => unannounced(failure, message, report),
                };
            }
            warn!(reason, "out of tries");
            // Given back although the backend knows: the dead-letter queue keeps the message for a person.
            self.give_up(&Subject::task(task), reason, message, report).await;
            if report.ending == Ending::Unwanted {
                return Outcome::Consumed;
            }
        } else {
            warn!(reason, "task given back to the queue");
        }
        Outcome::GivenBack(delay)
    }

    /// The check of the pictures, if they are in S3 and may stand; none if S3 does not answer soon. The answer to an upload may have been lost, or an earlier
    /// delivery stored them and could not notify the backend. Pictures that exist must never be reported as failed.
    async fn standing_pictures(&self, task: &Task, message: &Message) -> Option<Vec<Checked>> {
        let left = message.deadline.end().map(|end| end.saturating_duration_since(Instant::now()) / 2);
        let limit = left.unwrap_or(LOOKUP_TIMEOUT).min(LOOKUP_TIMEOUT);
        let (keys, fingerprint) = (self.store.result_keys(task), task.fingerprint());
        let checked = timeout(limit, self.store.stored_pictures(&keys, &fingerprint)).await.ok()?.ok()??;
        // Without a model the mode may be unknown; then nothing speaks against them.
        let mode = self.safety.or_else(|| self.loader.safety_now()).unwrap_or_default();
        Checked::all_stand(&checked, mode).then_some(checked)
    }

    /// Sends `failed` to the backend. If it cannot be delivered, the message is given back.
    async fn give_up(&self, subject: &Subject, reason: &str, message: &Message, report: &mut Report) -> Outcome {
        let fine = report.fault.map_or(GENERATION_FAILED, TaskFault::code);
        warn!(reason, code = fine, "task failed");
        let code = match self.work.error_codes {
            ErrorCodes::Single => GENERATION_FAILED,
            ErrorCodes::Fine => fine,
        };
        let retry_count = message.receive_count.saturating_sub(1);
        let notifying = self.backend.failed(subject, code, reason, retry_count, message.deadline.end());
        let notified = match message.deadline.notify(notifying).await {
            Ok(notified) => notified,
            Err(late) => {
                warn!(reason = %late, "the failure could not be told in time: given back to the queue");
                report.ending = Ending::GivenBack;
                return Outcome::GivenBack(Duration::ZERO);
            }
        };
        match notified {
            Ok(()) => {
                report.ending = Ending::Failed;
                Outcome::Consumed
            }
            Err(error @ WebhookError::Unwanted { .. }) => {
                info!(%error, "the backend refused to hear of the failure");
                report.ending = Ending::Unwanted;
                Outcome::Consumed
            }
            Err(error) => {
                warn!(%error, "the failure could not be told: given back to the queue");
                report.ending = Ending::GivenBack;
                Outcome::GivenBack(message.retry_delay_for(error.retry_after()))
            }
        }
    }
}

/// The pictures are in S3, and the backend did not take `complete`. If it refused, the message is consumed; else it is given back. After
/// the last receive the message goes to the dead-letter queue, and the backend has heard nothing wrong.
fn unannounced(failure: Failure, message: &Message, report: &mut Report) -> Outcome {
    match failure {
        Failure::Unwanted(reason) => {
            info!(reason, "the backend refused to hear of the picture");
            report.ending = Ending::Unwanted;
            Outcome::Consumed
        }
        failure => {
            let asked = if let Failure::Undelivered(_, asked) = &failure { *asked } else { None };
            let wait = message.retry_delay_for(asked);
            warn!(reason = %failure, ?wait, "the picture stands, and the backend could not be told: given back to the queue");
            (report.ending, report.fault) = (Ending::GivenBack, Some(TaskFault::Backend));
            Outcome::GivenBack(wait)
        }
    }
}
