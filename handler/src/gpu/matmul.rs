//! Row-major matrix products through cuBLASLt, one plan (descriptors and algorithm) per case.
//!
//! cuBLASLt is column-major, so the transposed product is asked for: `out^T = w a^T`, where a row-major `[r, c]` matrix
//! with `ld` elements from row to row is a column-major `[c, r]` matrix with leading dimension `ld`.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;
use std::ptr::from_ref;
use std::time::{Duration, Instant};

use cudarc::cublaslt::sys::{
    self as lt, cublasLtEpilogue_t as Epilogue, cublasLtMatmulDescAttributes_t as Desc,
    cublasLtMatmulPreferenceAttributes_t as Pref, cublasLtReductionScheme_t as Reduction, cublasStatus_t as Status,
    cudaDataType_t as DataType,
};
use cudarc::driver::sys::CUstream;

use super::{
    Dtype,
    cublaslt::{Handle, Layout, Preference, Product, check},
    error::{GpuError, Result},
    event::Event,
};

/// cuBLAS's `CUBLAS_OP_N` and `CUBLAS_OP_T`, which cublasLt's bindings lack.
const AS_IS: i32 = 0;
const TRANSPOSED: i32 = 1;
/// How many of the heuristics' results are asked for.
const CANDIDATES: usize = 16;
/// Bytes that addresses are taken to be multiples of, where they and the strides are.
const ALIGNMENT: u32 = 16;
/// Bytes that the workspace's start is rounded up to.
const WORKSPACE_ALIGNMENT: u64 = 256;
/// How many of them are timed at a case's first run.
const TUNED: usize = 8;
/// Runs before those that are timed, and those that are.
const WARM_UPS: u32 = 3;
const TIMED: u32 = 10;

/// One product: `out[i] = alpha * a[i] @ w[i]^T (+ bias per column) (+ onto[i])` for `i` in `0..batch`, all row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Case {
    /// Of `a` and `w`. Sums are in f32, and never in TF32.
    pub dtype: Dtype,
    /// Of `out`, `onto` and `bias`: `dtype`, or f32.
    pub out: Dtype,
    /// Rows of `a` and `out` (m).
    pub rows: usize,
    /// Columns of `out` (n).
    pub columns: usize,
    /// Length of each dot product (k).
    pub inner: usize,
    /// Products at once, at the strides below; 1 for none.
    pub batch: usize,
    /// Elements from one row of `a` to the next.
    pub a_row: usize,
    /// Elements from one row of `w` to the next.
    pub w_row: usize,
    /// Elements from one row of `out`, and of `onto`, to the next.
    pub out_row: usize,
    /// Elements from one batch entry of `a` to the next.
    pub a_stride: usize,
    /// Elements from one batch entry of `w` to the next.
    pub w_stride: usize,
    /// Elements from one batch entry of `out`, and of `onto`, to the next.
    pub out_stride: usize,
    /// False: `w` is `[columns, inner]`, a linear layer's weight. True: it is `[inner, columns]`, for plain `a @ w`.
    pub w_transposed: bool,
    /// `alpha`, as of `f32::to_bits`.
    pub alpha_bits: u32,
    /// Whether a vector of `columns` is added to every row.
    pub bias: bool,
    /// Whether a matrix of `out`'s layout is added; it may be `out` itself.
    pub onto: bool,
}

impl Case {
    /// A linear layer without bias: tight `[rows, inner]` by `[columns, inner]`, all of `dtype`.
    pub(crate) fn linear(dtype: Dtype, rows: usize, columns: usize, inner: usize) -> Self {
        Self {
            dtype,
            out: dtype,
            rows,
            columns,
            inner,
            batch: 1,
            a_row: inner,
            w_row: inner,
            out_row: columns,
            a_stride: rows * inner,
            w_stride: columns * inner,
            out_stride: rows * columns,
            w_transposed: false,
            alpha_bits: 1f32.to_bits(),
            bias: false,
            onto: false,
        }
    }

    /// What every address of each matrix, and the bias's, is a multiple of.
    fn alignments(&self, at: &Operands) -> Alignments {
        let of = |address: u64, dtype: Dtype, row: usize, stride: usize| {
            let stride = if self.batch > 1 { stride } else { 0 };
            alignment(&[address, (row * dtype.bytes()) as u64, (stride * dtype.bytes()) as u64])
        };
        Alignments {
            w: of(at.w, self.dtype, self.w_row, self.w_stride),
            a: of(at.a, self.dtype, self.a_row, self.a_stride),
            onto: of(at.onto.unwrap_or(at.out), self.out, self.out_row, self.out_stride),
            out: of(at.out, self.out, self.out_row, self.out_stride),
            bias: alignment(&[at.bias.unwrap_or(0)]),
        }
    }
}

/// The largest power of two, at most `ALIGNMENT`, that divides every one of `bytes`.
fn alignment(bytes: &[u64]) -> u32 {
    let bits = bytes.iter().fold(u64::from(ALIGNMENT), |bits, byte| bits | byte);
    1 << bits.trailing_zeros()
}

/// What addresses are multiples of, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Alignments {
    w: u32,
    a: u32,
    onto: u32,
    out: u32,
    bias: u32,
}

impl Alignments {
    /// What holds for both.
    fn both(self, other: Self) -> Self {
        Self {
            w: self.w.min(other.w),
            a: self.a.min(other.a),
            onto: self.onto.min(other.onto),
            out: self.out.min(other.out),
            bias: self.bias.min(other.bias),
        }
    }
}

/// Device addresses of one run.
#[derive(Debug, Clone, Copy)]
struct Operands {
    a: u64,
    w: u64,
    out: u64,
    bias: Option<u64>,
    onto: Option<u64>,
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
    pub(crate) unsafe fn run(
        &mut self,
        case: &Case,
        a: u64,
        w: u64,
        out: u64,
        bias: Option<u64>,
        onto: Option<u64>,
    ) -> Result<()> {
        let at = Operands { a, w, out, bias, onto };
        if self.tunes && !self.preferred.contains_key(case) {
            // SAFETY: as the caller promises.
            unsafe { self.tune(case, a, w, out, bias, onto, TUNED)? };
        }
        let (queue, clock, known) = (self.queue, Instant::now(), self.plans.contains_key(case));
        let plan = self.plan(case, &at)?;
        let planned = clock.elapsed();
        // SAFETY: as the caller promises.
        unsafe { plan.run(&queue, plan.index, &at)? };
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

    /// Times up to `at_most` of the heuristics' results for a case, back to back with the same operands, and prefers
    /// the fastest from now on. Gives their milliseconds in the heuristics' order, infinite where one failed. Not
    /// during capture: it waits for the stream. Overwrites `out`.
    ///
    /// # Safety
    /// As for [`Matmuls::run`].
    #[allow(clippy::too_many_arguments)]
    pub(crate) unsafe fn tune(
        &mut self,
        case: &Case,
        a: u64,
        w: u64,
        out: u64,
        bias: Option<u64>,
        onto: Option<u64>,
        at_most: usize,
    ) -> Result<Vec<f32>> {
        let at = Operands { a, w, out, bias, onto };
        let queue = self.queue;
        let plan = self.plan(case, &at)?;
        let (start, end) = (Event::timed()?, Event::timed()?);
        let mut times = Vec::new();
        let mut failure = None;
        for index in 0..plan.algorithms.len().min(at_most) {
            // SAFETY: as the caller promises.
            let time = unsafe { plan.time(&queue, index, &at, &start, &end) };
            times.push(time.unwrap_or_else(|error| {
                failure = Some(error);
                f32::INFINITY
            }));
        }
        let fastest = times.iter().enumerate().min_by(|x, y| x.1.total_cmp(y.1));
        match (fastest, failure) {
            (Some((_, time)), Some(error)) if time.is_infinite() => return Err(error),
            (Some((index, _)), _) => {
                if let Some(plan) = self.plans.get_mut(case) {
                    plan.index = index;
                    self.preferred.insert(*case, plan.algorithms[index].data);
                }
            }
            (None, _) => {}
        }
        Ok(times)
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

/// How one case is run.
#[derive(Debug)]
struct Plan {
    case: Case,
    alignments: Alignments,
    product: Product,
    w: Layout,
    a: Layout,
    out: Layout,
    /// The heuristics' results that are usable, best first.
    algorithms: Vec<lt::cublasLtMatmulAlgo_t>,
    /// The one of them that is used.
    index: usize,
}

impl Plan {
    fn new(queue: &Queue, case: &Case, alignments: Alignments, preferred: Option<Algorithm>) -> Result<Self> {
        let out = data_type(case.out);
        let product = Product::new()?;
        product.set(Desc::CUBLASLT_MATMUL_DESC_TRANSA, if case.w_transposed { &AS_IS } else { &TRANSPOSED })?;
        product.set(Desc::CUBLASLT_MATMUL_DESC_TRANSB, &AS_IS)?;
        if case.bias {
            product.set(Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, &Epilogue::CUBLASLT_EPILOGUE_BIAS)?;
            product.set(Desc::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &out)?;
            // The heuristics look at this address's alignment alone.
            product.set(Desc::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &u64::from(alignments.bias))?;
        }
        let (w_rows, w_columns) =
            if case.w_transposed { (case.columns, case.inner) } else { (case.inner, case.columns) };
        let dtype = data_type(case.dtype);
        let mut plan = Self {
            case: *case,
            alignments,
            product,
            w: Layout::new(dtype, w_rows, w_columns, case.w_row, case.batch, case.w_stride)?,
            a: Layout::new(dtype, case.inner, case.rows, case.a_row, case.batch, case.a_stride)?,
            out: Layout::new(out, case.columns, case.rows, case.out_row, case.batch, case.out_stride)?,
            algorithms: Vec::new(),
            index: 0,
        };
        plan.algorithms = match preferred {
            Some(data) => vec![lt::cublasLtMatmulAlgo_t { data }],
            None => plan.ask(queue)?,
        };
        Ok(plan)
    }

    /// The heuristics' usable results, best first, of which there is at least one.
    fn ask(&self, queue: &Queue) -> Result<Vec<lt::cublasLtMatmulAlgo_t>> {
        let preference = Preference::new()?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(queue.workspace_bytes as u64))?;
        // Split sums are added up in f32 (a mask; 0 for none is in every one), not in the type of `out`.
        let reduction =
            Reduction::CUBLASLT_REDUCTION_SCHEME_NONE as u32 | Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &self.alignments.w)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &self.alignments.a)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &self.alignments.onto)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &self.alignments.out)?;
        let none = lt::cublasLtMatmulHeuristicResult_t {
            algo: lt::cublasLtMatmulAlgo_t { data: [0; 8] },
            workspaceSize: 0,
            state: Status::CUBLAS_STATUS_NOT_SUPPORTED,
            wavesCount: 0.0,
            reserved: [0; 4],
        };
        let mut results = [none; CANDIDATES];
        let mut found = 0;
        // SAFETY: the descriptors are alive and there is room for as many results as are asked for.
        let status = unsafe {
            lt::cublasLtMatmulAlgoGetHeuristic(
                queue.handle,
                self.product.0,
                self.w.0,
                self.a.0,
                self.out.0,
                self.out.0,
                preference.0,
                CANDIDATES as i32,
                results.as_mut_ptr(),
                &mut found,
            )
        };
        check(status, || format!("cublasLtMatmulAlgoGetHeuristic: {:?}", self.case))?;
        let results = results.iter().take(found.max(0) as usize);
        let usable = results.filter(|result| result.state == Status::CUBLAS_STATUS_SUCCESS);
        let algorithms: Vec<_> = usable.map(|result| result.algo).collect();
        if algorithms.is_empty() {
            let call = format!("cublasLtMatmulAlgoGetHeuristic: {:?}", self.case);
            return Err(GpuError::call(call, "no algorithm fits"));
        }
        Ok(algorithms)
    }

    /// Enqueues the product with the algorithm at a position.
    ///
    /// # Safety
    /// As for [`Matmuls::run`].
    unsafe fn run(&self, queue: &Queue, index: usize, at: &Operands) -> Result<()> {
        let what = || format!("cublasLtMatmul: algorithm {index} of {:?}", self.case);
        let Some(algorithm) = self.algorithms.get(index) else {
            return Err(GpuError::call(what(), "no such algorithm"));
        };
        if let Some(bias) = &at.bias {
            self.product.set(Desc::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        }
        let alpha = f32::from_bits(self.case.alpha_bits);
        let beta = if at.onto.is_some() { 1f32 } else { 0.0 };
        // SAFETY: the descriptors are alive, alpha and beta are read before it returns; the caller promises the rest.
        let status = unsafe {
            lt::cublasLtMatmul(
                queue.handle,
                self.product.0,
                from_ref(&alpha).cast(),
                at.w as *const c_void,
                self.w.0,
                at.a as *const c_void,
                self.a.0,
                from_ref(&beta).cast(),
                at.onto.unwrap_or(at.out) as *const c_void,
                self.out.0,
                at.out as *mut c_void,
                self.out.0,
                algorithm,
                queue.workspace as *mut c_void,
                queue.workspace_bytes,
                queue.stream.cast(),
            )
        };
        check(status, what)
    }

    /// Mean milliseconds of one run with the algorithm at a position. The warm-ups are not waited for, so that the host
    /// is ahead of the device while it times.
    ///
    /// # Safety
    /// As for [`Matmuls::run`].
    unsafe fn time(&self, queue: &Queue, index: usize, at: &Operands, start: &Event, end: &Event) -> Result<f32> {
        for _ in 0..WARM_UPS {
            // SAFETY: as the caller promises.
            unsafe { self.run(queue, index, at) }?;
        }
        start.record_on(queue.stream)?;
        for _ in 0..TIMED {
            // SAFETY: as the caller promises.
            unsafe { self.run(queue, index, at) }?;
        }
        end.record_on(queue.stream)?;
        Ok(end.since(start)? / TIMED as f32)
    }
}

fn data_type(dtype: Dtype) -> DataType {
    match dtype {
        Dtype::F16 => DataType::CUDA_R_16F,
        Dtype::BF16 => DataType::CUDA_R_16BF,
        Dtype::F32 => DataType::CUDA_R_32F,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_layers_are_tight() {
        let case = Case::linear(Dtype::F16, 8192, 960, 320);
        assert_eq!((case.dtype, case.out, case.batch), (Dtype::F16, Dtype::F16, 1));
        assert_eq!((case.rows, case.columns, case.inner), (8192, 960, 320));
        assert_eq!((case.a_row, case.w_row, case.out_row), (320, 320, 960));
        assert_eq!((case.a_stride, case.w_stride, case.out_stride), (8192 * 320, 960 * 320, 8192 * 960));
        assert_eq!(f32::from_bits(case.alpha_bits), 1.0);
        assert!(!case.w_transposed && !case.bias && !case.onto);
    }

    #[test]
    fn alignment_is_what_all_share() {
        assert_eq!(alignment(&[]), 16);
        assert_eq!(alignment(&[0, 0]), 16);
        assert_eq!(alignment(&[4096, 640]), 16);
        assert_eq!(alignment(&[4096, 72]), 8);
        assert_eq!(alignment(&[4096 + 4, 640]), 4);
        assert_eq!(alignment(&[4096, 154]), 2);
        assert_eq!(alignment(&[4097]), 1);
    }

    #[test]
    fn strides_count_in_batches_only() {
        let at = Operands { a: 4096, w: 4096, out: 4096, bias: Some(4096 + 8), onto: Some(4096 + 4) };
        let single = Case { w_stride: 77, ..Case::linear(Dtype::F16, 64, 77, 40) };
        let found = single.alignments(&at);
        assert_eq!(found, Alignments { w: 16, a: 16, onto: 2, out: 2, bias: 8 });
        let batch = Case { batch: 8, out: Dtype::F32, ..single };
        let found = batch.alignments(&at);
        assert_eq!(found, Alignments { w: 2, a: 16, onto: 4, out: 4, bias: 8 });
        let other = Alignments { w: 16, a: 4, onto: 16, out: 2, bias: 16 };
        assert_eq!(found.both(other), Alignments { w: 2, a: 4, onto: 4, out: 2, bias: 8 });
    }
}
