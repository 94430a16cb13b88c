//! The operation graph of one convolution. It chooses nothing and runs nothing.

use super::{
    ALIGNMENT, UIDS,
    case::{Case, channels_last},
};
use crate::gpu::{
    Dtype,
    cudnn::{Descriptor, Handle, int},
    error::Result,
};
use cudarc::cudnn::sys::{
    cudnnBackendAttributeName_t as Name, cudnnBackendDescriptor_t as RawDescriptor,
    cudnnBackendDescriptorType_t as Type, cudnnBackendHeurMode_t as HeuristicsMode,
    cudnnConvolutionMode_t as ConvolutionMode, cudnnDataType_t as DataType,
};

/// The operation graph of one convolution.
pub(super) struct Graph {
    // In the order of dropping: each refers to those below.
    graph: Descriptor,
    _operation: Descriptor,
    _convolution: Descriptor,
    _tensors: [Descriptor; 3],
}

impl Graph {
    pub(super) fn new(handle: &Handle, case: &Case) -> Result<Self> {
        let [x, w, y] = case.dimensions()?;
        let [x_uid, w_uid, y_uid] = UIDS;
        let x = tensor(x_uid, case.dtype, x)?;
        let w = tensor(w_uid, case.dtype, w)?;
        let y = tensor(y_uid, case.dtype, y)?;
        let convolution = convolution(case)?;

        let kind = Type::CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR;
        let operation = Descriptor::new(kind, "convolution operation")?;
        operation.set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, &[x.raw])?;
        operation.set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, &[w.raw])?;
        operation.set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, &[y.raw])?;
        operation.set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, &[convolution.raw])?;
        operation.set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, &[1.0_f32])?;
        operation.set(Name::CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, &[0.0_f32])?;
        operation.finalise()?;

        let graph = Descriptor::new(Type::CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, "operation graph")?;
        graph.set(Name::CUDNN_ATTR_OPERATIONGRAPH_OPS, &[operation.raw])?;
        graph.set(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, &[handle.0])?;
        graph.finalise()?;
        Ok(Self { graph, _operation: operation, _convolution: convolution, _tensors: [x, w, y] })
    }

    /// Engine configurations that a heuristic offers, best first.
    pub(super) fn offers(&self, mode: HeuristicsMode) -> Result<Vec<Descriptor>> {
        let heuristics = Descriptor::new(Type::CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, "engine heuristics")?;
        heuristics.set(Name::CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, &[self.graph.raw])?;
        heuristics.set(Name::CUDNN_ATTR_ENGINEHEUR_MODE, &[mode])?;
        heuristics.finalise()?;
        let mut offers = Vec::new();
        for _ in 0..heuristics.count::<RawDescriptor>(Name::CUDNN_ATTR_ENGINEHEUR_RESULTS)? {
            offers.push(Descriptor::new(Type::CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, "engine configuration")?);
        }
        let mut raw: Vec<RawDescriptor> = offers.iter().map(|offer| offer.raw).collect();
        if !raw.is_empty() {
            let filled = heuristics.get(Name::CUDNN_ATTR_ENGINEHEUR_RESULTS, &mut raw)?;
            offers.truncate(filled);
        }
        Ok(offers)
    }
}

/// A tensor stored channels last, of dimensions (N, C, H, W).
fn tensor(uid: i64, dtype: Dtype, dimensions: [i64; 4]) -> Result<Descriptor> {
    let data_type = match dtype {
        Dtype::F16 => DataType::CUDNN_DATA_HALF,
        Dtype::BF16 => DataType::CUDNN_DATA_BFLOAT16,
        Dtype::F32 => DataType::CUDNN_DATA_FLOAT,
    };
    let tensor = Descriptor::new(Type::CUDNN_BACKEND_TENSOR_DESCRIPTOR, "tensor")?;
    tensor.set(Name::CUDNN_ATTR_TENSOR_DATA_TYPE, &[data_type])?;
    tensor.set(Name::CUDNN_ATTR_TENSOR_DIMENSIONS, &dimensions)?;
    tensor.set(Name::CUDNN_ATTR_TENSOR_STRIDES, &channels_last(dimensions))?;
    tensor.set(Name::CUDNN_ATTR_TENSOR_UNIQUE_ID, &[uid])?;
    tensor.set(Name::CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, &[ALIGNMENT.cast_signed()])?;
    tensor.finalise()?;
    Ok(tensor)
}

/// How the kernel moves over the image, summing in f32.
fn convolution(case: &Case) -> Result<Descriptor> {
    let (padding, stride) = (int(case.padding)?, int(case.stride)?);
    let convolution = Descriptor::new(Type::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, "convolution")?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE, &[DataType::CUDNN_DATA_FLOAT])?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE, &[ConvolutionMode::CUDNN_CROSS_CORRELATION])?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, &[2_i64])?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, &[padding; 2])?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, &[padding; 2])?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_DILATIONS, &[1_i64; 2])?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, &[stride; 2])?;
    convolution.finalise()?;
    Ok(convolution)
}
