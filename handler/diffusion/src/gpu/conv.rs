//! Convolutions of NHWC activations, through the graph API of cuDNN 9.
//!
//! Each shape is one operation graph with a single forward convolution. cuDNN's heuristics rank engine configurations
//! for it; the first that keeps full sums and needs no compiling at run time becomes the shape's plan. Running a plan
//! enqueues kernels only, so it can be captured into a CUDA graph; run each shape once before capturing, so that its
//! kernels are loaded.

mod plan;
mod shape;

pub(crate) use shape::ConvShape;

use super::{
    cudnn::Handle,
    error::{GpuError, Result},
};
use cudarc::{cudnn::sys, driver::CudaStream};
use plan::{ConvPlan, execute, variant_pack};
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::{Duration, Instant},
};

/// Alignment promised to cuDNN of x, w and y, in bytes.
const ALIGNMENT: u64 = 16;
/// Oldest cuDNN whose status codes and calls the bindings know, as `cudnnGetVersion` counts.
const OLDEST: usize = 90_000;
/// Names of x, w and y in the operation graph and in the variant pack.
const UIDS: [i64; 3] = [1, 2, 3];

/// Convolutions on one stream, each shape's plan built on first use.
///
/// The CUDA context of the stream must be current on the calling thread, here and in every method.
pub(crate) struct Convolutions {
    // Before the handle, which must be dropped after them.
    plans: HashMap<ConvShape, ConvPlan>,
    /// Time spent on first runs: on plans, and on loading kernels.
    firsts: [Duration; 2],
    handle: Handle,
}

// SAFETY: a cuDNN handle and its descriptors may be used from any thread, one at a time, and `&mut self` sees to that:
// what takes `&self` only reads fields of our own. Nothing of it is shared with another value.
unsafe impl Send for Convolutions {}

impl Convolutions {
    /// Opens cuDNN for work on `stream`.
    pub(crate) fn new(stream: &Arc<CudaStream>) -> Result<Self> {
        // SAFETY: opening the library runs its initialisers alone.
        if !unsafe { sys::is_culib_present() } {
            return Err(GpuError::Unavailable(
                "cuDNN cannot be opened: install cuDNN 9 for this CUDA version, and put the folder of libcudnn.so.9 \
                 on the library path (LD_LIBRARY_PATH)"
                    .into(),
            ));
        }
        // SAFETY: takes nothing, and the library is there.
        let version = unsafe { sys::cudnnGetVersion() };
        if version < OLDEST {
            return Err(GpuError::Unavailable(format!("cuDNN 9 is needed, and this one has version {version}")));
        }
        let handle = Handle::new(stream)?;
        Ok(Self { plans: HashMap::new(), firsts: Default::default(), handle })
    }

    /// The shapes that have plans.
    pub(super) fn shapes(&self) -> Vec<ConvShape> {
        self.plans.keys().copied().collect()
    }

    /// Bytes of workspace that `run` needs for this shape.
    pub(crate) fn workspace(&mut self, shape: &ConvShape) -> Result<usize> {
        Ok(self.plan(shape)?.prepared.workspace)
    }

    /// Enqueues y = conv(x, w), without bias; sums are f32. May be captured.
    ///
    /// x is NHWC `[batch, height, width, channels_in]`, w is OHWI `[channels_out, side, side, channels_in]` and y is
    /// NHWC `[batch, out_height, out_width, channels_out]`, dense and in the shape's dtype.
    ///
    /// # Safety
    ///
    /// x, w and y are device addresses of that many elements, y and the workspace overlap nothing else, the workspace
    /// has at least `workspace(shape)` bytes, aligned as an allocation is, and all stay valid until the work is done:
    /// if it is captured, until the graph has run for the last time.
    pub(crate) unsafe fn run(&mut self, shape: &ConvShape, x: u64, w: u64, y: u64, workspace: u64) -> Result<()> {
        let (handle, clock) = (self.handle.raw, Instant::now());
        let plan = self.plan(shape)?;
        let first = !std::mem::replace(&mut plan.used, true);
        let pack = variant_pack(x, w, y, workspace, plan.prepared.workspace)?;
        // SAFETY: the buffers are as the plan needs them, by this function's own contract.
        unsafe { execute(handle, &plan.prepared.plan, &pack)? };
        if first {
            self.firsts[1] += clock.elapsed();
        }
        Ok(())
    }

    /// How long first runs took so far: plans, and loading kernels.
    pub(crate) fn firsts(&self) -> [Duration; 2] {
        self.firsts
    }

    fn plan(&mut self, shape: &ConvShape) -> Result<&mut ConvPlan> {
        match self.plans.entry(*shape) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let clock = Instant::now();
                let plan = entry.insert(ConvPlan::build(&self.handle, shape)?);
                self.firsts[0] += clock.elapsed();
                Ok(plan)
            }
        }
    }
}
