//! Where a webhook may go. The token travels with every webhook and a message chooses the address, so the address is checked:
//! by name before anything is sent, and by what the name resolves to on every connection.
//!
//! Refuses whatever it does not know to be public, unless the operator listed the host.

mod address;
mod guard;
mod hosts;

pub use guard::{Guard, Refused};
pub use hosts::HostPattern;

#[cfg(test)]
mod tests;
