//! What the relay and the handler have in common as long-running processes: signals, the health endpoint, HTTP clients,
//! and errors in one line.

mod causes;
mod health;
mod http;
mod signals;

pub use causes::{causes, chain};
pub use health::{Health, Status};
pub use http::{http_client, retry_after};
pub use signals::{Asked, on_signal};
