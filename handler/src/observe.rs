//! What operators see: a log line for each task, metrics and traces.

pub mod metrics;
pub mod report;
pub mod trace;

pub use metrics::CacheMetrics;
