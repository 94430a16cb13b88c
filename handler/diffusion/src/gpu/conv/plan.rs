//! What runs one shape: the first of cuDNN's engines that is offered, computes as it should, and works.

use super::{
    ALIGNMENT, UIDS,
    shape::{ConvShape, channels_last},
};
use crate::gpu::{
    Dtype,
    cudnn::{Address, BehaviourNote, Descriptor, Handle, NumericalNote, check, int},
    error::{GpuError, Result},
};
use cudarc::cudnn::sys::{
    self, cudnnBackendAttributeName_t as Name, cudnnBackendBehaviorNote_t as Behaviour,
    cudnnBackendDescriptor_t as RawDescriptor, cudnnBackendDescriptorType_t as Type,
    cudnnBackendHeurMode_t as HeuristicsMode, cudnnBackendNumericalNote_t as Numerical,
    cudnnConvolutionMode_t as ConvolutionMode, cudnnDataType_t as DataType, cudnnHandle_t as RawHandle,
};

/// Workspace that a plan may need, in bytes.
const WORKSPACE_LIMIT: usize = 256 << 20;
/// How many errors are reported when no configuration fits.
const ERRORS_REPORTED: usize = 4;

/// What runs one shape.
pub(super) struct ConvPlan {
    // In the order of dropping: each refers to those below.
    pub(super) prepared: Prepared,
    _configuration: Descriptor,
    _graph: OperationGraph,
    /// Whether it has been run.
    pub(super) used: bool,
}

/// A finalised execution plan and the workspace it needs, in bytes.
pub(super) struct Prepared {
    pub(super) plan: Descriptor,
    pub(super) workspace: usize,
}

impl ConvPlan {
    /// Takes the first configuration that works, of those that the heuristics offer, best first.
    pub(super) fn build(handle: &Handle, shape: &ConvShape) -> Result<Self> {
        let graph = OperationGraph::new(handle, shape)?;
        let (mut offered, mut errors) = (0, Vec::new());
        for mode in [HeuristicsMode::CUDNN_HEUR_MODE_A, HeuristicsMode::CUDNN_HEUR_MODE_FALLBACK] {
            let offers = graph.offers(mode).unwrap_or_else(|error| {
                errors.push(error.to_string());
                Vec::new()
            });
            for configuration in offers {
                offered += 1;
                let prepared = match inspect(shape.dtype, &configuration) {
                    Ok(None) => continue,
                    Ok(Some(engine)) => prepare(handle, &configuration, engine),
                    Err(error) => Err(error),
                };
                match prepared {
                    Ok(prepared) => {
                        return Ok(Self { prepared, _configuration: configuration, _graph: graph, used: false });
                    }
                    Err(error) => errors.push(error.to_string()),
                }
            }
        }
        errors.dedup();
        errors.truncate(ERRORS_REPORTED);
        let errors = errors.join("; ");
        Err(GpuError::Unavailable(format!("no convolution of cuDNN fits {shape:?}: {offered} were offered; {errors}")))
    }
}

fn prepare(handle: &Handle, configuration: &Descriptor, engine: i64) -> Result<Prepared> {
    let plan = Descriptor::new(Type::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, "execution plan")?;
    plan.set(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, &[handle.raw])?;
    plan.set(Name::CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, &[configuration.raw])?;
    plan.finalise()?;
    let mut workspace = [0_i64];
    plan.get(Name::CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, &mut workspace)?;
    match usize::try_from(workspace[0]) {
        Ok(workspace) if workspace <= WORKSPACE_LIMIT => Ok(Prepared { plan, workspace }),
        _ => {
            let [needed] = workspace;
            let text = format!("engine {engine} needs {needed} bytes of workspace, the limit is {WORKSPACE_LIMIT}");
            Err(GpuError::Unavailable(text))
        }
    }
}

/// The addresses of one run; `needed` is the plan's workspace in bytes.
pub(super) fn variant_pack(x: u64, w: u64, y: u64, workspace: u64, needed: usize) -> Result<Descriptor> {
    let missing = needed > 0 && workspace == 0;
    if missing || [x, w, y].into_iter().any(|address| address == 0 || !address.is_multiple_of(ALIGNMENT)) {
        return Err(GpuError::Unavailable(format!(
            "a convolution needs addresses aligned to {ALIGNMENT} bytes and {needed} bytes of workspace: \
             x {x:#x}, w {w:#x}, y {y:#x}, workspace {workspace:#x}"
        )));
    }
    let pack = Descriptor::new(Type::CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, "variant pack")?;
    pack.set(Name::CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, &UIDS)?;
    pack.set(Name::CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, &[x, w, y].map(Address))?;
    pack.set(Name::CUDNN_ATTR_VARIANT_PACK_WORKSPACE, &[Address(workspace)])?;
    pack.finalise()?;
    Ok(pack)
}

/// Enqueues the plan's work on the handle's stream.
///
/// # Safety
///
/// The pack's addresses are those of buffers as large as the plan needs, which stay valid until the work is done.
pub(super) unsafe fn execute(handle: RawHandle, plan: &Descriptor, pack: &Descriptor) -> Result<()> {
    // SAFETY: both descriptors are finalised and the handle is the one the plan was built with; the rest is the
    // caller's promise.
    let status = unsafe { sys::cudnnBackendExecute(handle, plan.raw, pack.raw) };
    check(status, || "cudnnBackendExecute: convolution".into())
}

/// The operation graph of one convolution.
pub(super) struct OperationGraph {
    // In the order of dropping: each refers to those below.
    graph: Descriptor,
    _operation: Descriptor,
    _convolution: Descriptor,
    _tensors: [Descriptor; 3],
}

impl OperationGraph {
    pub(super) fn new(handle: &Handle, shape: &ConvShape) -> Result<Self> {
        let [x, w, y] = shape.dimensions()?;
        let [x_uid, w_uid, y_uid] = UIDS;
        let x = tensor(x_uid, shape.dtype, x)?;
        let w = tensor(w_uid, shape.dtype, w)?;
        let y = tensor(y_uid, shape.dtype, y)?;
        let convolution = convolution(shape)?;

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
        graph.set(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, &[handle.raw])?;
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
fn convolution(shape: &ConvShape) -> Result<Descriptor> {
    let (padding, stride) = ([int(shape.padding_down())?, int(shape.padding)?], int(shape.stride)?);
    let convolution = Descriptor::new(Type::CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, "convolution")?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_COMP_TYPE, &[DataType::CUDNN_DATA_FLOAT])?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_CONV_MODE, &[ConvolutionMode::CUDNN_CROSS_CORRELATION])?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, &[2_i64])?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, &padding)?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, &padding)?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_DILATIONS, &[1_i64; 2])?;
    convolution.set(Name::CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, &[stride; 2])?;
    convolution.finalise()?;
    Ok(convolution)
}

/// The engine's number, if it computes as it should for this dtype.
pub(super) fn inspect(dtype: Dtype, configuration: &Descriptor) -> Result<Option<i64>> {
    let engine = Descriptor::new(Type::CUDNN_BACKEND_ENGINE_DESCRIPTOR, "engine")?;
    // Filled in place: the configuration's engine is copied into the descriptor given.
    configuration.get(Name::CUDNN_ATTR_ENGINECFG_ENGINE, &mut [engine.raw])?;
    let mut number = [-1_i64];
    engine.get(Name::CUDNN_ATTR_ENGINE_GLOBAL_INDEX, &mut number)?;
    let mut numerical = [NumericalNote(u32::MAX); Numerical::CUDNN_NUMERICAL_NOTE_TYPE_COUNT as usize];
    let numericals = engine.get(Name::CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, &mut numerical)?;
    let mut behaviour = [BehaviourNote(u32::MAX); Behaviour::CUDNN_BEHAVIOR_NOTE_TYPE_COUNT as usize];
    let behaviours = engine.get(Name::CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, &mut behaviour)?;
    let [number] = number;
    Ok(acceptable(dtype, &numerical[..numericals], &behaviour[..behaviours]).then_some(number))
}

/// Whether it is deterministic, sums in f32 without rounding or transforming anything on the way, has exact f32 products (tensor
/// cores would round to TF32), and compiles no kernel at run time.
fn acceptable(dtype: Dtype, numerical: &[NumericalNote], behaviour: &[BehaviourNote]) -> bool {
    let has = |note: Numerical| numerical.contains(&NumericalNote(note as u32));
    let refused = [
        Numerical::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS,
        // One seed must give one picture.
        Numerical::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC,
        Numerical::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION,
        Numerical::CUDNN_NUMERICAL_NOTE_FFT,
        Numerical::CUDNN_NUMERICAL_NOTE_WINOGRAD,
        Numerical::CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_4x4,
        Numerical::CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_6x6,
        Numerical::CUDNN_NUMERICAL_NOTE_WINOGRAD_TILE_13x13,
    ];
    let rounded = dtype == Dtype::F32 && has(Numerical::CUDNN_NUMERICAL_NOTE_TENSOR_CORE);
    let compiled = behaviour.contains(&BehaviourNote(Behaviour::CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION as u32));
    !rounded && !compiled && !refused.into_iter().any(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes() {
        let note = |note: Numerical| [NumericalNote(note as u32)];
        let cores = note(Numerical::CUDNN_NUMERICAL_NOTE_TENSOR_CORE);
        assert!(acceptable(Dtype::F16, &cores, &[]));
        assert!(acceptable(Dtype::BF16, &cores, &[]));
        assert!(!acceptable(Dtype::F32, &cores, &[]));
        assert!(acceptable(Dtype::F32, &[], &[]));
        for refused in [
            Numerical::CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS,
            // One seed must give one picture.
            Numerical::CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC,
            Numerical::CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION,
            Numerical::CUDNN_NUMERICAL_NOTE_FFT,
            Numerical::CUDNN_NUMERICAL_NOTE_WINOGRAD,
        ] {
            assert!(!acceptable(Dtype::F16, &note(refused), &[]));
        }
        let unknown = [NumericalNote(99)];
        assert!(acceptable(Dtype::F16, &unknown, &[BehaviourNote(3)]));
        assert!(!acceptable(Dtype::F16, &cores, &[BehaviourNote(0)]));
    }
}
