//! Convolution through cuDNN with sums in f32, as PyTorch has it. Candle's own sums f16 products in f16.

use super::super::Window;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, DType, Error, Layout, Result, Shape,
    backend::BackendStorage,
    cuda_backend::{
        CudaDType, DeviceId,
        cudarc::{
            cudnn::{ConvForward, Cudnn, CudnnDataType, CudnnError, sys},
            driver::{CudaSlice, DeviceRepr, ValidAsZeroBits},
        },
    },
};
use half::{bf16, f16};
use std::{cell::RefCell, collections::HashMap, sync::Arc};
use sys::{cudnnConvolutionFwdAlgo_t as Algorithm, cudnnTensorFormat_t::CUDNN_TENSOR_NCHW as NCHW};

/// Input `[batch, in, height, width]`, weight `[out, in, side, side]`; without bias.
pub(in super::super) struct Conv(pub(in super::super) Window);

/// What decides the algorithm: dtype, stride, padding, input and weight.
type Case = (DType, usize, usize, Vec<usize>, Vec<usize>);

/// cuDNN's handle on one device, and what it chose. A handle may not leave its thread.
struct Context {
    cudnn: Arc<Cudnn>,
    chosen: HashMap<Case, (Algorithm, usize)>,
}

thread_local! {
    static CONTEXTS: RefCell<HashMap<DeviceId, Context>> = RefCell::default();
}

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        "conv-cuda"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Err(Error::Msg("the cuDNN convolution has no CPU form".into()).bt())
    }

    fn cuda_fwd(
        &self,
        input: &CudaStorage,
        input_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        match input.dtype() {
            DType::F16 => self.run::<f16>(input, input_layout, weight, weight_layout),
            DType::BF16 => self.run::<bf16>(input, input_layout, weight, weight_layout),
            DType::F32 => self.run::<f32>(input, input_layout, weight, weight_layout),
            dtype => Err(Error::UnsupportedDTypeForOp(dtype, self.name()).bt()),
        }
    }
}

impl Conv {
    fn run<T: CudaDType + CudnnDataType + DeviceRepr + ValidAsZeroBits + Unit>(
        &self,
        input: &CudaStorage,
        input_layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let device = input.device().clone();
        let op = self.name();
        let contiguous = |layout: &Layout| layout.contiguous_offsets().ok_or(Error::RequiresContiguous { op });
        let (from, to) = contiguous(input_layout)?;
        let source = input.as_cuda_slice::<T>()?.slice(from..to);
        let (from, to) = contiguous(weight_layout)?;
        let filter = weight.as_cuda_slice::<T>()?.slice(from..to);
        let (batch, _, height, width) = input_layout.shape().dims4()?;
        let (out, _, side, _) = weight_layout.shape().dims4()?;
        let Window { stride, padding } = self.0;
        let after = |length: usize| (length + 2 * padding - side) / stride + 1;
        let shape = [batch, out, after(height), after(width)];
        // SAFETY: the convolution writes every element.
        #[allow(unsafe_code)]
        let mut result: CudaSlice<T> = unsafe { device.alloc(shape.iter().product())? };
        CONTEXTS.with_borrow_mut(|contexts| -> Result<()> {
            let context = match contexts.entry(device.id()) {
                std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::hash_map::Entry::Vacant(entry) => {
                    let cudnn = Cudnn::new(device.cuda_stream()).map_err(Error::wrap)?;
                    entry.insert(Context { cudnn, chosen: HashMap::new() })
                }
            };
            let cudnn = &context.cudnn;
            let wrap = |error: CudnnError| Error::wrap(error);
            let sizes = |dims: &[usize]| -> [i32; 4] { std::array::from_fn(|index| dims[index] as i32) };
            let both = |length: usize| [length as i32; 2];
            let mode = sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION;
            let mut conv = cudnn.create_conv2d::<f32>(both(padding), both(stride), both(1), mode).map_err(wrap)?;
            conv.set_math_type(T::MATH).map_err(wrap)?;
            let x = cudnn.create_4d_tensor::<T>(NCHW, sizes(input_layout.dims())).map_err(wrap)?;
            let w = cudnn.create_4d_filter::<T>(NCHW, sizes(weight_layout.dims())).map_err(wrap)?;
            let y = cudnn.create_4d_tensor::<T>(NCHW, sizes(&shape)).map_err(wrap)?;
            let forward = ConvForward { conv: &conv, x: &x, w: &w, y: &y };
            let case = (input.dtype(), stride, padding, input_layout.dims().to_vec(), weight_layout.dims().to_vec());
            let (algorithm, room) = match context.chosen.get(&case) {
                Some(chosen) => *chosen,
                None => {
                    let algorithm = forward.pick_algorithm().map_err(wrap)?;
                    let chosen = (algorithm, forward.get_workspace_size(algorithm).map_err(wrap)?);
                    context.chosen.insert(case, chosen);
                    chosen
                }
            };
            // SAFETY: room for the algorithm to work in; nothing reads it before it is written.
            #[allow(unsafe_code)]
            let mut workspace: CudaSlice<u8> = unsafe { device.alloc(room.max(1))? };
            // SAFETY: the descriptors above give the sizes of these very slices.
            #[allow(unsafe_code)]
            unsafe { forward.launch(algorithm, Some(&mut workspace), (T::ONE, T::ZERO), &source, &filter, &mut result) }
                .map_err(wrap)
        })?;
        Ok((CudaStorage::wrap_cuda_slice(result, device), shape.to_vec().into()))
    }
}

/// A dtype with its one and zero, and the arithmetic that PyTorch allows for it by default or, for f32, exactly.
trait Unit {
    const ONE: Self;
    const ZERO: Self;
    const MATH: sys::cudnnMathType_t;
}

impl Unit for f16 {
    const ONE: Self = f16::ONE;
    const ZERO: Self = f16::ZERO;
    const MATH: sys::cudnnMathType_t = sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH;
}

impl Unit for bf16 {
    const ONE: Self = bf16::ONE;
    const ZERO: Self = bf16::ZERO;
    const MATH: sys::cudnnMathType_t = sys::cudnnMathType_t::CUDNN_TENSOR_OP_MATH;
}

impl Unit for f32 {
    const ONE: Self = 1.0;
    const ZERO: Self = 0.0;
    const MATH: sys::cudnnMathType_t = sys::cudnnMathType_t::CUDNN_FMA_MATH;
}
