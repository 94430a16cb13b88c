//! Harness for the demo and the end-to-end cases: the real binaries on a real broker, with SQS, S3 and the Lambda Runtime
//! API over HTTP. Everything listens on loopback only, and nothing outlives the process that started it.
//!
//! Knows nothing of the inside of `relay` and `handler`: it sees them as the outside world does.

pub mod aws;
pub mod backend;
pub mod broker;
pub mod certificates;
mod chance;
pub mod collector;
mod connection;
pub mod counting;
pub mod deletions;
mod entries;
pub mod fault;
pub mod hub;
pub mod lambda;
pub mod ledger;
pub mod line;
pub mod load;
pub mod mapping;
pub mod mishap;
pub mod paths;
pub mod ports;
pub mod process;
mod proxy;
pub mod refusing;
pub mod runtime_api;
pub mod sqs;
pub mod stack;
pub mod studio;
pub mod task;
pub mod timings;
pub mod tls;
pub mod wait;
