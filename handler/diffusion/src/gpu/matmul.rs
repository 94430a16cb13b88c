//! Row-major matrix products through cuBLASLt, one plan (descriptors and algorithm) per case.
//!
//! cuBLASLt is column-major, so the transposed product is asked for: `out^T = w a^T`, where a row-major `[r, c]` matrix
//! with `ld` elements from row to row is a column-major `[c, r]` matrix with leading dimension `ld`.

mod alignment;
mod case;
mod plan;
mod tune;

pub(crate) use case::Case;

use super::{
    cublaslt::Handle,
    error::{GpuError, Result},
};
use cudarc::{cublaslt::sys as lt, driver::sys::CUstream};
use plan::Plan;
use std::{
    collections::{HashMap, hash_map::Entry},
    time::{Duration, Instant},
};

/// Bytes that the workspace's start is rounded up to.
const WORKSPACE_ALIGNMENT: u64 = 256;

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

/// Where plans are made and run; all plain handles.
#[derive(Debug, Clone, Copy)]
struct Queue {
    handle: lt::cublasLtHandle_t,
    stream: CUstream,
    workspace: u64,
    workspace_bytes: usize,
}

/// An algorithm as the library keeps it.
pub(super) type Algorithm = [u64; 8];

/// The products of one stream, which share a workspace.
#[derive(Debug)]
pub(crate) struct Matmuls {
    plans: HashMap<Case, Plan>,
    preferred: HashMap<Case, Algorithm>,
    /// Whether a case without preference is tuned at its first run.
    tunes: bool,
    /// Spent on what only a case's first run needs: the plan, and loading its kernel.
    firsts: [Duration; 2],
    queue: Queue,
    _handle: Handle, // Owns `queue.handle`; last, as fields are dropped in order.
}

// SAFETY: the handle and the descriptors are host memory that no thread owns, each use is through `&mut self` or reads
// this struct's own fields, and the driver takes its streams from any thread.
unsafe impl Send for Matmuls {}

impl Matmuls {
    /// Opens cuBLASLt for `stream`, whose context must be current here and wherever this is used. The `workspace` on
    /// the device (NVIDIA advises 32 MiB on Hopper, 4 MiB elsewhere) must live as long as this and the graphs captured
    /// from it, and belong to nothing else on another stream.
    pub(crate) fn new(stream: CUstream, workspace: u64, workspace_bytes: usize) -> Result<Self> {
        // SAFETY: it only tries to open the library.
        if !unsafe { lt::is_culib_present() } {
            return Err(GpuError::Unavailable(
                "cannot open libcublasLt.so.13: install cuBLAS of CUDA 13 (libcublas, or the Python package \
                 nvidia-cublas) and put its folder on LD_LIBRARY_PATH"
                    .into(),
            ));
        }
        let handle = Handle::new()?;
        let start = workspace.next_multiple_of(WORKSPACE_ALIGNMENT);
        let workspace_bytes = workspace_bytes.saturating_sub((start - workspace) as usize);
        let queue = Queue { handle: handle.0, stream, workspace: start, workspace_bytes };
        Ok(Self {
            plans: HashMap::new(),
            preferred: HashMap::new(),
            tunes: false,
            firsts: Default::default(),
            queue,
            _handle: handle,
        })
    }

    /// Enqueues one product. Legal while the stream is being captured; a case's first run plans it (on the host) and
    /// may load its kernel, so run each once before capturing.
    ///
    /// # Safety
    /// The stream and the workspace must be alive and the addresses those of device memory that holds what `case` says,
    /// until the stream gets there. `out` must overlap no other operand, but may be `onto`.
    pub(crate) unsafe fn run(&mut self, case: &Case, at: &Operands) -> Result<()> {
        if self.tunes && !self.preferred.contains_key(case) {
            // SAFETY: as the caller promises.
            unsafe { self.tune(case, at)? };
        }
        let (queue, clock, known) = (self.queue, Instant::now(), self.plans.contains_key(case));
        let plan = self.plan(case, at)?;
        let planned = clock.elapsed();
        // SAFETY: as the caller promises.
        unsafe { plan.run(&queue, plan.index, at)? };
        if !known {
            self.firsts[0] += planned;
            self.firsts[1] += clock.elapsed() - planned;
        }
        Ok(())
    }

    /// How long first runs took so far: making plans, and loading kernels.
    pub(super) fn firsts(&self) -> [Duration; 2] {
        self.firsts
    }

    /// From now on a case for which nothing is preferred is tuned at its first run, which must not be captured.
    pub(super) fn tune_at_first(&mut self) {
        self.tunes = true;
    }

    /// What is preferred, by case.
    pub(super) fn choices(&self) -> Vec<(Case, Algorithm)> {
        self.preferred.iter().map(|(case, algorithm)| (*case, *algorithm)).collect()
    }

    /// Uses an algorithm for a case that has not been run, as `choices` gave it on such a GPU with this library. No heuristics are
    /// asked then.
    pub(super) fn prefer(&mut self, case: Case, algorithm: Algorithm) {
        self.preferred.insert(case, algorithm);
    }

    /// The case's plan, made where there is none yet or where it asks more of the addresses than these give.
    fn plan(&mut self, case: &Case, at: &Operands) -> Result<&Plan> {
        if case.bias != at.bias.is_some() || case.onto != at.onto.is_some() {
            return Err(GpuError::call(format!("matmul {case:?}"), "bias or onto is not given as the case says"));
        }
        let given = case.alignments(at);
        let (queue, preferred) = (self.queue, self.preferred.get(case).copied());
        let make = |alignments, preferred| Plan::new(&queue, case, alignments, preferred);
        Ok(match self.plans.entry(*case) {
            Entry::Vacant(entry) => entry.insert(make(given, preferred)?),
            Entry::Occupied(entry) => {
                let plan = entry.into_mut();
                let needed = plan.alignments.both(given);
                if needed != plan.alignments {
                    // What was preferred may not do with less.
                    *plan = make(needed, None)?;
                }
                plan
            }
        })
    }
}
