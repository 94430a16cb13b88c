//! Our own kernels: compiled into the binary by the build script, loaded once, found by name.

use super::{GpuError, Result, check, driver::check_opening};
use cudarc::driver::sys::{
    self, CUfunction, CUfunction_attribute, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
    CUlaunchConfig, CUstream,
};
use std::{
    collections::HashMap,
    ffi::{CString, c_void},
    ptr::null_mut,
    sync::{Mutex, PoisonError},
};

#[cfg(feature = "cuda")]
static IMAGES: [&[u8]; 5] = [
    include_bytes!(concat!(env!("OUT_DIR"), "/attention.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/norm.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/place.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/pointwise.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/steps.fatbin")),
];
#[cfg(not(feature = "cuda"))]
static IMAGES: [&[u8]; 0] = [];
/// The compute capabilities that there is machine code for, such as 75,80: [the build script](../../build.rs) says which.
#[cfg(feature = "cuda")]
pub(super) const ARCHITECTURES: &str = env!("EASEL_CUDA_ARCHS_BUILT");
#[cfg(not(feature = "cuda"))]
pub(super) const ARCHITECTURES: &str = "none";
/// For compute capability 9.0 alone.
#[cfg(feature = "cuda")]
static HOPPER_IMAGES: [&[u8]; 2] = [
    include_bytes!(concat!(env!("OUT_DIR"), "/attention_hopper.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/geglu_hopper.fatbin")),
];
#[cfg(not(feature = "cuda"))]
static HOPPER_IMAGES: [&[u8]; 0] = [];

/// Shared memory that every kernel may have without asking.
const SHARED_UNASKED: u32 = 48 << 10;

/// Whether this build has kernels.
pub(super) fn built() -> bool {
    !IMAGES.is_empty()
}

/// What to run, and on how much.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    /// The kernel's name, dtype included.
    pub name: String,
    /// Blocks.
    pub grid: [usize; 3],
    /// Threads of each block.
    pub block: usize,
    /// Dynamic shared memory of each block, in bytes.
    pub shared: usize,
}

/// An argument of a kernel, in C's type.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arg {
    /// A pointer.
    At(u64),
    /// `int`.
    Int(usize),
    /// `long long`.
    Long(usize),
    /// `float`.
    Float(f32),
}

/// Kernels that wait by themselves for the one before them (`griddepcontrol.wait`), so that they may be started early.
const WAITING: [&str; 12] = [
    "after_conv_",
    "join_",
    "moments_",
    "group_norm_",
    "layer_norm_",
    "silu_",
    "quick_gelu_",
    "add_",
    "upsample_nearest_",
    "geglu_f16",
    "geglu_bf16",
    "geglu_f32",
];

pub(super) struct Kernels {
    /// Whether the GPU starts kernels early: from Hopper on.
    launches_ahead: bool,
    modules: Vec<sys::CUmodule>,
    found: Mutex<HashMap<String, (CUfunction, u32)>>,
}

impl Kernels {
    /// Loads the images that fit this GPU; nothing is compiled where one was built for it.
    pub(super) fn load(generation: usize, is_hopper: bool) -> Result<Self> {
        let load = |image: &&[u8]| {
            let mut module = null_mut();
            // SAFETY: an image that nvcc made, whole in memory.
            check_opening("cuModuleLoadData", unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) })?;
            Ok(module)
        };
        let launches_ahead = generation >= 9;
        let images = IMAGES.iter().chain(HOPPER_IMAGES.iter().filter(|_| is_hopper));
        Ok(Self { launches_ahead, modules: images.map(load).collect::<Result<_>>()?, found: Mutex::default() })
    }

    pub(super) fn launch(&self, stream: CUstream, launch: Launch, args: &[Arg]) -> Result<()> {
        let Launch { name, grid, block, shared } = launch;
        let function = self.function(&name, shared as u32)?;
        let mut words: Vec<u64> = args.iter().map(|arg| arg.word()).collect();
        let mut pointers: Vec<*mut c_void> = words.iter_mut().map(|word| std::ptr::from_mut(word).cast()).collect();
        let [x, y, z] = grid.map(|count| count as u32);
        let value = CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
        let id = CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        let mut attribute = CUlaunchAttribute { id, pad: [0; 4], value };
        let ahead = self.launches_ahead && WAITING.iter().any(|waiting| name.starts_with(waiting));
        let config = CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: block as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared as u32,
            hStream: stream,
            attrs: &mut attribute,
            numAttrs: u32::from(ahead),
        };
        // SAFETY: the arguments are those of the kernel's signature; each word holds one, little end first.
        check(&name, unsafe { sys::cuLaunchKernelEx(&config, function, pointers.as_mut_ptr(), null_mut()) })
    }

    fn function(&self, name: &str, shared: u32) -> Result<CUfunction> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let (function, allowed) = match found.get(name) {
            Some(known) => *known,
            None => (self.find(name)?, SHARED_UNASKED),
        };
        if shared > allowed {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a loaded module.
            let code = unsafe { sys::cuFuncSetAttribute(function, attribute, shared as i32) };
            check(&format!("cuFuncSetAttribute: {shared} bytes of shared memory for {name}"), code)?;
        }
        found.insert(name.to_string(), (function, allowed.max(shared)));
        Ok(function)
    }

    fn find(&self, name: &str) -> Result<CUfunction> {
        let text = CString::new(name).map_err(|error| GpuError::call("a kernel's name", error))?;
        for &module in &self.modules {
            let mut function = null_mut();
            // SAFETY: a loaded module and a terminated name.
            if check(name, unsafe { sys::cuModuleGetFunction(&mut function, module, text.as_ptr()) }).is_ok() {
                return Ok(function);
            }
        }
        Err(GpuError::Unavailable(format!("there is no kernel {name}")))
    }
}

impl Arg {
    fn word(self) -> u64 {
        match self {
            Self::At(address) => address,
            Self::Int(value) => u64::from(value as i32 as u32),
            Self::Long(value) => value as u64,
            Self::Float(value) => u64::from(value.to_bits()),
        }
    }
}

#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests {
    use super::*;
    use std::{collections::BTreeSet, env, fs, path::PathBuf, process::Command};

    /// NVIDIA's own reader of these files, of CUDA 13 (in its toolkit, and on PyPI as nvidia-cuda-cuobjdump).
    fn cuobjdump(arguments: &[&str], image: &[u8]) -> String {
        let beside_nvcc = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin/cuobjdump"));
        let program = beside_nvcc.filter(|path| path.exists()).unwrap_or_else(|| "cuobjdump".into());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernels.fatbin");
        fs::write(&path, image).unwrap();
        let output = Command::new(&program).args(arguments).arg(&path).output();
        let output = output.unwrap_or_else(|error| panic!("{}: {error}: put it on the PATH", program.display()));
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn kernels(architecture: &str, image: &[u8]) -> BTreeSet<String> {
        let symbols = cuobjdump(&["-symbols", "-arch", architecture], image);
        let kernels = symbols.lines().filter(|line| line.contains("STO_ENTRY"));
        kernels.filter_map(|line| line.split_whitespace().last()).map(str::to_string).collect()
    }

    #[test]
    fn each_kernel_has_machine_code_for_each_architecture_and_ptx_of_the_last() {
        let architectures: Vec<String> = ARCHITECTURES.split(',').map(|name| format!("sm_{name}")).collect();
        for (index, image) in IMAGES.iter().enumerate() {
            let first = kernels(&architectures[0], image);
            assert!(!first.is_empty(), "image {index}");
            for architecture in &architectures {
                assert_eq!(kernels(architecture, image), first, "image {index}, {architecture}");
            }
            let ptx = cuobjdump(&["--list-ptx"], image);
            let newest = format!(".{}.ptx", architectures[architectures.len() - 1]);
            assert!(ptx.lines().count() == 1 && ptx.trim().ends_with(&newest), "image {index}: {ptx}");
        }
        for image in HOPPER_IMAGES {
            assert!(!kernels("sm_90a", image).is_empty());
        }
    }
}
