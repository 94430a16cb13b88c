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
use std::{
    mem,
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::{Duration, Instant},
};

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
        let context = CudaContext::new(usize::try_from(number).unwrap_or_default());
        let context = driver::check_opening("cuDevicePrimaryCtxRetain", context)?;
        // It lives until the process ends, because kernels are never unloaded.
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
            lanes: Mutex::default(),
            few_lanes: AtomicBool::new(false),
            staging: Mutex::default(),
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

    /// Notes how long a part of the start took.
    pub(crate) fn note(&self, what: &'static str, since: Instant) {
        lock(&self.0.opening).push((what, since.elapsed()));
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
