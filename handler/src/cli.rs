//! The command line, and the commands that are no service.

pub mod bench;
pub mod doctor;
pub mod generate;
pub mod lora;
pub mod manual;
pub mod options;
pub mod picture_size;
