//! NVIDIA GPUs by CUDA: memory, kernels, matrix products, convolutions and graphs. Nothing here knows of Stable Diffusion.
//!
//! The driver is opened at run time, so one binary runs with and without a GPU. Nothing else of NVIDIA's is needed. Everything goes to one stream, in order.
//! Activations are `[batch, height, width, channels]`, which is `[batch, tokens, channels]` too.

#![allow(unsafe_code, reason = "CUDA is a C interface; each call says why it holds")]

mod arena;
mod array;
mod boxes;
pub(crate) mod conv;
mod driver;
mod error;
mod generation;
mod graph;
mod kernels;
pub(crate) mod matmul;
mod memory;
mod opening;
mod physical;
mod pinned;
pub(crate) mod product;
mod residency;
mod ring;
#[cfg(feature = "cuda")]
mod shortage;
mod upload;
mod weights;

pub(crate) use arena::PAGE;
pub use array::Dtype;
pub(crate) use array::{Array, Moments};
pub(crate) use boxes::Boxes;
pub use driver::device_of_machine;
pub use error::GpuError;
pub(crate) use error::{Result, tells_of_memory};
pub use generation::Generation;
pub(crate) use graph::Graph;
pub(crate) use kernels::{Arg, Launch, constants};
pub use memory::Memory;
pub(crate) use pinned::Pinned;
pub(crate) use residency::Stay;
pub(crate) use weights::{BehindNorm, Placed, Product, Source, WeightLayout};

// For tests of the engine.
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub use shortage::Shortage;

use arena::Arena;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream};
use error::{check, check_safe};
use kernels::Kernels;
use matmul::{MatmulShape, Operands};
use memory::{Meter, Trims};
use product::{Plan, Problem};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};
use upload::Lane;

/// One GPU. Cheap to clone.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    name: String,
    multiprocessors: usize,
    /// Whose kernels are used.
    generation: Generation,
    /// Whether the machine code was made for Ampere or newer.
    copies_ahead: bool,
    /// Shared memory that a block may have, and that of a multiprocessor, in bytes.
    shared: [usize; 2],
    kernels: Kernels,
    /// Arrays that live for a while: weights, what graphs read and write.
    resident: Arc<Mutex<Arena>>,
    /// Arrays between one operation and the next. Each run of a graph overwrites them.
    scratch: Arc<Mutex<Arena>>,
    /// How often scratch memory was given back, and what was left.
    trims: Mutex<Trims>,
    /// Whether the machine refused to pin memory.
    unpinned: AtomicBool,
    lanes: Mutex<Vec<Lane>>,
    /// Whether there are few of them.
    few_lanes: AtomicBool,
    /// For what is on its way: a LoRA's factors, or what the host reads.
    staging: Mutex<Option<Pinned>>,
    meter: Arc<Meter>,
    opening: Mutex<Vec<(&'static str, Duration)>>,
    // Last: what is above uses them.
    stream: Arc<CudaStream>,
    context: Arc<CudaContext>,
}

impl Gpu {
    /// Makes the context current on this thread. A thread must do this before anything else on the GPU.
    ///
    /// # Errors
    /// The driver's.
    pub fn enter(&self) -> Result<()> {
        check_safe("cuCtxSetCurrent", self.0.context.bind_to_thread())
    }

    /// The product's name, such as `NVIDIA L4`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The number of streaming multiprocessors.
    pub(crate) fn multiprocessors(&self) -> usize {
        self.0.multiprocessors
    }

    /// Whether there are fused kernels for that dtype on this GPU.
    pub(crate) fn fuses(&self, dtype: Dtype) -> bool {
        match dtype {
            Dtype::F16 => true,
            Dtype::BF16 => self.0.generation >= Generation::Ampere,
            Dtype::F32 => false,
        }
    }

    /// About how many places of latents, of all pictures, are denoised the fastest at once: with more, each took longer on an H200. `None`
    /// if more were never seen to be slower.
    pub fn fastest_places(&self) -> Option<usize> {
        self.is_hopper().then_some(4 * 64 * 64)
    }

    /// Whether the kernels for Hopper run on it.
    pub(crate) fn is_hopper(&self) -> bool {
        self.0.generation == Generation::Hopper
    }

    /// Whether kernels copy to shared memory while they compute: in machine code for Ampere or newer.
    pub(crate) fn copies_ahead(&self) -> bool {
        self.0.copies_ahead
    }

    /// Shared memory that a block may have, and that of a multiprocessor, in bytes.
    pub(crate) fn shared_memory(&self) -> [usize; 2] {
        self.0.shared
    }

    /// Waits until the stream's work is done.
    ///
    /// # Errors
    /// What failed since the last wait.
    pub fn synchronize(&self) -> Result<()> {
        check_safe("cuStreamSynchronize", self.0.stream.synchronize())
    }

    /// Whether the GPU is lost for this process: after an illegal memory access or a fault of the chip, every call fails. Waits.
    pub fn is_lost(&self) -> bool {
        // An error of earlier work is reported once; a lost GPU fails again.
        let fails = || self.enter().and_then(|()| self.synchronize()).is_err();
        fails() && fails()
    }

    /// Enqueues a product.
    ///
    /// # Safety
    /// The addresses are those of memory of this GPU that holds what `shape` says, until the stream gets there: if it is captured, until
    /// the graph has run for the last time. `out` overlaps no other operand, but may be `onto`.
    pub(crate) unsafe fn multiply(&self, shape: &MatmulShape, at: &Operands) -> Result<()> {
        let problem = Problem::of_matmul(shape, at);
        let plan = Plan::whole(&problem, self)?;
        // SAFETY: as the caller promises.
        unsafe { plan.launch(self, &problem) }
    }

    /// Enqueues a kernel.
    ///
    /// # Safety
    /// The arguments are those of the kernel's signature. Each address is one of this GPU's memory, alive now, from which the kernel
    /// reads and writes no more than is there with these sizes and this grid.
    pub(crate) unsafe fn launch(&self, launch: Launch, args: &[Arg]) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.0.kernels.launch(&self.0.stream, launch, args) }
    }

    /// Enqueues a kernel whose arguments are given as they lie in memory, each from a multiple of 8 bytes on. Blocks with the same first two
    /// numbers are clusters of so many; with more than 1, this needs Hopper.
    ///
    /// # Safety
    /// As for [`Gpu::launch`]. Each argument has as many words as its type in the kernel's signature.
    pub(crate) unsafe fn launch_words(&self, launch: Launch, cluster: usize, args: &[&[u64]]) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.0.kernels.launch_words(&self.0.stream, launch, cluster, args) }
    }

    /// Whether both are the same GPU with the same stream.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// A new mark for the stream. It counts as reached until it is recorded.
    pub(crate) fn event(&self) -> Result<CudaEvent> {
        check_safe("cuEventCreate", self.0.context.new_event(None))
    }

    /// Puts a mark at the end of the stream's work.
    pub(crate) fn record(&self, event: &CudaEvent) -> Result<()> {
        check_safe("cuEventRecord", event.record(&self.0.stream))
    }

    /// Waits until the stream reaches a mark.
    pub(crate) fn wait_for(&self, event: &CudaEvent) -> Result<()> {
        check_safe("cuEventSynchronize", event.synchronize())
    }

    /// A mark of another stream that the next work of this one waits for. No kernel starts before it.
    fn wait_before_next(&self, event: &CudaEvent) -> Result<()> {
        self.0.kernels.start_next_late();
        check_safe("cuStreamWaitEvent", self.0.stream.wait(event))
    }

    /// Another stream of this GPU.
    fn new_stream(&self) -> Result<Arc<CudaStream>> {
        check_safe("cuStreamCreate", self.0.context.new_stream())
    }

    fn stream(&self) -> &Arc<CudaStream> {
        &self.0.stream
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
