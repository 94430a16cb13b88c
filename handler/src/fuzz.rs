//! What must hold for any input from outside: bodies of messages, LoRA files, pictures to begin from, addresses of webhooks.
//!
//! Each function gives bytes to a parser, panics if a property is broken, and returns whether the bytes were accepted. The targets of
//! cargo-fuzz in `handler/fuzz` run them, and so do the tests, with the same seeds. Not part of an ordinary build.

mod image;
mod lora;
mod task;
mod webhook;

pub use image::image;
pub use lora::lora;
pub use task::task;
pub use webhook::webhook;

#[cfg(test)]
mod tests;
