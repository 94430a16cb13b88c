//! Where messages come from: the function of AWS Lambda, and the worker that polls SQS.

pub mod health;
pub mod lambda;
pub mod signals;
pub mod sqs;
pub mod worker;
