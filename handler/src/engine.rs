//! The model: loaded once, owned by one thread that paints a batch at a time.

pub mod options;
pub mod painter;
pub mod startup;
pub mod studio;
