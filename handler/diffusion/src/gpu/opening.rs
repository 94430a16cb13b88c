//! Opening a GPU, and how long each part of that takes.

use super::{
    Generation, Gpu, GpuError, Inner, Meter, Result,
    arena::{self, Arena},
    check_safe, driver,
    kernels::{self, Kernels},
    lock,
};
use cudarc::driver::{
    CudaContext, result,
    sys::{self, CUdevice, CUdevice_attribute},
};
use libloading::os::unix::{Library, RTLD_LAZY, RTLD_LOCAL};
use std::{
    mem,
    sync::{Arc, Mutex, OnceLock, atomic::AtomicBool},
    thread,
    time::{Duration, Instant},
};

/// CUDA's libraries, by the names that the dynamic linker knows them by.
const LIBRARIES: [&[&str]; 2] = [&["libcublasLt.so", "libcublasLt.so.13"], &["libcudnn.so", "libcudnn.so.9"]];
const NO_DRIVER: &str = "no NVIDIA driver: libcuda.so.1 cannot be opened; install driver 580 or newer, give the container the GPU (`--gpus all`, \
                         or nvidia.com/gpu in the pod's limits), and let LD_LIBRARY_PATH name its folder";

impl Gpu {
    /// Opens the GPU of that number, as `CUDA_VISIBLE_DEVICES` counts them.
    ///
    /// # Errors
    /// No driver or one that is too old, no such GPU, or a build without kernels for it; the message says which, and what helps.
    pub fn open(number: i32) -> Result<Self> {
        Self::open_with(number, None)
    }

    /// The same, but with kernels of that generation or of an older one.
    ///
    /// # Errors
    /// As of [`Gpu::open`], or the GPU does not run that generation's kernels.
    pub fn open_with(number: i32, at_most: Option<Generation>) -> Result<Self> {
        let mut clock = Instant::now();
        let mut opening = Vec::new();
        let mut lap = |what| {
            opening.push((what, clock.elapsed()));
            clock = Instant::now();
        };
        if !kernels::built() {
            return Err(GpuError::Unavailable("this build has no GPU kernels: build it with `--features cuda`".into()));
        }
        // SAFETY: looks for the library and calls nothing.
        if !unsafe { sys::is_culib_present() } {
            return Err(GpuError::Unavailable(NO_DRIVER.into()));
        }
        driver::check_version()?;
        driver::check_opening("cuInit", result::init())?;
        let device = driver::check_opening("cuDeviceGet", result::device::get(number))?;
        let attribute = |which| attribute(device, which);
        let capability = capability(device)?;
        let own = Generation::of(capability);
        if own == Some(Generation::Hopper) && at_most.is_none_or(|at_most| at_most == Generation::Hopper) {
            open_ahead();
        }
        let context = CudaContext::new(usize::try_from(number).unwrap_or_default());
        let context = driver::check_opening("cuDevicePrimaryCtxRetain", context)?;
        // It lives until the process ends, because cuBLASLt and cuDNN keep memory in it.
        mem::forget(context.clone());
        // With it, a new stream would wait for all others.
        // SAFETY: cudarc tracks its own arrays alone, and there are none.
        unsafe { context.disable_event_tracking() };
        lap("context");
        let stream = check_safe("cuStreamCreate", context.new_stream())?;
        let name = check_safe("cuDeviceGetName", context.name())?;
        let (major, minor) = capability;
        let Some(own) = own else {
            let text = format!("{name} has compute capability {major}.{minor}, the least is {}", Generation::Turing);
            return Err(GpuError::Unavailable(text));
        };
        let code = Generation::of_code(capability, kernels::ARCHITECTURES).unwrap_or(Generation::Turing);
        if let Some(asked) = at_most.filter(|&asked| asked > own.min(code)) {
            let text = format!(
                "{name} has compute capability {major}.{minor} and this build has kernels for {}: those of {asked} do not run",
                kernels::ARCHITECTURES
            );
            return Err(GpuError::Unavailable(text));
        }
        let generation = at_most.unwrap_or(own).min(code);
        let is_hopper = generation == Generation::Hopper;
        // Others than Hopper have early starts, too; those who ask for an older generation's kernels do without them.
        let kernels = Kernels::load(major >= 9 && at_most.is_none_or(|asked| asked == own), is_hopper)?;
        lap("kernels");
        let meter = Arc::new(Meter::default());
        let arena =
            || Ok::<_, GpuError>(Arc::new(Mutex::new(Arena::new(context.cu_device(), arena::PAGE, meter.clone())?)));
        let gpu = Self(Arc::new(Inner {
            name,
            multiprocessors: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            generation,
            copies_ahead: code >= Generation::Ampere,
            shared: [
                attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
                attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?,
            ],
            kernels,
            resident: arena()?,
            scratch: arena()?,
            trims: Mutex::default(),
            unpinned: AtomicBool::new(false),
            matmuls: OnceLock::new(),
            convolutions: OnceLock::new(),
            lanes: Mutex::default(),
            few_lanes: AtomicBool::new(false),
            factors: Mutex::default(),
            tuned: Mutex::default(),
            meter: meter.clone(),
            opening: Mutex::default(),
            stream,
            context,
        }));
        lap("memory");
        *lock(&gpu.0.opening) = opening;
        Ok(gpu)
    }

    /// The first GPU, with the kernels of the generation in `EASEL_KERNELS_OF` if that is set.
    #[cfg(all(test, feature = "cuda"))]
    pub(crate) fn for_tests() -> Self {
        let at_most = std::env::var("EASEL_KERNELS_OF").ok();
        let at_most = at_most.map(|name| name.parse().expect("a generation in EASEL_KERNELS_OF"));
        Self::open_with(0, at_most).expect("a GPU")
    }

    /// Opens cuBLASLt and cuDNN, where they are used, which otherwise happens at their first use.
    ///
    /// # Errors
    /// A library that is missing.
    pub fn open_libraries(&self) -> Result<()> {
        self.enter()?;
        if !self.has_libraries() {
            return Ok(());
        }
        let clock = Instant::now();
        drop(self.matmuls()?);
        self.note("cublaslt", clock);
        let clock = Instant::now();
        drop(self.convolutions()?);
        self.note("cudnn", clock);
        Ok(())
    }

    /// Notes how long a part of the start took.
    pub(crate) fn note(&self, what: &'static str, since: Instant) {
        lock(&self.0.opening).push((what, since.elapsed()));
    }

    /// Notes how long first uses of the libraries took. These times are parts of what was noted before.
    pub(crate) fn note_firsts(&self) -> Result<()> {
        if !self.has_libraries() {
            return Ok(());
        }
        let ([product_plans, product_loads], [plans, loads]) =
            (self.matmuls()?.firsts(), self.convolutions()?.firsts());
        let names = ["product_plans", "product_loads", "conv_plans", "conv_loads"];
        lock(&self.0.opening).extend(names.into_iter().zip([product_plans, product_loads, plans, loads]));
        Ok(())
    }

    /// How long each part of the start took.
    pub fn opening(&self) -> Vec<(&'static str, Duration)> {
        lock(&self.0.opening).clone()
    }

    /// The compute capability, such as 9 and 0.
    ///
    /// # Errors
    /// The driver's.
    pub fn compute_capability(&self) -> Result<(usize, usize)> {
        capability(self.0.context.cu_device())
    }

    /// Whose kernels are used.
    pub fn generation(&self) -> Generation {
        self.0.generation
    }
}

fn capability(device: CUdevice) -> Result<(usize, usize)> {
    let major = attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Ok((major, attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
}

fn attribute(device: CUdevice, which: CUdevice_attribute) -> Result<usize> {
    // SAFETY: a device that the driver has named.
    Ok(check_safe("cuDeviceGetAttribute", unsafe { result::device::get_attribute(device, which) })? as usize)
}

/// Begins to open the libraries, which are large, on threads of their own while the driver makes a context, and keeps them open. A
/// library that is missing is reported by its first user.
fn open_ahead() {
    for names in LIBRARIES {
        thread::spawn(move || {
            for name in names {
                // SAFETY: the vendor's libraries, whose initialisers only set their own tables up.
                if let Ok(library) = unsafe { Library::open(Some(*name), RTLD_LAZY | RTLD_LOCAL) } {
                    mem::forget(library);
                    return;
                }
            }
        });
    }
}
