//! Where messages come from: the function of AWS Lambda, and the worker that polls SQS.

pub mod health;
pub mod lambda;
pub mod sqs;
pub mod worker;

/// What happens between the first signal and the end of the process.
const FINISHING: &str = "the tasks in work are finished";
