//! Why a task was not painted, by what is to be done about it.

use crate::task::fault::Fault;
use std::time::Duration;

/// A failure after parsing, by what is to be done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The task is at fault. Tell the backend, consume the message.
    #[error("{1}")]
    Permanent(Fault, String),
    /// Something else is at fault. Give the message back.
    #[error("{1}")]
    Transient(Fault, String),
    /// The backend wants the picture no more. Consume the message, tell nobody.
    #[error("cancelled by the backend at step {0}")]
    Cancelled(usize),
    /// The backend does not want to hear of the picture that stands. Consume the message, tell nobody.
    #[error("{0}")]
    Unwanted(String),
    /// The picture stands, and the backend could not be told, nor does it refuse to be. Give the message back, for as long as the
    /// backend asks for, if it does; never tell that the task failed.
    #[error("{0}")]
    Untold(String, Option<Duration>),
    /// What is left of the invocation does not suffice. Give the message back at once.
    #[error("{0}")]
    OutOfTime(String),
}
