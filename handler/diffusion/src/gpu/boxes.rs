//! What Hopper's copy engine needs to know of an array that it copies boxes of.

use super::{Dtype, GpuError, Result, check};
use cudarc::driver::sys::{
    self, CUtensorMap, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave, CUtensorMapL2promotion,
    CUtensorMapSwizzle,
};
use std::ptr::null_mut;

/// An array of up to four dimensions, the last one first, and the boxes of it that are copied.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Boxes {
    pub(crate) address: u64,
    pub(crate) sizes: [usize; 4],
    /// Elements from one row to the next.
    pub(crate) row: usize,
    /// Of a box, before only every `step`-th row of it and column is taken.
    pub(crate) lengths: [usize; 4],
    pub(crate) step: usize,
}

impl Boxes {
    /// Four dimensions, dense but for the rows.
    pub(crate) fn encode(&self, dtype: Dtype) -> Result<[u64; 16]> {
        let strides = [self.row, self.row * self.sizes[1], self.row * self.sizes[1] * self.sizes[2]];
        self.encode_with(dtype, strides)
    }

    /// With those strides in elements: one less than there are dimensions.
    pub(crate) fn encode_with<const N: usize>(&self, dtype: Dtype, strides: [usize; N]) -> Result<[u64; 16]> {
        let kind = match dtype {
            Dtype::F16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            Dtype::BF16 => CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            Dtype::F32 => return Err(GpuError::Unavailable("the copy engine is asked for f32".into())),
        };
        let sizes = self.sizes.map(|size| size as u64);
        let strides = strides.map(|stride| (stride * dtype.bytes()) as u64);
        let lengths = self.lengths.map(|length| length as u32);
        let steps = [1, self.step, self.step, 1].map(|step| step as u32);
        let mut map = CUtensorMap { opaque: [0; 16] };
        // SAFETY: all point to as many numbers as there are dimensions, which are N + 1 and at most 4; the driver reads nothing at the
        // address.
        let code = unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut map,
                kind,
                N as u32 + 1,
                null_mut::<u8>().wrapping_add(self.address as usize).cast(),
                sizes.as_ptr(),
                strides.as_ptr(),
                lengths.as_ptr(),
                steps.as_ptr(),
                CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check(&format!("cuTensorMapEncodeTiled: {self:?}"), code)?;
        Ok(map.opaque)
    }
}
