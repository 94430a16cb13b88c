//! How a task ends: painted, cancelled, refused, given back or given up. Whatever happens becomes an outcome, never an error.

use super::{Message, Outcome, Workshop};
use crate::{
    config::ErrorCodes,
    cut::{MESSAGE, cut},
    failure::{Failure, Fault, GENERATION_FAILED},
    report::{Ending, Report},
    task::{BadTask, Task},
    webhook::{Subject, WebhookError},
};
use std::time::Duration;
use tracing::{info, warn};

impl Workshop {
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
            Err(Failure::Unwanted(reason)) => {
                info!(reason, "the backend refused to hear of the picture");
                report.ending = Ending::Unwanted;
                Outcome::Consumed
            }
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

    /// Back to the queue, to be seen again after `wait`. On the last receive the backend is told.
    pub(super) async fn give_back(
        &self,
        task: &Task,
        reason: &str,
        wait: Duration,
        message: &Message,
        report: &mut Report,
    ) -> Outcome {
        report.ending = Ending::GivenBack;
        let reason = &*cut(reason, MESSAGE);
        if message.receive_count >= self.work.max_receive_count {
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

    /// Tells the backend that a task failed for good. If that cannot be told now, the queue brings the message back.
    pub(super) async fn give_up(
        &self,
        subject: &Subject,
        reason: &str,
        message: &Message,
        report: &mut Report,
    ) -> Outcome {
        let reason = &*cut(reason, MESSAGE);
        let fine = report.fault.map_or(GENERATION_FAILED, Fault::code);
        warn!(reason, code = fine, "task failed");
        let code = match self.work.error_codes {
            ErrorCodes::Single => GENERATION_FAILED,
            ErrorCodes::Fine => fine,
        };
        let telling = self.backend.failed(subject, code, reason, message.receive_count.saturating_sub(1));
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
                message.given_back()
            }
        }
    }
}
