//! Convolutions of NHWC activations, through the graph API of cuDNN 9.
//!
//! Each shape is one operation graph with a single forward convolution. cuDNN's heuristics rank engine configurations
//! for it; the first that keeps full sums and needs no compiling at run time becomes the shape's plan. Running a plan enqueues kernels only, so it can be captured into a CUDA graph; run
//! each shape once before capturing, so that its kernels are loaded.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use cudarc::cudnn::sys::{
    self, cudnnBackendAttributeName_t as Name, cudnnBackendBehaviorNote_t as Behaviour,
    cudnnBackendDescriptor_t as RawDescriptor, cudnnBackendDescriptorType_t as Type,
    cudnnBackendHeurMode_t as HeuristicsMode, cudnnBackendNumericalNote_t as Numerical,
    cudnnConvolutionMode_t as ConvolutionMode, cudnnDataType_t as DataType, cudnnHandle_t as RawHandle,
};
use cudarc::driver::sys::CUstream;

use serde::{Deserialize, Serialize};

use super::{
    Dtype,
    cudnn::{Address, BehaviourNote, Descriptor, Handle, NumericalNote, check, int},
    error::{GpuError, Result},
};

/// Workspace that a plan may need, in bytes.
const WORKSPACE_LIMIT: usize = 256 << 20;
/// Alignment promised to cuDNN of x, w and y, in bytes.
const ALIGNMENT: u64 = 16;
/// Oldest cuDNN whose status codes and calls the bindings know, as `cudnnGetVersion` counts.
const OLDEST: usize = 90_000;
/// Names of x, w and y in the operation graph and in the variant pack.
const UIDS: [i64; 3] = [1, 2, 3];
/// Errors told when no configuration fits.
const ERRORS_TOLD: usize = 4;

/// A convolution's shape: square kernel, cross-correlation, the same padding on all four sides, no dilation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Case {
    /// Type of x, w and y; sums are f32.
    pub(crate) dtype: Dtype,
    /// Images.
    pub(crate) batch: usize,
    /// Height of x.
    pub(crate) height: usize,
    /// Width of x.
    pub(crate) width: usize,
    /// Channels of x.
    pub(crate) channels_in: usize,
    /// Channels of y.
    pub(crate) channels_out: usize,
    /// Height and width of the kernel.
    pub(crate) side: usize,
    /// Step of the kernel, down and across.
    pub(crate) stride: usize,
    /// Zeros around x, on each side.
    pub(crate) padding: usize,
}

impl Case {
    /// Height of y; 0 where the kernel does not fit.
    pub(crate) fn out_height(&self) -> usize {
        self.out(self.height)
    }

    /// Width of y; 0 where the kernel does not fit.
    pub(crate) fn out_width(&self) -> usize {
        self.out(self.width)
    }

    fn out(&self, size: usize) -> usize {
        let rest = (size + 2 * self.padding).checked_sub(self.side);
        rest.and_then(|rest| rest.checked_div(self.stride)).map_or(0, |steps| steps + 1)
    }

    /// Dimensions (N, C, H, W) of x, w (as K, C, R, S) and y.
    fn dimensions(&self) -> Result<[[i64; 4]; 3]> {
        let x = [self.batch, self.channels_in, self.height, self.width];
        let w = [self.channels_out, self.channels_in, self.side, self.side];
        let y = [self.batch, self.channels_out, self.out_height(), self.out_width()];
        let mut dimensions = [[0; 4]; 3];
        for (to, from) in dimensions.iter_mut().zip([x, w, y]) {
            for (to, from) in to.iter_mut().zip(from) {
                *to = int(from)?;
                if from == 0 {
                    return Err(GpuError::Unavailable(format!("there is no convolution of this shape: {self:?}")));
                }
            }
        }
        Ok(dimensions)
    }
}

/// Strides, in elements, of dimensions (N, C, H, W) stored channels last.
fn channels_last([_, c, h, w]: [i64; 4]) -> [i64; 4] {
    [h * w * c, 1, w * c, c]
}

/// Convolutions on one stream, each shape's plan built on first use.
///
/// The CUDA context of the stream must be current on the calling thread, here and in every method.
pub(crate) struct Convolutions {
    // Before the handle, which must outlive them.
    plans: HashMap<Case, Plan>,
    /// Spent on what only a shape's first run needs: the plan, and loading its kernel.
    firsts: [Duration; 2],
    handle: Handle,
}

// SAFETY: a cuDNN handle and its descriptors may be used from any thread, one at a time, and `&mut self` sees to that:
// what takes `&self` only reads fields of our own. Nothing of it is shared with another value.
unsafe impl Send for Convolutions {}

impl Convolutions {
    /// Opens cuDNN for work on `stream`.
    pub(crate) fn new(stream: CUstream) -> Result<Self> {
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

    /// Those that there are plans for.
    pub(super) fn cases(&self) -> Vec<Case> {
        self.plans.keys().copied().collect()
    }

    /// Bytes of workspace that `run` needs for this shape.
    pub(crate) fn workspace(&mut self, case: &Case) -> Result<usize> {
        Ok(self.plan(case)?.prepared.workspace)
    }

    /// Enqueues y = conv(x, w), without bias; sums are f32. May be captured.
    ///
    /// x is NHWC `[batch, height, width, channels_in]`, w is OHWI `[channels_out, side, side, channels_in]` and y is
    /// NHWC `[batch, out_height, out_width, channels_out]`, dense and in the case's dtype.
    ///
    /// # Safety
    ///
    /// x, w and y are device addresses of so many elements, y and the workspace overlap nothing else, the workspace
    /// has at least `workspace(case)` bytes, aligned as an allocation is, and all stay valid until the work is done:
    /// if it is captured, until the graph has run for the last time.
    pub(crate) unsafe fn run(&mut self, case: &Case, x: u64, w: u64, y: u64, workspace: u64) -> Result<()> {
        let (handle, clock) = (self.handle.0, Instant::now());
        let plan = self.plan(case)?;
        let first = !std::mem::replace(&mut plan.used, true);
        let pack = variant_pack(x, w, y, workspace, plan.prepared.workspace)?;
        // SAFETY: the buffers are as the plan needs them, by this function's own contract.
        unsafe { execute(handle, &plan.prepared.plan, &pack)? };
        if first {
            self.firsts[1] += clock.elapsed();
        }
        Ok(())
    }

    /// How long first runs took so far: making plans, and loading kernels.
    pub(crate) fn firsts(&self) -> [Duration; 2] {
        self.firsts
    }

    fn plan(&mut self, case: &Case) -> Result<&mut Plan> {
        match self.plans.entry(*case) {
            Entry::Occupied(entry) => Ok(entry.into_mut()),
            Entry::Vacant(entry) => {
                let clock = Instant::now();
                let plan = entry.insert(Plan::build(&self.handle, case)?);
                self.firsts[0] += clock.elapsed();
                Ok(plan)
            }
        }
    }
}

/// What runs one shape.
struct Plan {
    // In the order of dropping: each refers to those below.
    prepared: Prepared,
    _configuration: Descriptor,
    _graph: Graph,
    /// Whether it has been run.
    used: bool,
}

/// A finalised execution plan and the workspace it needs, in bytes.
struct Prepared {
    plan: Descriptor,
    workspace: usize,
}

impl Plan {
    /// The first that works of what the heuristics offer, best first.
    fn build(handle: &Handle, case: &Case) -> Result<Self> {
        let graph = Graph::new(handle, case)?;
        let (mut offered, mut errors) = (0, Vec::new());
        for mode in [HeuristicsMode::CUDNN_HEUR_MODE_A, HeuristicsMode::CUDNN_HEUR_MODE_FALLBACK] {
            let offers = graph.offers(mode).unwrap_or_else(|error| {
                errors.push(error.to_string());
                Vec::new()
            });
            for configuration in offers {
                offered += 1;
                let prepared = match inspect(case.dtype, &configuration) {
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
        errors.truncate(ERRORS_TOLD);
        let told = errors.join("; ");
        Err(GpuError::Unavailable(format!("no convolution of cuDNN fits {case:?}: {offered} were offered; {told}")))
    }
}

fn prepare(handle: &Handle, configuration: &Descriptor, engine: i64) -> Result<Prepared> {
    let plan = Descriptor::new(Type::CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, "execution plan")?;
    plan.set(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, &[handle.0])?;
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

/// The engine's number, if it computes as it should for this dtype.
fn inspect(dtype: Dtype, configuration: &Descriptor) -> Result<Option<i64>> {
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

/// Whether sums stay f32 with nothing rounded or transformed on the way, f32 products are exact (tensor cores would
/// round to TF32), and no kernel is compiled at run time.
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

/// The operation graph of one convolution.
struct Graph {
    // In the order of dropping: each refers to those below.
    graph: Descriptor,
    _operation: Descriptor,
    _convolution: Descriptor,
    _tensors: [Descriptor; 3],
}

impl Graph {
    fn new(handle: &Handle, case: &Case) -> Result<Self> {
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
    fn offers(&self, mode: HeuristicsMode) -> Result<Vec<Descriptor>> {
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

/// The addresses of one run; `needed` is the plan's workspace in bytes.
fn variant_pack(x: u64, w: u64, y: u64, workspace: u64, needed: usize) -> Result<Descriptor> {
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
unsafe fn execute(handle: RawHandle, plan: &Descriptor, pack: &Descriptor) -> Result<()> {
    // SAFETY: both descriptors are finalised and the handle is the one the plan was built with; the rest is the
    // caller's promise.
    let status = unsafe { sys::cudnnBackendExecute(handle, plan.raw, pack.raw) };
    check(status, || "cudnnBackendExecute: convolution".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case() -> Case {
        Case {
            dtype: Dtype::F16,
            batch: 2,
            height: 64,
            width: 48,
            channels_in: 320,
            channels_out: 640,
            side: 3,
            stride: 1,
            padding: 1,
        }
    }

    #[test]
    fn output_sizes() {
        assert_eq!((case().out_height(), case().out_width()), (64, 48));
        let halved = Case { stride: 2, ..case() };
        assert_eq!((halved.out_height(), halved.out_width()), (32, 24));
        let odd = Case { stride: 2, height: 65, padding: 0, ..case() };
        assert_eq!((odd.out_height(), odd.out_width()), (32, 23));
        let point = Case { side: 1, padding: 0, ..case() };
        assert_eq!((point.out_height(), point.out_width()), (64, 48));
    }

    #[test]
    fn impossible_shapes_have_no_output() {
        assert_eq!(Case { height: 1, padding: 0, ..case() }.out_height(), 0);
        assert_eq!(Case { stride: 0, ..case() }.out_width(), 0);
        assert!(Case { height: 1, padding: 0, ..case() }.dimensions().is_err());
        assert!(Case { channels_in: 0, ..case() }.dimensions().is_err());
    }

    #[test]
    fn dimensions_and_strides() {
        let [x, w, y] = Case { stride: 2, ..case() }.dimensions().unwrap();
        assert_eq!(x, [2, 320, 64, 48]);
        assert_eq!(w, [640, 320, 3, 3]);
        assert_eq!(y, [2, 640, 32, 24]);
        assert_eq!(channels_last(x), [64 * 48 * 320, 1, 48 * 320, 320]);
        assert_eq!(channels_last(w), [3 * 3 * 320, 1, 3 * 320, 320]);
    }

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
