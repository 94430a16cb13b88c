//! cuBLASLt's handle and descriptors, each owned. cudarc's safe layer takes the heuristics' first algorithm for each product.

use super::error::{GpuError, Result};
use cudarc::cublaslt::sys::{
    self as lt, cublasComputeType_t as Compute, cublasLtMatmulDescAttributes_t as Desc,
    cublasLtMatmulPreferenceAttributes_t as Pref, cublasLtMatrixLayoutAttribute_t as MatrixAttribute,
    cublasStatus_t as Status, cudaDataType_t as DataType,
};
use std::{
    mem::size_of,
    ptr::{from_ref, null_mut},
};

pub(super) fn check(status: Status, call: impl FnOnce() -> String) -> Result<()> {
    if status == Status::CUBLAS_STATUS_SUCCESS { Ok(()) } else { Err(GpuError::call(call(), status)) }
}

/// Owns the library's handle.
#[derive(Debug)]
pub(super) struct Handle(pub(super) lt::cublasLtHandle_t);

impl Handle {
    pub(super) fn new() -> Result<Self> {
        let mut handle = null_mut();
        // SAFETY: there is room for the handle.
        let status = unsafe { lt::cublasLtCreate(&mut handle) };
        check(status, || "cublasLtCreate".into())?;
        Ok(Self(handle))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: it was created and nothing uses it any more.
        unsafe { lt::cublasLtDestroy(self.0) };
    }
}

/// Owns a product's descriptor.
#[derive(Debug)]
pub(super) struct MatmulDescriptor(pub(super) lt::cublasLtMatmulDesc_t);

impl MatmulDescriptor {
    /// Sums and scales in f32; for f32 matrices this is plain f32, as TF32 has a compute type of its own.
    pub(super) fn new() -> Result<Self> {
        let mut product = null_mut();
        // SAFETY: there is room for the descriptor.
        let status =
            unsafe { lt::cublasLtMatmulDescCreate(&mut product, Compute::CUBLAS_COMPUTE_32F, DataType::CUDA_R_32F) };
        check(status, || "cublasLtMatmulDescCreate".into())?;
        Ok(Self(product))
    }

    pub(super) fn set<T: Copy>(&self, attribute: Desc, value: &T) -> Result<()> {
        // SAFETY: the descriptor is alive, and the value has the length given and is copied.
        let status =
            unsafe { lt::cublasLtMatmulDescSetAttribute(self.0, attribute, from_ref(value).cast(), size_of::<T>()) };
        check(status, || format!("cublasLtMatmulDescSetAttribute: {attribute:?}"))
    }
}

impl Drop for MatmulDescriptor {
    fn drop(&mut self) {
        // SAFETY: it was created and nothing uses it any more.
        unsafe { lt::cublasLtMatmulDescDestroy(self.0) };
    }
}

/// Owns the description of a column-major matrix.
#[derive(Debug)]
pub(super) struct MatrixLayout(pub(super) lt::cublasLtMatrixLayout_t);

impl MatrixLayout {
    pub(super) fn new(
        dtype: DataType,
        rows: usize,
        columns: usize,
        ld: usize,
        batch: usize,
        stride: usize,
    ) -> Result<Self> {
        let mut layout = null_mut();
        // SAFETY: there is room for the descriptor.
        let status =
            unsafe { lt::cublasLtMatrixLayoutCreate(&mut layout, dtype, rows as u64, columns as u64, ld as i64) };
        check(status, || format!("cublasLtMatrixLayoutCreate: {rows} x {columns}, ld {ld}"))?;
        let layout = Self(layout);
        if batch > 1 {
            layout.set(MatrixAttribute::CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &(batch as i32))?;
            layout.set(MatrixAttribute::CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &(stride as i64))?;
        }
        Ok(layout)
    }

    pub(super) fn set<T: Copy>(&self, attribute: MatrixAttribute, value: &T) -> Result<()> {
        // SAFETY: the descriptor is alive, and the value has the length given and is copied.
        let status =
            unsafe { lt::cublasLtMatrixLayoutSetAttribute(self.0, attribute, from_ref(value).cast(), size_of::<T>()) };
        check(status, || format!("cublasLtMatrixLayoutSetAttribute: {attribute:?}"))
    }
}

impl Drop for MatrixLayout {
    fn drop(&mut self) {
        // SAFETY: it was created and nothing uses it any more.
        unsafe { lt::cublasLtMatrixLayoutDestroy(self.0) };
    }
}

/// Owns what the heuristics go by.
#[derive(Debug)]
pub(super) struct Preference(pub(super) lt::cublasLtMatmulPreference_t);

impl Preference {
    pub(super) fn new() -> Result<Self> {
        let mut preference = null_mut();
        // SAFETY: there is room for the descriptor.
        let status = unsafe { lt::cublasLtMatmulPreferenceCreate(&mut preference) };
        check(status, || "cublasLtMatmulPreferenceCreate".into())?;
        Ok(Self(preference))
    }

    pub(super) fn set<T: Copy>(&self, attribute: Pref, value: &T) -> Result<()> {
        // SAFETY: the descriptor is alive, and the value has the length given and is copied.
        let status = unsafe {
            lt::cublasLtMatmulPreferenceSetAttribute(self.0, attribute, from_ref(value).cast(), size_of::<T>())
        };
        check(status, || format!("cublasLtMatmulPreferenceSetAttribute: {attribute:?}"))
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: it was created and nothing uses it any more.
        unsafe { lt::cublasLtMatmulPreferenceDestroy(self.0) };
    }
}
