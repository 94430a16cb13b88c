//! The studio: a page on loopback that publishes tasks to the real RabbitMQ, shows where each of them is from what was seen there,
//! keeps the pictures, and breaks parts on purpose. Refuses to show anything that was not seen.

pub mod about;
pub mod book;
pub mod faults;
pub mod gate;
mod guard;
pub mod hands;
pub mod ledger;
pub mod order;
pub mod record;
pub mod server;
pub mod shelf;
pub mod stage;
pub mod watch;

pub use book::Book;
pub use order::Style;
pub use server::{Studio, open};
pub use shelf::Shelf;
pub use stage::Stage;
