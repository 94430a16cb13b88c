//! What runs one shape: the first engine that is offered, acceptable and works. Refuses plans that need too much workspace.

use super::{ALIGNMENT, Case, UIDS, engine::inspect, graph::Graph};
use crate::gpu::{
    cudnn::{Address, Descriptor, Handle, check},
    error::{GpuError, Result},
};
use cudarc::cudnn::sys::{
    self, cudnnBackendAttributeName_t as Name, cudnnBackendDescriptorType_t as Type,
    cudnnBackendHeurMode_t as HeuristicsMode, cudnnHandle_t as RawHandle,
};

/// Workspace that a plan may need, in bytes.
const WORKSPACE_LIMIT: usize = 256 << 20;
/// Errors told when no configuration fits.
const ERRORS_TOLD: usize = 4;

/// What runs one shape.
pub(super) struct Plan {
    // In the order of dropping: each refers to those below.
    pub(super) prepared: Prepared,
    _configuration: Descriptor,
    _graph: Graph,
    /// Whether it has been run.
    pub(super) used: bool,
}

/// A finalised execution plan and the workspace it needs, in bytes.
pub(super) struct Prepared {
    pub(super) plan: Descriptor,
    pub(super) workspace: usize,
}

impl Plan {
    /// The first that works of what the heuristics offer, best first.
    pub(super) fn build(handle: &Handle, case: &Case) -> Result<Self> {
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
