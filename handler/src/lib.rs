//! Easel's handler: takes a generation task, paints it with the artist's LoRA, signs the picture, stores it in S3 and notifies the backend.
//!
//! A message comes in by [`entry`]. [`job`] parses it as a [`task`], lets [`engine`] paint it and make the files by [`picture`], uploads
//! them by [`storage`] and calls the backend by [`webhook`]. [`observe`] logs, counts and traces; [`cli`] is the command line. Modules use each
//! other in one direction: cli, entry, job, then engine, storage, webhook and picture, then task and observe. Stable Diffusion itself is the
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
