//! Our own kernels: compiled into the binary by the build script, loaded once, found by name. cudarc's own loading copies the
//! image and needs NVRTC's bindings, and its launches cannot start a kernel early.

use super::{GpuError, Result, check, driver::check_opening};
use cudarc::driver::{
    CudaStream,
    sys::{
        self, CUfunction, CUfunction_attribute, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
        CUlaunchAttributeValue_union__bindgen_ty_1 as Cluster, CUlaunchConfig,
    },
};
use std::{
    collections::HashMap,
    ffi::{CString, c_void},
    ptr::null_mut,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Machine code, empty in a build without kernels.
static IMAGES: &[&[u8]] = include!(concat!(env!("OUT_DIR"), "/images.rs"));
/// For compute capability 9.0 alone.
static HOPPER_IMAGES: &[&[u8]] = include!(concat!(env!("OUT_DIR"), "/hopper_images.rs"));
/// The compute capabilities that there is machine code for, such as 75,80: [the build script](../../build.rs) says which.
pub(super) const ARCHITECTURES: &str = env!("EASEL_CUDA_ARCHS_BUILT");
/// Kernels, without the dtype in their names, that may start before the kernel ahead has ended, because they wait for it themselves
/// (`EXPORT_EARLY` and `STARTS_EARLY` in `kernels/`).
const EARLY: &[&str] = include!(concat!(env!("OUT_DIR"), "/early_kernels.rs"));

/// Numbers that kernels declare (`RUST_CONSTANT` in `kernels/`).
pub(crate) mod constants {
    include!(concat!(env!("OUT_DIR"), "/kernel_constants.rs"));
}

/// Dynamic shared memory that needs no permission.
const SHARED_UNASKED: u32 = 48 << 10;

/// Whether this build has kernels.
pub(super) fn built() -> bool {
    !IMAGES.is_empty()
}

/// What to run, and on how much.
#[derive(Debug, Clone, PartialEq, Eq)]
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

pub(super) struct Kernels {
    /// Whether the GPU can start kernels early: from Hopper on.
    starts_early: bool,
    /// Whether the next one must not.
    next_late: AtomicBool,
    modules: Vec<sys::CUmodule>,
    found: Mutex<HashMap<String, Found>>,
}

// SAFETY: modules and functions are never unloaded, and the driver takes them from any thread.
unsafe impl Send for Kernels {}
// SAFETY: as above; the map lies behind a mutex.
unsafe impl Sync for Kernels {}

#[derive(Clone, Copy)]
struct Found {
    function: CUfunction,
    /// Dynamic shared memory that it may have.
    shared: u32,
    starts_early: bool,
}

impl Kernels {
    /// Loads the images that fit this GPU; nothing is compiled where one was built for it.
    pub(super) fn load(starts_early: bool, is_hopper: bool) -> Result<Self> {
        let load = |image: &&[u8]| {
            let mut module = null_mut();
            // SAFETY: an image that nvcc made, whole in memory.
            let code = unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) };
            check_opening("cuModuleLoadData", code.result())?;
            Ok(module)
        };
        let images = IMAGES.iter().chain(HOPPER_IMAGES.iter().filter(|_| is_hopper));
        Ok(Self {
            starts_early,
            next_late: AtomicBool::new(false),
            modules: images.map(load).collect::<Result<_>>()?,
            found: Mutex::default(),
        })
    }

    /// The next kernel starts when all before it is done, whatever its name is.
    pub(super) fn start_next_late(&self) {
        self.next_late.store(true, Ordering::Relaxed);
    }

    /// Enqueues a kernel.
    ///
    /// # Safety
    /// As for [`super::Gpu::launch`], of which the stream is one.
    pub(super) unsafe fn launch(&self, stream: &CudaStream, launch: Launch, args: &[Arg]) -> Result<()> {
        let Some(words) = args.iter().map(|arg| arg.word()).collect::<Option<Vec<u64>>>() else {
            return Err(GpuError::Unavailable(format!("{}: {args:?} is too much", launch.name)));
        };
        let each: Vec<&[u64]> = words.chunks(1).collect();
        // SAFETY: each word holds one argument, little end first; the caller promises the rest.
        unsafe { self.launch_words(stream, launch, 1, &each) }
    }

    /// Enqueues a kernel whose arguments are given as they lie in memory, each from a multiple of 8 bytes on. Blocks with the same first two
    /// numbers are clusters of so many; with more than 1, this needs Hopper.
    ///
    /// # Safety
    /// As for [`super::Gpu::launch`]. Each argument has as many words as its type in the kernel's signature.
    pub(super) unsafe fn launch_words(
        &self,
        stream: &CudaStream,
        launch: Launch,
        cluster: usize,
        args: &[&[u64]],
    ) -> Result<()> {
        let Launch { name, grid, block, shared } = launch;
        if grid.iter().any(|&count| u32::try_from(count).is_err()) {
            return Err(GpuError::Unavailable(format!("{name} in blocks of {grid:?} is too much")));
        }
        let Found { function, starts_early, .. } = self.function(&name, shared as u32)?;
        let mut pointers: Vec<*mut c_void> = args.iter().map(|words| words.as_ptr().cast_mut().cast()).collect();
        let [x, y, z] = grid.map(|count| count as u32);
        let early = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let size = Cluster { x: 1, y: 1, z: cluster as u32 };
        let clusters = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value: CUlaunchAttributeValue { clusterDim: size },
        };
        let starts_early = starts_early && !self.next_late.swap(false, Ordering::Relaxed);
        let chosen = [starts_early.then_some(early), (cluster > 1).then_some(clusters)];
        let mut attributes: Vec<CUlaunchAttribute> = chosen.into_iter().flatten().collect();
        let config = CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: block as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared as u32,
            hStream: stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: the driver reads the arguments before it returns, and writes none; the caller promises the rest.
        check(&name, unsafe { sys::cuLaunchKernelEx(&config, function, pointers.as_mut_ptr(), null_mut()) })
    }

    fn function(&self, name: &str, shared: u32) -> Result<Found> {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let mut known = match found.get(name) {
            Some(known) => *known,
            None => {
                let starts_early = self.starts_early && is_early(name);
                Found { function: self.find(name)?, shared: SHARED_UNASKED, starts_early }
            }
        };
        if shared > known.shared {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: a function of a loaded module.
            let code = unsafe { sys::cuFuncSetAttribute(known.function, attribute, shared as i32) };
            check(&format!("cuFuncSetAttribute: {shared} bytes of shared memory for {name}"), code)?;
            known.shared = shared;
        }
        found.insert(name.to_string(), known);
        Ok(known)
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

/// Whether a kernel starts early; after its name come the dtype and perhaps more.
fn is_early(name: &str) -> bool {
    let kernel = ["_f16", "_bf16", "_f32"].iter().find_map(|dtype| {
        let (kernel, rest) = name.split_once(dtype)?;
        (rest.is_empty() || rest.starts_with('_')).then_some(kernel)
    });
    kernel.is_some_and(|kernel| EARLY.contains(&kernel))
}

impl Arg {
    /// As C has it, if it fits.
    fn word(&self) -> Option<u64> {
        match *self {
            Self::At(address) => Some(address),
            Self::Int(value) => u64::try_from(i32::try_from(value).ok()?).ok(),
            Self::Long(value) => u64::try_from(i64::try_from(value).ok()?).ok(),
            Self::Float(value) => Some(u64::from(value.to_bits())),
        }
    }

    /// As the fields of a C struct lie in memory, if they fit.
    pub(crate) fn packed(fields: &[Self]) -> Option<Vec<u64>> {
        let mut words = Vec::new();
        let mut half: Option<u64> = None;
        for field in fields {
            let word = field.word()?;
            match (field, half.take()) {
                (Self::At(_) | Self::Long(_), before) => words.extend(before.into_iter().chain([word])),
                (Self::Int(_) | Self::Float(_), None) => half = Some(word),
                (Self::Int(_) | Self::Float(_), Some(before)) => words.push(before | word << 32),
            }
        }
        words.extend(half);
        Some(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, path::Path};

    #[test]
    fn fields_lie_as_in_a_c_struct() {
        let all = [Arg::At(7), Arg::Int(1), Arg::Float(1.0), Arg::Int(2), Arg::Long(9), Arg::Int(3)];
        assert_eq!(Arg::packed(&all), Some(vec![7, 1 | 0x3f80_0000 << 32, 2, 9, 3]));
        assert_eq!(Arg::packed(&[Arg::Int(1 << 31)]), None);
    }

    #[test]
    fn those_kernels_start_early_that_wait_for_the_one_before() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
        let (mut waiting, mut others) = (Vec::new(), Vec::new());
        for file in fs::read_dir(folder).unwrap() {
            let source = fs::read_to_string(file.unwrap().path()).unwrap();
            // Each kernel's body, to the brace at the start of a line that ends it.
            for part in source.split("__device__ __forceinline__ void ").skip(1) {
                let Some((name, rest)) = part.split_once("_body(") else { continue };
                let body = rest.split("\n}").next().unwrap();
                if name.contains(char::is_whitespace) {
                    continue;
                }
                // By itself, or in a function that it hands this to.
                let waits = body.contains("wait_for_last(early)") || body.contains(">(early, ");
                if waits && body.contains("let_next_start(early)") { &mut waiting } else { &mut others }
                    .push(name.to_string());
            }
        }
        waiting.sort();
        let mut early: Vec<_> = EARLY.to_vec();
        early.sort_unstable();
        assert_eq!(waiting, early);
        for dtype in ["f16", "bf16", "f32"] {
            assert!(waiting.iter().all(|kernel| is_early(&format!("{kernel}_{dtype}"))));
            assert!(others.iter().all(|kernel| !is_early(&format!("{kernel}_{dtype}"))), "{others:?}");
        }
        assert!(!others.is_empty() && is_early("linear_geglu_f16_128") && is_early("attention_f16_40"));
        assert!(is_early("product_hopper_bf16_rows_80"));
    }

    #[test]
    fn an_argument_that_c_cannot_hold_is_none() {
        assert_eq!(Arg::Int(1 << 31).word(), None);
        assert_eq!(Arg::Int((1 << 31) - 1).word(), Some((1 << 31) - 1));
        assert_eq!(Arg::Long(usize::MAX).word(), None);
        assert_eq!(Arg::Float(1.0).word(), Some(0x3f80_0000));
    }
}

/// Tests of the machine code, which need nvcc and no GPU.
#[cfg(test)]
#[cfg(feature = "cuda")]
mod image_tests {
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
