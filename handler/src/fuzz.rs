//! What must hold for any bytes that come in from outside: bodies of messages, LoRA files, addresses of webhooks.
//!
//! Each function takes bytes, panics if something is wrong with what the parsers make of them, and says whether they were
//! accepted. The targets of cargo-fuzz in `handler/fuzz` run them, and so do the tests, over the same seeds. Refuses to be
//! part of an ordinary build.

mod lora;
mod task;
mod webhook;

pub use lora::lora;
pub use task::task;
pub use webhook::webhook;

#[cfg(test)]
mod tests;
