//! The GPU: memory, kernels, matrix products, convolutions and graphs of NVIDIA's CUDA, without anything of Stable Diffusion.
//!
//! Its libraries are opened at run time, so one binary runs with and without a GPU. Everything goes to one stream, in order.
//! Activations are `[batch, height, width, channels]`, which is `[batch, tokens, channels]` too.

#![allow(unsafe_code, reason = "CUDA is a C interface; each call says why it holds")]

mod arena;
mod array;
pub(crate) mod conv;
mod cublaslt;
mod cudnn;
mod driver;
mod dtype;
mod error;
mod event;
mod graph;
mod kernels;
mod library;
pub(crate) mod matmul;
mod memory;
mod opening;
mod place;
#[cfg(feature = "cuda")]
mod shortage;
mod tuned;

pub(crate) use array::{Array, Moments, Pinned};
pub use driver::device_of_machine;
pub use dtype::Dtype;
pub use error::GpuError;
pub(crate) use error::{Result, tells_of_memory};
pub(crate) use event::Event;
pub(crate) use graph::Graph;
pub(crate) use kernels::{Arg, Launch};
pub use memory::Memory;
pub(crate) use place::{Layout, Placed, Product, Source};

// For tests of whoever paints.
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub use shortage::Shortage;

use arena::Arena;
use conv::Convolutions;
use cudarc::driver::sys::{self, CUcontext, CUresult, CUstream};
use kernels::Kernels;
use matmul::Matmuls;
use memory::Meter;
use place::Lane;
use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};
use tuned::Tuned;

/// What cuBLASLt may use to sum in parts.
const MATMUL_WORKSPACE: usize = 32 << 20;

/// One GPU. Cheap to clone.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    device: i32,
    context: CUcontext,
    stream: CUstream,
    name: String,
    multiprocessors: usize,
    /// First number of the compute capability: 7 Turing, 8 Ampere and Ada, 9 Hopper.
    generation: usize,
    is_hopper: bool,
    kernels: Kernels,
    /// Arrays that live for a while: weights, what graphs read and write.
    resident: Arc<Mutex<Arena>>,
    /// Arrays between one operation and the next. Graphs use it too: what lives across a graph's run must not lie here.
    scratch: Arc<Mutex<Arena>>,
    matmuls: OnceLock<Mutex<Matmuls>>,
    convolutions: OnceLock<Mutex<Convolutions>>,
    lanes: Mutex<Vec<Lane>>,
    /// A LoRA's factors on their way.
    factors: Mutex<Option<Pinned>>,
    tuned: Mutex<Tuned>,
    meter: Arc<Meter>,
    opening: Mutex<Vec<(&'static str, Duration)>>,
}

// SAFETY: a CUDA context and stream may be used from any thread that has made the context current, see `Gpu::enter`.
unsafe impl Send for Inner {}
// SAFETY: CUDA's functions are thread-safe, and what is not lies behind a mutex.
unsafe impl Sync for Inner {}

impl Gpu {
    /// Makes the context current on this thread: first thing to do on a thread that may be new.
    ///
    /// # Errors
    /// The driver's.
    pub fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as the process.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.0.context) })
    }

    /// As the vendor calls it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How many of its processors work at once.
    pub(crate) fn multiprocessors(&self) -> usize {
        self.0.multiprocessors
    }

    /// Whether fused kernels do that dtype here.
    pub(crate) fn fuses(&self, dtype: Dtype) -> bool {
        match dtype {
            Dtype::F16 => true,
            Dtype::BF16 => self.copies_ahead(),
            Dtype::F32 => false,
        }
    }

    /// Whether it has what kernels for Hopper need.
    pub(crate) fn is_hopper(&self) -> bool {
        self.0.is_hopper
    }

    /// Whether memory can be copied to a block while it computes: from Ampere on.
    pub(crate) fn copies_ahead(&self) -> bool {
        self.0.generation >= 8
    }

    /// Waits until everything is done that was asked for.
    ///
    /// # Errors
    /// What went wrong since the last wait.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: our own stream.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.0.stream) })
    }

    /// Whether nothing can be computed on it any more: after a broken memory access or a fault of the chip, every call of this process
    /// fails. Waits.
    pub fn is_lost(&self) -> bool {
        // An error that is only late is told once.
        self.enter().is_err() || (self.synchronize().is_err() && self.synchronize().is_err())
    }

    pub(crate) fn matmuls(&self) -> Result<MutexGuard<'_, Matmuls>> {
        if self.0.matmuls.get().is_none() {
            let workspace = self.resident(&[MATMUL_WORKSPACE / 4], Dtype::F32)?;
            let made = Matmuls::new(self.0.stream, workspace.address(), MATMUL_WORKSPACE)?;
            if self.0.matmuls.set(Mutex::new(made)).is_ok() {
                // It lives as long as the process.
                std::mem::forget(workspace);
            }
        }
        self.0.matmuls.get().map(lock).ok_or_else(|| GpuError::Unavailable("cuBLASLt is not open".into()))
    }

    pub(crate) fn convolutions(&self) -> Result<MutexGuard<'_, Convolutions>> {
        if self.0.convolutions.get().is_none() {
            let _ = self.0.convolutions.set(Mutex::new(Convolutions::new(self.0.stream)?));
        }
        self.0.convolutions.get().map(lock).ok_or_else(|| GpuError::Unavailable("cuDNN is not open".into()))
    }

    /// Runs a kernel.
    pub(crate) fn launch(&self, launch: Launch, args: &[Arg]) -> Result<()> {
        self.0.kernels.launch(self.0.stream, launch, args)
    }

    fn stream(&self) -> CUstream {
        self.0.stream
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check(call: &str, code: CUresult) -> Result<()> {
    if code == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(GpuError::call(call, code)) }
}
