//! How a task ends: painted, cancelled, refused, given back or given up. Whatever happens becomes an outcome, never an error.

use super::{JobRunner, Message, Outcome, faults::untold};
use crate::{
    job::{failure::Failure, options::ErrorCodes},
    observe::report::{Ending, Report},
    task::{
        BadTask, Task,
        fault::{Fault, GENERATION_FAILED},
    },
    webhook::{Subject, WebhookError},
};
use std::time::{Duration, Instant};
use tokio::time::timeout;
use tracing::{info, warn};

/// Longest look for a picture before the backend hears that there is none.
const LOOK: Duration = Duration::from_secs(5);

impl JobRunner {
    /// Paints a task, and decides once what its end means for the message.
    pub(super) async fn run(&self, task: &Task, message: &Message, report: &mut Report) -> Outcome {
        match self.claim_and_paint(task, message.deadline, report).await {
            Ok(ending) => {
                report.ending = ending;
                Outcome::Consumed
            }
            Err(Failure::Cancelled(step)) => {
                info!(step, "cancelled by the backend");
                report.ending = Ending::Cancelled;
                Outcome::Consumed
            }
            Err(failure @ (Failure::Unwanted(_) | Failure::Untold(..))) => unannounced(failure, message, report),
            Err(Failure::Permanent(fault, reason)) => {
                report.fault = Some(fault);
                self.give_up(&Subject::task(task), &reason, message, report).await
            }
            Err(Failure::Transient(fault, reason)) => {
                report.fault = Some(fault);
                self.give_back(task, &reason, message.rest(), message, report).await
            }
            Err(failure @ Failure::OutOfTime(_)) => {
                report.fault = Some(Fault::Deadline);
                self.give_back(task, &failure.to_string(), Duration::ZERO, message, report).await
            }
        }
    }

    /// A message that is no task: told if anybody can be told, else left for the dead-letter queue.
    pub(super) async fn refuse(&self, bad: Box<BadTask>, message: &Message, report: &mut Report) -> Outcome {
        tracing::Span::current().record("generation_id", bad.generation_id);
        (report.generation_id, report.fault) = (bad.generation_id, Some(Fault::Task));
        let (Some(generation_id), Some(base)) = (bad.generation_id, &bad.webhook_url) else {
            warn!(error = %bad, "not a task, and no backend to tell: given back for the dead-letter queue");
            report.ending = Ending::Unreadable;
            return message.given_back();
        };
        self.give_up(&Subject::message(base.clone(), generation_id, &message.body), &bad.reason, message, report).await
    }

    /// Back to the queue, to be seen again after `wait`. On the last receive the backend is told, unless the picture stands after all.
    pub(super) async fn give_back(
        &self,
        task: &Task,
        reason: &str,
        wait: Duration,
        message: &Message,
        report: &mut Report,
    ) -> Outcome {
        report.ending = Ending::GivenBack;
        if message.receive_count >= self.work.max_receive_count {
            if self.stands_after_all(task, message).await {
                info!(reason, "the picture stands all the same");
                let telling = message.deadline.tell(self.announce(task, message.deadline));
                return match telling.await.unwrap_or_else(|late| Err(untold(late))) {
                    Ok(()) => {
                        (report.ending, report.fault) = (Ending::AnnouncedAgain, None);
                        Outcome::Consumed
                    }
                    Err(failure) => unannounced(failure, message, report),
                };
            }
            warn!(reason, "out of tries");
            // Stays in the queue's hands all the same: the dead-letter queue keeps it for a person to look at.
            self.give_up(&Subject::task(task), reason, message, report).await;
            if report.ending == Ending::Unwanted {
                return Outcome::Consumed;
            }
        } else {
            warn!(reason, "task given back to the queue");
        }
        Outcome::GivenBack(wait)
    }

    /// Whether the picture is in S3, as far as S3 says so soon. An upload whose answer was lost has stored it, or an earlier delivery
    /// that could not tell of it; and of a picture that stands nobody may say that it failed.
    async fn stands_after_all(&self, task: &Task, message: &Message) -> bool {
        let left = message.deadline.end().map(|end| end.saturating_duration_since(Instant::now()) / 2);
        let (keys, fingerprint) = (task.result_keys(), task.fingerprint());
        let looked = timeout(left.unwrap_or(LOOK).min(LOOK), self.store.has_pictures(&keys, &fingerprint)).await;
        matches!(looked, Ok(Ok(true)))
    }

    /// Tells the backend that a task failed for good. If that cannot be told now, the queue brings the message back.
    pub(super) async fn give_up(
        &self,
        subject: &Subject,
        reason: &str,
        message: &Message,
        report: &mut Report,
    ) -> Outcome {
        let fine = report.fault.map_or(GENERATION_FAILED, Fault::code);
        warn!(reason, code = fine, "task failed");
        let code = match self.work.error_codes {
            ErrorCodes::Single => GENERATION_FAILED,
            ErrorCodes::Fine => fine,
        };
        let retry_count = message.receive_count.saturating_sub(1);
        let telling = self.backend.failed(subject, code, reason, retry_count, message.deadline.end());
        let told = match message.deadline.tell(telling).await {
            Ok(told) => told,
            Err(late) => {
                warn!(reason = %late, "the failure could not be told in time: given back to the queue");
                report.ending = Ending::GivenBack;
                return Outcome::GivenBack(Duration::ZERO);
            }
        };
        match told {
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
                Outcome::GivenBack(message.rest_for(error.retry_after()))
            }
        }
    }
}

/// The picture stands, and the backend does not know: it does not want to, or the queue brings the message again. After the last
/// receive the message lies in the dead-letter queue, and the backend was told nothing wrong.
fn unannounced(failure: Failure, message: &Message, report: &mut Report) -> Outcome {
    match failure {
        Failure::Unwanted(reason) => {
            info!(reason, "the backend refused to hear of the picture");
            report.ending = Ending::Unwanted;
            Outcome::Consumed
        }
        failure => {
            let asked = if let Failure::Untold(_, asked) = &failure { *asked } else { None };
            let wait = message.rest_for(asked);
            warn!(reason = %failure, ?wait, "the picture stands, and the backend could not be told: given back to the queue");
            (report.ending, report.fault) = (Ending::GivenBack, Some(Fault::Backend));
            Outcome::GivenBack(wait)
        }
    }
}
