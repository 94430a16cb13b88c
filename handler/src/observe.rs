//! What operators see: a line for each task, metrics, traces, and errors in one line.

pub mod metrics;
pub mod report;
mod tally;
pub mod trace;

pub use tally::Tally;
