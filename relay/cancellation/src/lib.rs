//! How a backend cancels a task: the message `{"cancel": generation_id}`, and the marker in S3 that is made of it. The relay makes it of
//! messages of a queue of their own, the handler of those that come with the tasks, and the handler reads it.

mod marker;
mod message;

pub use marker::{DEFAULT_EXPIRY, MARKER_BYTES, MAX_EXPIRY, expiry, is_expired, key, marker};
pub use message::{Cancel, NoCancel};
