//! Row-major matrix products through cuBLASLt, one plan (descriptors and algorithm) per shape.
//!
//! cuBLASLt is column-major, so the transposed product is asked for: `out^T = w a^T`, where a row-major `[r, c]` matrix
//! with `ld` elements from row to row is a column-major `[c, r]` matrix with leading dimension `ld`.

mod plan;
mod shape;

pub(crate) use shape::MatmulShape;

use super::{
    Array,
    cublaslt::Handle,
    error::{GpuError, Result, check_safe},
};
use cudarc::{
    cublaslt::sys as lt,
    driver::{CudaEvent, CudaStream, sys::CUevent_flags},
};
use plan::MatmulPlan;
use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::{Duration, Instant},
};

/// How many of the heuristics' results are timed.
const CANDIDATES_TIMED: usize = 8;

/// Device addresses of one run: of the matrices, of the bias for each column and of what the product is added to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Operands {
    pub(crate) a: u64,
    pub(crate) w: u64,
    pub(crate) out: u64,
    pub(crate) bias: Option<u64>,
    pub(crate) onto: Option<u64>,
}

impl Operands {
    /// A product alone.
    pub(crate) fn product(a: u64, w: u64, out: u64) -> Self {
        Self { a, w, out, bias: None, onto: None }
    }
}

/// Where plans are made and run.
#[derive(Clone)]
struct Queue {
    handle: lt::cublasLtHandle_t,
    stream: Arc<CudaStream>,
    workspace: Array,
}

impl Queue {
    /// A mark that notes the time.
    fn timed_event(&self) -> Result<CudaEvent> {
        let event = self.stream.context().new_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        check_safe("cuEventCreate", event)
    }
}

/// An algorithm as the library keeps it.
pub(super) type Algorithm = [u64; 8];

/// The products of one stream, which share a workspace.
pub(crate) struct Matmuls {
    plans: HashMap<MatmulShape, MatmulPlan>,
    preferred: HashMap<MatmulShape, Algorithm>,
    /// Whether a shape without a preferred algorithm is tuned at its first run.
    tunes: bool,
    /// Time spent on first runs: on plans, and on loading kernels.
    firsts: [Duration; 2],
    queue: Queue,
    _handle: Handle, // Owns `queue.handle`; last, as fields are dropped in order.
}

// SAFETY: the handle and the descriptors are host memory that no thread owns, each use is through `&mut self` or reads
// this struct's own fields, and the driver takes its streams from any thread.
unsafe impl Send for Matmuls {}

impl Matmuls {
    /// Opens cuBLASLt for `stream`, whose context must be current here and wherever this is used. NVIDIA advises a
    /// workspace of 32 MiB on Hopper, 4 MiB elsewhere.
    pub(crate) fn new(stream: &Arc<CudaStream>, workspace: Array) -> Result<Self> {
        // SAFETY: it only tries to open the library.
        if !unsafe { lt::is_culib_present() } {
            return Err(GpuError::Unavailable(
                "cannot open libcublasLt.so.13: install cuBLAS of CUDA 13 (libcublas, or the Python package \
                 nvidia-cublas) and put its folder on LD_LIBRARY_PATH"
                    .into(),
            ));
        }
        let handle = Handle::new()?;
        let queue = Queue { handle: handle.0, stream: stream.clone(), workspace };
        Ok(Self {
            plans: HashMap::new(),
            preferred: HashMap::new(),
            tunes: false,
            firsts: Default::default(),
            queue,
            _handle: handle,
        })
    }

    /// Enqueues one product. Legal while the stream is being captured; a shape's first run plans it (on the host) and
    /// may load its kernel, so run each once before capturing.
    ///
    /// # Safety
    /// The addresses must be those of device memory that holds what `shape` says, until the stream gets there: if it is
    /// captured, until the graph has run for the last time. `out` must overlap no other operand, but may be `onto`.
    pub(crate) unsafe fn run(&mut self, shape: &MatmulShape, at: &Operands) -> Result<()> {
        if self.tunes && !self.preferred.contains_key(shape) {
            // SAFETY: as the caller promises.
            unsafe { self.tune(shape, at)? };
        }
        let (queue, clock, known) = (self.queue.clone(), Instant::now(), self.plans.contains_key(shape));
        let plan = self.plan(shape, at)?;
        let planned = clock.elapsed();
        // SAFETY: as the caller promises.
        unsafe { plan.run(&queue, plan.index, at)? };
        if !known {
            self.firsts[0] += planned;
            self.firsts[1] += clock.elapsed() - planned;
        }
        Ok(())
    }

    /// How long first runs took so far: plans, and loading kernels.
    pub(super) fn firsts(&self) -> [Duration; 2] {
        self.firsts
    }

    /// From now on a shape without a preferred algorithm is tuned at its first run, which must not be captured.
    pub(super) fn tune_at_first(&mut self) {
        self.tunes = true;
    }

    /// The preferred algorithms.
    pub(super) fn choices(&self) -> Vec<(MatmulShape, Algorithm)> {
        self.preferred.iter().map(|(shape, algorithm)| (*shape, *algorithm)).collect()
    }

    /// Prefers an algorithm, as `choices` gave it for the same kind of GPU and library, for a shape that has not been run.
    pub(super) fn prefer(&mut self, shape: MatmulShape, algorithm: Algorithm) {
        self.preferred.insert(shape, algorithm);
    }

    /// Times the heuristics' first results for a shape, back to back with the same operands, and prefers the fastest
    /// from now on. Not during capture: it waits for the stream. Overwrites `at.out`. An error if none could run.
    ///
    /// # Safety
    /// As for [`Matmuls::run`].
    unsafe fn tune(&mut self, shape: &MatmulShape, at: &Operands) -> Result<()> {
        let queue = self.queue.clone();
        let plan = self.plan(shape, at)?;
        let (start, end) = (queue.timed_event()?, queue.timed_event()?);
        let (mut fastest, mut failure) = (None, None);
        for index in 0..plan.algorithms.len().min(CANDIDATES_TIMED) {
            // SAFETY: as the caller promises.
            match unsafe { plan.time(&queue, index, at, &start, &end) } {
                Ok(time) if fastest.is_none_or(|(_, best)| time < best) => fastest = Some((index, time)),
                Ok(_) => {}
                Err(error) => failure = Some(error),
            }
        }
        let Some((index, _)) = fastest else { return failure.map_or(Ok(()), Err) };
        if let Some(plan) = self.plans.get_mut(shape) {
            plan.index = index;
            self.preferred.insert(*shape, plan.algorithms[index].data);
        }
        Ok(())
    }

    /// The shape's plan. It is made where there is none yet, or where it needs a greater alignment than these addresses have.
    fn plan(&mut self, shape: &MatmulShape, at: &Operands) -> Result<&MatmulPlan> {
        if shape.bias != at.bias.is_some() || shape.onto != at.onto.is_some() {
            return Err(GpuError::call(format!("matmul {shape:?}"), "bias or onto is not given as the shape says"));
        }
        let given = shape.alignments(at);
        let (queue, preferred) = (self.queue.clone(), self.preferred.get(shape).copied());
        let make = |alignments, preferred| MatmulPlan::new(&queue, shape, alignments, preferred);
        Ok(match self.plans.entry(*shape) {
            Entry::Vacant(entry) => entry.insert(make(given, preferred)?),
            Entry::Occupied(entry) => {
                let plan = entry.into_mut();
                let needed = plan.alignments.both(given);
                if needed != plan.alignments {
                    // The preferred algorithm may need the greater alignment.
                    *plan = make(needed, None)?;
                }
                plan
            }
        })
    }
}
