//! How messages come in and go back: the function of AWS Lambda, and the worker that polls SQS.

pub mod health;
pub mod lambda;
pub mod options;
pub mod signals;
pub mod sqs;
pub mod worker;
