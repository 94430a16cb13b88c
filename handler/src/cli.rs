//! The command line: its options, and the commands that are no service.

pub mod bench;
pub mod doctor;
pub mod exit;
pub mod generate;
pub mod lora;
pub mod options;
