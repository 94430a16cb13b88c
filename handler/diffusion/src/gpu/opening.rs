//! Opening a GPU, and how long each part of that takes. Refuses GPUs that there are no kernels for.

use super::{
    Gpu, GpuError, Inner, Meter, Result,
    arena::{self, Arena},
    check, driver,
    kernels::{self, Kernels},
    library, lock,
};
use cudarc::driver::sys::{self, CUdevice_attribute};
use std::{
    ffi::c_char,
    ptr::null_mut,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

/// The oldest compute capability for which there are kernels: Turing's.
const OLDEST: (usize, usize) = (7, 5);
const NO_DRIVER: &str = "no NVIDIA driver: libcuda.so.1 cannot be opened; install driver 580 or newer, give the container the GPU (`--gpus all`, \
                         or nvidia.com/gpu in the pod's limits), and let LD_LIBRARY_PATH name its folder";

impl Gpu {
    /// Opens the GPU of that number, as `CUDA_VISIBLE_DEVICES` counts them.
    ///
    /// # Errors
    /// No driver or one that is too old, no such GPU, or a build without kernels for it; the message says which, and what helps.
    pub fn open(number: i32) -> Result<Self> {
        let mut clock = Instant::now();
        let mut opening = Vec::new();
        let mut lap = |what| {
            opening.push((what, clock.elapsed()));
            clock = Instant::now();
        };
        if !kernels::built() {
            return Err(GpuError::Unavailable("this build has no GPU kernels: build it with `--features cuda`".into()));
        }
        library::open_ahead();
        // SAFETY: looks for the library and calls nothing.
        if !unsafe { sys::is_culib_present() } {
            return Err(GpuError::Unavailable(NO_DRIVER.into()));
        }
        driver::check_version()?;
        // SAFETY: initialises the driver; may be called again.
        driver::check_opening("cuInit", unsafe { sys::cuInit(0) })?;
        let mut device = 0;
        // SAFETY: writes the device's handle.
        driver::check_opening("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, number) })?;
        let mut context = null_mut();
        // SAFETY: the primary context lives until the process ends.
        driver::check_opening("cuDevicePrimaryCtxRetain", unsafe {
            sys::cuDevicePrimaryCtxRetain(&mut context, device)
        })?;
        // SAFETY: a context from the line above.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(context) })?;
        lap("context");
        let mut stream = null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes the stream's handle.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
        let (generation, minor) = capability(device)?;
        let name = device_name(device)?;
        if (generation, minor) < OLDEST {
            let text =
                format!("{name} has compute capability {generation}.{minor}, the least is {}.{}", OLDEST.0, OLDEST.1);
            return Err(GpuError::Unavailable(text));
        }
        let is_hopper = (generation, minor) == (9, 0);
        let kernels = Kernels::load(generation, is_hopper)?;
        lap("kernels");
        let meter = Arc::new(Meter::default());
        let arena = || Ok::<_, GpuError>(Arc::new(Mutex::new(Arena::new(device, arena::PAGE, meter.clone())?)));
        let gpu = Self(Arc::new(Inner {
            device,
            context,
            stream,
            name,
            multiprocessors: attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            generation,
            is_hopper,
            kernels,
            resident: arena()?,
            scratch: arena()?,
            matmuls: OnceLock::new(),
            convolutions: OnceLock::new(),
            lanes: Mutex::default(),
            factors: Mutex::default(),
            tuned: Mutex::default(),
            meter: meter.clone(),
            opening: Mutex::default(),
        }));
        lap("memory");
        *lock(&gpu.0.opening) = opening;
        Ok(gpu)
    }

    /// Opens cuBLASLt and cuDNN; without it their first use does.
    ///
    /// # Errors
    /// A library that is missing.
    pub fn open_libraries(&self) -> Result<()> {
        self.enter()?;
        let clock = Instant::now();
        drop(self.matmuls()?);
        self.note("cublaslt", clock);
        let clock = Instant::now();
        drop(self.convolutions()?);
        self.note("cudnn", clock);
        Ok(())
    }

    /// Notes how long a part of getting ready took.
    pub(crate) fn note(&self, what: &'static str, since: Instant) {
        lock(&self.0.opening).push((what, since.elapsed()));
    }

    /// Notes what first uses of the libraries cost, of what was noted before.
    pub(crate) fn note_firsts(&self) -> Result<()> {
        let ([product_plans, product_loads], [plans, loads]) =
            (self.matmuls()?.firsts(), self.convolutions()?.firsts());
        let names = ["product_plans", "product_loads", "conv_plans", "conv_loads"];
        lock(&self.0.opening).extend(names.into_iter().zip([product_plans, product_loads, plans, loads]));
        Ok(())
    }

    /// How long each part of opening took.
    pub fn opening(&self) -> Vec<(&'static str, Duration)> {
        lock(&self.0.opening).clone()
    }

    /// Its compute capability, as 9 and 0.
    ///
    /// # Errors
    /// The driver's.
    pub fn compute_capability(&self) -> Result<(usize, usize)> {
        capability(self.0.device)
    }
}

fn capability(device: i32) -> Result<(usize, usize)> {
    let major = attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Ok((major, attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
}

fn attribute(device: i32, which: CUdevice_attribute) -> Result<usize> {
    let mut value = 0;
    // SAFETY: writes one number.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) })?;
    Ok(value as usize)
}

fn device_name(device: i32) -> Result<String> {
    let mut bytes = [0 as c_char; 256];
    // SAFETY: writes at most as many bytes as it is told.
    check("cuDeviceGetName", unsafe { sys::cuDeviceGetName(bytes.as_mut_ptr(), bytes.len() as i32, device) })?;
    let bytes: Vec<u8> = bytes.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8).collect();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
