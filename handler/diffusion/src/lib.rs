//! Stable Diffusion 1.5 with LoRAs, on the CPU and on NVIDIA GPUs.
//!
//! A [`pipeline::Pipeline`] is a model folder in the diffusers layout or a checkpoint, loaded on a device. It applies and removes
//! [`lora::Lora`]s, and paints a [`pipeline::Request`]. Its numbers are those of diffusers, within tolerances that the tests state.
//!
//! ```
//! use diffusion::pipeline::{Compute, Pipeline, Request};
//! use std::{ops::ControlFlow, path::Path};
//!
//! # let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/model/easel-tiny"));
//! let mut pipeline = Pipeline::load(model, &Compute::Cpu, (64, 64))?;
//! let request = Request { width: 64, height: 64, steps: 4, ..Request::new("lighthouse") };
//! let picture = pipeline.paint(&request, &mut |finished| {
//!     println!("{finished} of 4");
//!     ControlFlow::Continue(())
//! })?;
//! assert_eq!(picture.dimensions(), (64, 64));
//! # Ok::<(), diffusion::error::PipelineError>(())
//! ```
//!
//! | to | see |
//! | --- | --- |
//! | load a model, paint, decode | [`pipeline`] |
//! | use a GPU | [`gpu::Gpu::open`], then [`pipeline::Compute::Gpu`] |
//! | apply a LoRA | [`lora::Lora::read`], then [`pipeline::Pipeline::set_loras`] |
//! | report on a LoRA file | [`lora::Report::of_file`] |
//! | check a model without loading it | [`pipeline::inspect`] |
//! | add a scheduler | [`schedulers`] |
//!
//! Nothing here knows about tasks, queues, storage or webhooks, and nothing uses the network.

pub mod error;
pub mod gpu;
pub mod loading;
pub mod lora;
pub mod models;
pub mod noise;
mod offload;
mod ops;
pub mod pipeline;
pub mod prompt;
pub mod schedulers;

pub use error::{MAX_MESSAGE, MAX_NAME, cut};
pub use ops::{Instructions, ShapeTime, StepSize, Vectors, limit_vectors, time_shapes};
