//! Easel's handler: takes a generation task, paints it with the artist's LoRA, signs the picture, stores it and tells the
//! backend how it goes.
//!
//! The modules follow the life of a task: [`task`] (the contract) -> [`job`] (one task from start to end) -> [`lora`] ->
//! [`pipeline`] -> [`signature`] -> [`picture`] (the file) -> [`store`] -> [`webhook`]. Around them: [`runtime`] (Lambda), [`worker`] (polls SQS) and
//! [`generate`] (the shell) bring tasks in; [`cache`] keeps LoRAs on the volume; [`weights`] fills it with a model; [`startup`] loads that; [`painter`]
//! paints one batch after the other; [`payload`] finds those that were too large for the queue; [`mod@bench`] measures; [`studio`] owns the model;
//! [`report`], [`metrics`] and [`trace`] tell of tasks; [`doctor`] looks whether all of it could work; [`stop`] and [`exit`] say when and how processes end; [`gpu`] is CUDA without Stable Diffusion; [`config`] is the only reader of the environment.

pub mod bench;
pub mod buckets;
pub mod cache;
pub mod causes;
pub mod claim;
pub mod config;
pub mod doctor;
pub mod exit;
pub mod failure;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod gate;
pub mod generate;
pub mod health;
pub mod job;
pub mod lora;
pub mod metrics;
pub mod network;
pub mod pace;
pub mod painter;
pub mod payload;
pub mod picture;
pub mod progress;
pub mod queue;
pub mod report;
pub mod runtime;
pub mod secret;
pub mod secrets;
pub mod signature;
pub mod startup;
pub mod stop;
pub mod store;
pub mod studio;
pub mod task;
pub mod trace;
pub mod webhook;
pub mod weights;
pub mod worker;
