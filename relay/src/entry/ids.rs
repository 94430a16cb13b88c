//! The ids that SQS takes with a message.
//!
//! Refuses a FIFO message without both of them: it cannot be built.

/// The ids that a queue takes with a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ids {
    /// For a standard queue. A group is fair to others there and orders nothing.
    Standard {
        /// The group id.
        group: Option<String>,
    },
    /// For a FIFO queue, which asks for both.
    Fifo {
        /// The group id: messages of one group keep their order.
        group: String,
        /// The deduplication id.
        deduplication: String,
    },
}
