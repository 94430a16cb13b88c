//! What `handler schema` prints.

use clap::Subcommand;

/// Which side of the contract.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum SchemaCommand {
    /// The task, as JSON Schema (draft 2020-12).
    Task,
    /// The webhooks, as OpenAPI 3.1.
    Webhooks,
}
