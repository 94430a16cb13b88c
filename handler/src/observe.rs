//! What operators see: a log line for each task, metrics, traces, and errors with their causes.

pub mod causes;
pub mod metrics;
pub mod report;
pub mod trace;

pub use metrics::CacheMetrics;
