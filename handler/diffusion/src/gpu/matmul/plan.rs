//! How one shape is run: descriptors, and the algorithms that the heuristics offer.

use super::{Algorithm, MatmulShape, Operands, Queue, shape::Alignments};
use crate::gpu::{
    Dtype,
    cublaslt::{MatmulDescriptor, MatrixLayout, Preference, check},
    error::{GpuError, Result, check_safe},
};
use cudarc::{
    cublaslt::sys::{
        self as lt, cublasLtEpilogue_t as Epilogue, cublasLtMatmulDescAttributes_t as Desc,
        cublasLtMatmulPreferenceAttributes_t as Pref, cublasLtReductionScheme_t as Reduction, cublasStatus_t as Status,
        cudaDataType_t as DataType,
    },
    driver::CudaEvent,
};
use std::{ffi::c_void, ptr::from_ref};

/// cuBLAS's `CUBLAS_OP_N` and `CUBLAS_OP_T`, which cublasLt's bindings lack.
const AS_IS: i32 = 0;
const TRANSPOSED: i32 = 1;
/// How many of the heuristics' results are asked for.
const CANDIDATES: usize = 16;
/// Runs before those that are timed, and those that are.
const WARM_UPS: u32 = 3;
const TIMED: u32 = 10;

/// Room for a result of the heuristics.
const NO_RESULT: lt::cublasLtMatmulHeuristicResult_t = lt::cublasLtMatmulHeuristicResult_t {
    algo: lt::cublasLtMatmulAlgo_t { data: [0; 8] },
    workspaceSize: 0,
    state: Status::CUBLAS_STATUS_NOT_SUPPORTED,
    wavesCount: 0.0,
    reserved: [0; 4],
};

/// How one shape is run.
#[derive(Debug)]
pub(super) struct MatmulPlan {
    shape: MatmulShape,
    pub(super) alignments: Alignments,
    product: MatmulDescriptor,
    w: MatrixLayout,
    a: MatrixLayout,
    out: MatrixLayout,
    /// The heuristics' results that are usable, best first.
    pub(super) algorithms: Vec<lt::cublasLtMatmulAlgo_t>,
    /// The one of them that is used.
    pub(super) index: usize,
}

impl MatmulPlan {
    pub(super) fn new(
        queue: &Queue,
        shape: &MatmulShape,
        alignments: Alignments,
        preferred: Option<Algorithm>,
    ) -> Result<Self> {
        let out = data_type(shape.out);
        let product = MatmulDescriptor::new()?;
        product.set(Desc::CUBLASLT_MATMUL_DESC_TRANSA, if shape.w_transposed { &AS_IS } else { &TRANSPOSED })?;
        product.set(Desc::CUBLASLT_MATMUL_DESC_TRANSB, &AS_IS)?;
        if shape.bias {
            product.set(Desc::CUBLASLT_MATMUL_DESC_EPILOGUE, &Epilogue::CUBLASLT_EPILOGUE_BIAS)?;
            product.set(Desc::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &out)?;
            // The heuristics look at this address's alignment alone.
            product.set(Desc::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &u64::from(alignments.bias))?;
        }
        let (w_rows, w_columns) =
            if shape.w_transposed { (shape.columns, shape.inner) } else { (shape.inner, shape.columns) };
        let dtype = data_type(shape.dtype);
        let mut plan = Self {
            shape: *shape,
            alignments,
            product,
            w: MatrixLayout::new(dtype, w_rows, w_columns, shape.w_row, shape.batch, shape.w_stride)?,
            a: MatrixLayout::new(dtype, shape.inner, shape.rows, shape.a_row, shape.batch, shape.a_stride)?,
            out: MatrixLayout::new(out, shape.columns, shape.rows, shape.out_row, shape.batch, shape.out_stride)?,
            algorithms: Vec::new(),
            index: 0,
        };
        let preferred = preferred.map(|data| lt::cublasLtMatmulAlgo_t { data });
        plan.algorithms = match preferred.filter(|algorithm| plan.can_run(queue, algorithm)) {
            Some(algorithm) => vec![algorithm],
            None => plan.ask(queue)?,
        };
        Ok(plan)
    }

    /// Whether these words, which come from a file, are an algorithm for this product with enough workspace, by the library's own check.
    fn can_run(&self, queue: &Queue, algorithm: &lt::cublasLtMatmulAlgo_t) -> bool {
        let mut result = NO_RESULT;
        // SAFETY: the descriptors are alive, the words are only read, and there is room for the result.
        let status = unsafe {
            lt::cublasLtMatmulAlgoCheck(
                queue.handle,
                self.product.0,
                self.w.0,
                self.a.0,
                self.out.0,
                self.out.0,
                algorithm,
                &mut result,
            )
        };
        status == Status::CUBLAS_STATUS_SUCCESS && result.workspaceSize <= queue.workspace.bytes()
    }

    /// The heuristics' usable results, best first, of which there is at least one.
    fn ask(&self, queue: &Queue) -> Result<Vec<lt::cublasLtMatmulAlgo_t>> {
        let preference = Preference::new()?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(queue.workspace.bytes() as u64))?;
        // Split sums are added up in f32 (a mask; 0 for none is in every one), not in the type of `out`.
        let reduction =
            Reduction::CUBLASLT_REDUCTION_SCHEME_NONE as u32 | Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &self.alignments.w)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &self.alignments.a)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &self.alignments.onto)?;
        preference.set(Pref::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &self.alignments.out)?;
        let mut results = [NO_RESULT; CANDIDATES];
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
        check(status, || format!("cublasLtMatmulAlgoGetHeuristic: {:?}", self.shape))?;
        let results = results.iter().take(found.max(0) as usize);
        let usable = results.filter(|result| result.state == Status::CUBLAS_STATUS_SUCCESS);
        let algorithms: Vec<_> = usable.map(|result| result.algo).collect();
        if algorithms.is_empty() {
            let call = format!("cublasLtMatmulAlgoGetHeuristic: {:?}", self.shape);
            return Err(GpuError::call(call, "no algorithm fits"));
        }
        Ok(algorithms)
    }

    /// Enqueues the product with the algorithm at a position.
    ///
    /// # Safety
    /// As for [`super::Matmuls::run`].
    pub(super) unsafe fn run(&self, queue: &Queue, index: usize, at: &Operands) -> Result<()> {
        let what = || format!("cublasLtMatmul: algorithm {index} of {:?}", self.shape);
        let Some(algorithm) = self.algorithms.get(index) else {
            return Err(GpuError::call(what(), "no such algorithm"));
        };
        if let Some(bias) = &at.bias {
            self.product.set(Desc::CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)?;
        }
        let alpha = f32::from_bits(self.shape.alpha_bits);
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
                queue.workspace.address() as *mut c_void,
                queue.workspace.bytes(),
                queue.stream.cu_stream().cast(),
            )
        };
        check(status, what)
    }

    /// Mean milliseconds of one run with the algorithm at a position. There is no wait after the warm-ups, so that the
    /// host stays ahead of the device.
    ///
    /// # Safety
    /// As for [`super::Matmuls::run`].
    pub(super) unsafe fn time(
        &self,
        queue: &Queue,
        index: usize,
        at: &Operands,
        start: &CudaEvent,
        end: &CudaEvent,
    ) -> Result<f32> {
        for _ in 0..WARM_UPS {
            // SAFETY: as the caller promises.
            unsafe { self.run(queue, index, at) }?;
        }
        check_safe("cuEventRecord", start.record(&queue.stream))?;
        for _ in 0..TIMED {
            // SAFETY: as the caller promises.
            unsafe { self.run(queue, index, at) }?;
        }
        check_safe("cuEventRecord", end.record(&queue.stream))?;
        let milliseconds = check_safe("cuEventElapsedTime", start.elapsed_ms(end))?;
        Ok(milliseconds / TIMED as f32)
    }
}

fn data_type(dtype: Dtype) -> DataType {
    match dtype {
        Dtype::F16 => DataType::CUDA_R_16F,
        Dtype::BF16 => DataType::CUDA_R_16BF,
        Dtype::F32 => DataType::CUDA_R_32F,
    }
}
