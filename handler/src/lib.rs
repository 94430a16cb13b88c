//! Easel's handler: takes a generation task, paints it with the artist's LoRA, signs the picture, stores it and tells the
//! backend how it goes.
//!
//! Eight rooms. A task comes in by [`entry`], is read by [`task`], goes through [`job`], which asks [`engine`] to paint,
//! [`picture`] to make the file, [`storage`] to keep it and [`webhook`] to tell the backend. [`cli`] is the command line, and [`observe`] says
//! what happened. Arrows point one way: cli, entry, job, then engine, storage, webhook and picture, then task and observe. Painting itself is the
//! crate [`diffusion`].

pub mod cli;
pub mod engine;
pub mod entry;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod job;
pub mod observe;
pub mod picture;
pub mod secret;
pub mod storage;
pub mod task;
pub mod webhook;
