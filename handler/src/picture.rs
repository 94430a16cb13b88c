//! From signed pixels to the file that an artist gets. Paints nothing, and changes no pixel but by the format's own loss.

mod encode;

pub use encode::{EncodeError, encode};
