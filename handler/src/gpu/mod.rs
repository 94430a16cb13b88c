//! The GPU: memory, kernels, matrix products, convolutions and graphs of NVIDIA's CUDA, without anything of Stable Diffusion.
//!
//! Its libraries are opened at run time, so one binary runs with and without a GPU. Everything goes to one stream, in order.
//! Activations are `[batch, height, width, channels]`, which is `[batch, tokens, channels]` too.

#![allow(unsafe_code, reason = "CUDA is a C interface; each call says why it holds")]

mod arena;
mod array;
pub(crate) mod conv;
mod cublaslt;
mod cudnn;
mod error;
mod event;
mod graph;
mod kernels;
mod library;
pub(crate) mod matmul;
mod place;
#[cfg(all(test, feature = "cuda"))]
mod shortage;
mod tuned;

pub(crate) use array::{Array, Moments, Pinned};
pub use error::GpuError;
pub(crate) use error::{Result, tells_of_memory};
pub(crate) use event::Event;
pub(crate) use graph::Graph;
pub(crate) use kernels::{Arg, Launch};
pub(crate) use place::{Layout, Placed, Product, Source};

#[cfg(all(test, feature = "cuda"))]
pub(crate) use shortage::Shortage;

use arena::Arena;
use conv::Convolutions;
use cudarc::driver::sys::{self, CUcontext, CUdevice_attribute, CUmemorytype, CUresult, CUstream};
use kernels::Kernels;
use matmul::Matmuls;
use place::Lane;
use serde::{Deserialize, Serialize};
use std::{
    ffi::c_char,
    ptr::{null, null_mut},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};
use tuned::Tuned;

/// The oldest compute capability for which there are kernels: Turing's.
const OLDEST: (usize, usize) = (7, 5);
/// What cuBLASLt may use to sum in parts.
const MATMUL_WORKSPACE: usize = 32 << 20;

/// Floating-point type of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Dtype {
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// IEEE single.
    F32,
}

impl Dtype {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
        }
    }

    /// As in the kernels' names.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F32 => "f32",
        }
    }
}

/// How much of a GPU's memory is taken, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// By whomever.
    pub used: u64,
    /// There is.
    pub total: u64,
}

/// One GPU. Cheap to clone.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    device: i32,
    context: CUcontext,
    stream: CUstream,
    name: String,
    multiprocessors: usize,
    /// First number of the compute capability: 7 Turing, 8 Ampere and Ada, 9 Hopper.
    generation: usize,
    is_hopper: bool,
    kernels: Kernels,
    /// Arrays that live for a while: weights, what graphs read and write.
    resident: Arc<Mutex<Arena>>,
    /// Arrays between one operation and the next. Graphs use it too: what lives across a graph's run must not lie here.
    scratch: Arc<Mutex<Arena>>,
    matmuls: OnceLock<Mutex<Matmuls>>,
    convolutions: OnceLock<Mutex<Convolutions>>,
    lanes: Mutex<Vec<Lane>>,
    /// A LoRA's factors on their way.
    factors: Mutex<Option<Pinned>>,
    tuned: Mutex<Tuned>,
    meter: Arc<Meter>,
    opening: Mutex<Vec<(&'static str, Duration)>>,
}

// SAFETY: a CUDA context and stream may be used from any thread that has made the context current, see `Gpu::enter`.
unsafe impl Send for Inner {}
// SAFETY: CUDA's functions are thread-safe, and what is not lies behind a mutex.
unsafe impl Sync for Inner {}

/// Bytes of the GPU's memory that are ours.
#[derive(Default)]
pub(crate) struct Meter {
    now: AtomicUsize,
    peak: AtomicUsize,
}

impl Meter {
    fn add(&self, bytes: usize) {
        let now = self.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.peak.fetch_max(now, Ordering::Relaxed);
    }

    fn remove(&self, bytes: usize) {
        self.now.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Gpu {
    /// Opens the GPU of that number, as `CUDA_VISIBLE_DEVICES` counts them.
    ///
    /// # Errors
    /// No driver, no such GPU, or a build without kernels; the message says which.
    pub fn open(number: i32) -> Result<Self> {
        let mut clock = Instant::now();
        let mut opening = Vec::new();
        let mut lap = |what| {
            opening.push((what, clock.elapsed()));
            clock = Instant::now();
        };
        if !kernels::built() {
            return Err(GpuError::Unavailable("this build has no GPU kernels: build with `--features cuda`".into()));
        }
        library::open_ahead();
        // SAFETY: looks for the library and calls nothing.
        if !unsafe { sys::is_culib_present() } {
            return Err(GpuError::Unavailable("no NVIDIA driver: libcuda.so.1 cannot be opened".into()));
        }
        // SAFETY: initialises the driver; may be called again.
        check("cuInit", unsafe { sys::cuInit(0) })?;
        let mut device = 0;
        // SAFETY: writes the device's handle.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, number) })?;
        let mut context = null_mut();
        // SAFETY: the primary context lives until the process ends.
        check("cuDevicePrimaryCtxRetain", unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) })?;
        // SAFETY: a context from the line above.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(context) })?;
        lap("context");
        let mut stream = null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: writes the stream's handle.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
        let generation = attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
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

    /// Makes the context current on this thread: first thing to do on a thread that may be new.
    ///
    /// # Errors
    /// The driver's.
    pub fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as the process.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.0.context) })
    }

    /// As the vendor calls it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// How many of its processors work at once.
    pub(crate) fn multiprocessors(&self) -> usize {
        self.0.multiprocessors
    }

    /// Whether fused kernels do that dtype here.
    pub(crate) fn fuses(&self, dtype: Dtype) -> bool {
        match dtype {
            Dtype::F16 => true,
            Dtype::BF16 => self.copies_ahead(),
            Dtype::F32 => false,
        }
    }

    /// Whether it has what kernels for Hopper need.
    pub(crate) fn is_hopper(&self) -> bool {
        self.0.is_hopper
    }

    /// Whether memory can be copied to a block while it computes: from Ampere on.
    pub(crate) fn copies_ahead(&self) -> bool {
        self.0.generation >= 8
    }

    /// The most bytes held at once; without the driver's own.
    pub fn peak_bytes(&self) -> usize {
        self.0.meter.peak.load(Ordering::Relaxed)
    }

    /// Bytes held now.
    pub fn bytes(&self) -> usize {
        self.0.meter.now.load(Ordering::Relaxed)
    }

    /// Waits until everything is done that was asked for.
    ///
    /// # Errors
    /// What went wrong since the last wait.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: our own stream.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.0.stream) })
    }

    /// Whether nothing can be computed on it any more: after a broken memory access or a fault of the chip, every call of this process
    /// fails. Waits.
    pub fn is_lost(&self) -> bool {
        // An error that is only late is told once.
        self.enter().is_err() || (self.synchronize().is_err() && self.synchronize().is_err())
    }

    /// A new array that lives for a while; not cleared.
    pub(crate) fn resident(&self, dims: &[usize], dtype: Dtype) -> Result<Array> {
        Array::new(self, &self.0.resident, dims, dtype)
    }

    /// A new array between operations; not cleared.
    pub(crate) fn scratch(&self, dims: &[usize], dtype: Dtype) -> Result<Array> {
        Array::new(self, &self.0.scratch, dims, dtype)
    }

    /// Gives unused scratch memory back to the driver. Graphs that were captured before must not run afterwards.
    pub(crate) fn trim(&self) -> Result<()> {
        self.synchronize()?;
        lock(&self.0.scratch).trim()
    }

    /// Fills an array with zeros.
    pub(crate) fn clear(&self, array: &Array) -> Result<()> {
        self.fill(array, 0)
    }

    /// Fills an array with a byte.
    pub(crate) fn fill(&self, array: &Array, byte: u8) -> Result<()> {
        // SAFETY: the array's own range.
        check("cuMemsetD8Async", unsafe { sys::cuMemsetD8Async(array.address(), byte, array.bytes(), self.0.stream) })
    }

    /// Copies `from`, which may be some columns of something, to the contiguous `to` of the same dims.
    pub(crate) fn copy(&self, from: &Array, to: &Array) -> Result<()> {
        if from.dims() != to.dims() || from.dtype() != to.dtype() || !to.is_contiguous() {
            return Err(GpuError::Unavailable(format!("a copy of {:?} to {:?}", from.dims(), to.dims())));
        }
        let width = from.columns() * from.dtype().bytes();
        let copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: null(),
            srcDevice: from.address(),
            srcArray: null_mut(),
            srcPitch: from.row() * from.dtype().bytes(),
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: null_mut(),
            dstDevice: to.address(),
            dstArray: null_mut(),
            dstPitch: width,
            WidthInBytes: width,
            Height: from.rows(),
        };
        // SAFETY: rows of arrays that are alive until the stream has passed them.
        check("cuMemcpy2DAsync", unsafe { sys::cuMemcpy2DAsync_v2(&copy, self.0.stream) })
    }

    pub(crate) fn matmuls(&self) -> Result<MutexGuard<'_, Matmuls>> {
        if self.0.matmuls.get().is_none() {
            let workspace = self.resident(&[MATMUL_WORKSPACE / 4], Dtype::F32)?;
            let made = Matmuls::new(self.0.stream, workspace.address(), MATMUL_WORKSPACE)?;
            if self.0.matmuls.set(Mutex::new(made)).is_ok() {
                // It lives as long as the process.
                std::mem::forget(workspace);
            }
        }
        self.0.matmuls.get().map(lock).ok_or_else(|| GpuError::Unavailable("cuBLASLt is not open".into()))
    }

    pub(crate) fn convolutions(&self) -> Result<MutexGuard<'_, Convolutions>> {
        if self.0.convolutions.get().is_none() {
            let _ = self.0.convolutions.set(Mutex::new(Convolutions::new(self.0.stream)?));
        }
        self.0.convolutions.get().map(lock).ok_or_else(|| GpuError::Unavailable("cuDNN is not open".into()))
    }

    /// Runs a kernel.
    pub(crate) fn launch(&self, launch: Launch, args: &[Arg]) -> Result<()> {
        self.0.kernels.launch(self.0.stream, launch, args)
    }

    fn stream(&self) -> CUstream {
        self.0.stream
    }

    /// An arena of its own, for what may leave.
    fn arena(&self, page: usize) -> Result<Arc<Mutex<Arena>>> {
        Ok(Arc::new(Mutex::new(Arena::new(self.0.device, page, self.0.meter.clone())?)))
    }

    /// Its compute capability, as 9 and 0.
    ///
    /// # Errors
    /// The driver's.
    pub fn compute_capability(&self) -> Result<(usize, usize)> {
        let major = attribute(self.0.device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        Ok((major, attribute(self.0.device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
    }

    /// Bytes that the driver can still give.
    pub fn free_bytes(&self) -> Result<usize> {
        Ok(self.memory_info()?.0)
    }

    /// What all processes together have of the memory.
    ///
    /// # Errors
    /// The driver's.
    pub fn memory(&self) -> Result<Memory> {
        let (free, total) = self.memory_info()?;
        Ok(Memory { used: total.saturating_sub(free) as u64, total: total as u64 })
    }

    /// Free and all bytes.
    fn memory_info(&self) -> Result<(usize, usize)> {
        // Who asks may be the first on its thread.
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok((free, total))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check(call: &str, code: CUresult) -> Result<()> {
    if code == CUresult::CUDA_SUCCESS { Ok(()) } else { Err(GpuError::call(call, code)) }
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
