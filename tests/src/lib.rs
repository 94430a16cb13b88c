//! Harness for the demo and the end-to-end cases: the real binaries on a real broker, with SQS, S3 and the Lambda Runtime
//! API over HTTP. Everything listens on loopback only, and nothing outlives the process that started it.
//!
//! It uses `relay` and `handler` only from outside, as programs.

pub mod aws;
pub mod aws_proxies;
pub mod backend;
pub mod broker;
pub mod checker;
#[cfg(feature = "otlp")]
pub mod collector;
mod connection;
pub mod fault_injection;
mod http_proxy;
pub mod hub;
pub mod lambda;
pub mod ledger;
pub mod load;
pub mod mapping;
pub mod paths;
pub mod ports;
pub mod process;
mod random;
pub mod relay;
pub mod runtime_api;
pub mod sqs;
pub mod stack;
pub mod studio;
pub mod task;
pub mod tcp_proxy;
#[cfg(feature = "credentials")]
pub mod tls;
pub mod wait;

/// An HTTP client that uses no proxy, whatever the environment says.
///
/// # Errors
/// The client cannot be built.
pub fn http_client() -> reqwest::Result<reqwest::Client> {
    service::http_client().no_proxy().build()
}
