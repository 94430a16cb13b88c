//! Arrays in the GPU's memory, and copies between them and the host. cudarc's own arrays have neither dims nor fixed addresses.

use super::{Gpu, GpuError, Pinned, Result, arena::Arena, check, lock};
use candle_core::{DType, Device, Tensor};
use cudarc::driver::sys;
use half::{bf16, f16, slice::HalfFloatSliceExt};
use std::sync::{Arc, Mutex};

/// The most bytes that the host reads through pinned memory, which is kept.
const MOST_STAGED: usize = 16 << 20;

/// Floating-point type of weights and activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
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

    /// The name, as in the kernels' names.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F32 => "f32",
        }
    }
}

/// A row-major array. In a view of some columns, rows are further apart. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Array {
    memory: Arc<Memory>,
    /// Elements before the first one.
    start: usize,
    dims: Vec<usize>,
    /// Elements from one row to the next; a row is the last dimension.
    row: usize,
    dtype: Dtype,
    moments: Option<Moments>,
    row_sums: Option<Arc<Array>>,
}

/// Mean and sum of squared deviations for each group of channels of each image, for chunks of its rows.
#[derive(Clone)]
pub(crate) struct Moments {
    /// f32, `[images, groups, chunks of rows, 2]`.
    pub array: Arc<Array>,
    /// Groups of channels.
    pub groups: usize,
}

/// An allocation of an arena.
struct Memory {
    gpu: Gpu,
    arena: Arc<Mutex<Arena>>,
    address: u64,
    bytes: usize,
}

impl Drop for Memory {
    fn drop(&mut self) {
        // The next user of this memory comes later on the same stream.
        lock(&self.arena).give(self.address, self.bytes);
    }
}

impl Array {
    pub(super) fn new(gpu: &Gpu, arena: &Arc<Mutex<Arena>>, dims: &[usize], dtype: Dtype) -> Result<Self> {
        let count = dims.iter().try_fold(dtype.bytes(), |bytes, &dim| bytes.checked_mul(dim));
        let bytes = count.ok_or_else(|| GpuError::Unavailable(format!("{dims:?} is too large")))?;
        let address = lock(arena).take(bytes)?;
        let memory = Arc::new(Memory { gpu: gpu.clone(), arena: arena.clone(), address, bytes });
        let row = dims.last().copied().unwrap_or(1);
        Ok(Self { memory, start: 0, dims: dims.to_vec(), row, dtype, moments: None, row_sums: None })
    }

    /// Whether it lies in that arena.
    pub(super) fn is_in(&self, arena: &Arc<Mutex<Arena>>) -> bool {
        Arc::ptr_eq(&self.memory.arena, arena)
    }

    /// The first and last page of its arena that its memory touches.
    pub(super) fn pages(&self) -> (usize, usize) {
        lock(&self.memory.arena).pages_of(self.memory.address, self.memory.bytes)
    }

    /// To be called before work that reads these weights is enqueued: if they are streamed, it waits until they have come. All
    /// must be of one network, and those of one section are used in the order in which they were made.
    pub(crate) fn reach(weights: &[&Self]) -> Result<()> {
        let mut rest = weights.to_vec();
        while let Some(first) = rest.first() {
            let section = first.memory.arena.clone();
            let (ours, others): (Vec<&Self>, Vec<_>) = rest.into_iter().partition(|each| each.is_in(&section));
            let mut arena = lock(&section);
            let spans = ours.iter().map(|each| arena.pages_of(each.memory.address, each.memory.bytes));
            let span = spans.reduce(|one, other| (one.0.min(other.0), one.1.max(other.1)));
            if let (Some(residency), Some(span)) = (arena.residency(), span) {
                residency.reach(ours[0].gpu(), span)?;
            }
            rest = others;
        }
        Ok(())
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.memory.gpu
    }

    pub(crate) fn dims(&self) -> &[usize] {
        &self.dims
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Length of the last dimension.
    pub(crate) fn columns(&self) -> usize {
        self.dims.last().copied().unwrap_or(1)
    }

    /// Product of all dimensions but the last.
    pub(crate) fn rows(&self) -> usize {
        self.dims.iter().product::<usize>() / self.columns().max(1)
    }

    /// Elements from one row to the next.
    pub(crate) fn row(&self) -> usize {
        self.row
    }

    pub(crate) fn count(&self) -> usize {
        self.dims.iter().product()
    }

    /// Bytes of a contiguous array.
    pub(crate) fn bytes(&self) -> usize {
        self.count() * self.dtype.bytes()
    }

    pub(crate) fn address(&self) -> u64 {
        self.memory.address + (self.start * self.dtype.bytes()) as u64
    }

    pub(crate) fn is_contiguous(&self) -> bool {
        self.row == self.columns()
    }

    /// Some columns of it.
    ///
    /// # Panics
    /// There are fewer columns.
    pub(crate) fn columns_from(&self, from: usize, count: usize) -> Self {
        let fits = from <= self.columns() && count <= self.columns() - from && !self.dims.is_empty();
        assert!(fits, "{count} columns from {from} on of {:?}", self.dims);
        let mut view = self.clone();
        if let Some(last) = view.dims.last_mut() {
            *last = count;
        }
        view.start += from;
        view.without_moments()
    }

    /// A part along the first of at least two dimensions.
    ///
    /// # Panics
    /// The dimension is shorter.
    pub(crate) fn part(&self, from: usize, count: usize) -> Self {
        let fits = self.dims.len() > 1 && from <= self.dims[0] && count <= self.dims[0] - from;
        assert!(fits, "{count} from {from} on of the first of {:?}", self.dims);
        let mut view = self.clone();
        view.start += from * self.dims[1..self.dims.len() - 1].iter().product::<usize>() * self.row;
        view.dims[0] = count;
        view.without_moments()
    }

    /// The same numbers in other dimensions. Where rows are apart, the last dimension must stay.
    ///
    /// # Panics
    /// The dimensions do not fit.
    pub(crate) fn reshaped(&self, dims: &[usize]) -> Self {
        let same_rows = self.is_contiguous() || dims.last() == self.dims.last();
        let count = dims.iter().try_fold(1usize, |count, &dim| count.checked_mul(dim));
        assert!(same_rows && count == Some(self.count()), "{:?} as {dims:?}", self.dims);
        let mut view = self.clone();
        if dims.last() != self.dims.last() {
            view.row_sums = None;
        }
        view.dims = dims.to_vec();
        if self.is_contiguous() {
            view.row = view.columns();
        }
        view
    }

    /// Whether nobody else has any of this memory.
    pub(crate) fn is_alone(&self) -> bool {
        Arc::strong_count(&self.memory) == 1
    }

    /// The same numbers, of which nothing was measured.
    pub(crate) fn without_moments(&self) -> Self {
        Self { moments: None, row_sums: None, ..self.clone() }
    }

    pub(crate) fn moments(&self) -> Option<&Moments> {
        self.moments.as_ref()
    }

    pub(crate) fn with_moments(self, moments: Moments) -> Self {
        Self { moments: Some(moments), ..self }
    }

    /// Sum and sum of squares of each part of each row, f32 `[parts, rows, 2]`, if they were taken along. They may be those of the first rows,
    /// which then repeat.
    pub(crate) fn row_sums(&self) -> Option<&Arc<Array>> {
        self.row_sums.as_ref()
    }

    pub(crate) fn with_row_sums(self, row_sums: Arc<Array>) -> Self {
        Self { row_sums: Some(row_sums), ..self }
    }

    /// A new resident array of the same dims, or with another first one.
    pub(crate) fn resident_like(&self, first: Option<usize>) -> Result<Self> {
        let mut dims = self.dims.clone();
        if let (Some(first), Some(dim)) = (first, dims.first_mut()) {
            *dim = first;
        }
        self.gpu().resident(&dims, self.dtype)
    }

    /// Fills an f32 array from the host's numbers through pinned memory, without a wait.
    pub(crate) fn write_through(&self, pinned: &mut Pinned, numbers: &[f32]) -> Result<()> {
        if numbers.len() != self.count() {
            return Err(GpuError::Unavailable(format!("{} numbers for {:?}", numbers.len(), self.dims)));
        }
        let room = pinned.numbers(numbers.len())?;
        room.copy_from_slice(numbers);
        self.fill_from(pinned)
    }

    /// Fills an f32 array from the beginning of pinned memory, without a wait.
    pub(crate) fn fill_from(&self, pinned: &mut Pinned) -> Result<()> {
        self.check_is_f32()?;
        let (stream, from) = (self.gpu().stream(), pinned.numbers(self.count())?.as_ptr().cast());
        // SAFETY: both ranges hold as many f32, and the pinned one cannot be borrowed again until the stream has passed the mark.
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(self.address(), from, self.bytes(), stream.cu_stream()) };
        check("cuMemcpyHtoDAsync", code)?;
        pinned.mark_used(stream)
    }

    /// The numbers of an f32 array through pinned memory, when all work before is done.
    pub(crate) fn read_through(&self, pinned: &mut Pinned) -> Result<Vec<f32>> {
        self.check_is_f32()?;
        let (stream, room) = (self.gpu().stream(), pinned.numbers(self.count())?.as_mut_ptr().cast());
        // SAFETY: both ranges hold as many f32, and the pinned one cannot be borrowed again until the stream has passed the mark.
        let code = unsafe { sys::cuMemcpyDtoHAsync_v2(room, self.address(), self.bytes(), stream.cu_stream()) };
        check("cuMemcpyDtoHAsync", code)?;
        pinned.mark_used(stream)?;
        self.gpu().synchronize()?;
        Ok(pinned.numbers(self.count())?.to_vec())
    }

    /// Whether the host's f32 can be copied to or from it as they are.
    fn check_is_f32(&self) -> Result<()> {
        let is_f32 = self.dtype == Dtype::F32 && self.is_contiguous();
        let why = || GpuError::Unavailable(format!("{:?} of {} is copied as plain f32", self.dims, self.dtype.name()));
        is_f32.then_some(()).ok_or_else(why)
    }

    /// Fills it from as many bytes of the host, and returns when they are copied.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<()> {
        if bytes.len() != self.bytes() || !self.is_contiguous() {
            return Err(GpuError::Unavailable(format!("{} bytes for {:?}", bytes.len(), self.dims)));
        }
        let (gpu, bytes_at) = (self.gpu(), bytes.as_ptr().cast());
        // SAFETY: both ranges are that long; the wait comes before they are given back.
        let stream = gpu.stream().cu_stream();
        let code = unsafe { sys::cuMemcpyHtoDAsync_v2(self.address(), bytes_at, bytes.len(), stream) };
        check("cuMemcpyHtoDAsync", code)?;
        gpu.synchronize()
    }

    /// Its bytes, when all work before is done. They come through pinned memory, which is faster, if the machine allows that.
    pub(crate) fn read(&self) -> Result<Vec<u8>> {
        let (gpu, count) = (self.gpu(), self.bytes());
        let mut kept = lock(&gpu.0.staging);
        if count <= MOST_STAGED
            && let Ok(pinned) = Pinned::at_least(&mut kept, gpu, count)
        {
            self.read_into(pinned.bytes(count)?)?;
            return Ok(pinned.bytes(count)?.to_vec());
        }
        let mut bytes = vec![0; count];
        self.read_into(&mut bytes)?;
        Ok(bytes)
    }

    /// The same into as many bytes of the host.
    pub(crate) fn read_into(&self, bytes: &mut [u8]) -> Result<()> {
        if bytes.len() != self.bytes() || !self.is_contiguous() {
            return Err(GpuError::Unavailable(format!("{} bytes from {:?}", bytes.len(), self.dims)));
        }
        let (gpu, into) = (self.gpu(), bytes.as_mut_ptr().cast());
        let stream = gpu.stream().cu_stream();
        // SAFETY: both ranges are that long, and the wait comes before the bytes are read.
        let code = unsafe { sys::cuMemcpyDtoHAsync_v2(into, self.address(), bytes.len(), stream) };
        check("cuMemcpyDtoHAsync", code)?;
        gpu.synchronize()
    }

    /// A copy of a tensor of the CPU in scratch memory, rounded to `dtype`.
    pub(crate) fn from_tensor(gpu: &Gpu, tensor: &Tensor, dtype: Dtype) -> Result<Self> {
        let array = gpu.scratch(tensor.dims(), dtype)?;
        let numbers = tensor.to_dtype(DType::F32).and_then(|tensor| tensor.flatten_all()?.to_vec1::<f32>());
        let numbers = numbers.map_err(|error| GpuError::call("a tensor of the CPU", error))?;
        let mut bytes = vec![0; numbers.len() * dtype.bytes()];
        // Many at once, where the CPU can round so.
        match dtype {
            Dtype::F16 => {
                let mut halves = vec![f16::ZERO; numbers.len()];
                halves.convert_from_f32_slice(&numbers);
                let all = bytes.as_chunks_mut().0.iter_mut().zip(halves);
                all.for_each(|(bytes, number)| *bytes = number.to_le_bytes());
            }
            Dtype::BF16 => {
                let mut halves = vec![bf16::ZERO; numbers.len()];
                halves.convert_from_f32_slice(&numbers);
                let all = bytes.as_chunks_mut().0.iter_mut().zip(halves);
                all.for_each(|(bytes, number)| *bytes = number.to_le_bytes());
            }
            Dtype::F32 => {
                let all = bytes.as_chunks_mut().0.iter_mut().zip(&numbers);
                all.for_each(|(bytes, number)| *bytes = number.to_le_bytes());
            }
        }
        array.write(&bytes)?;
        Ok(array)
    }

    /// A copy on the CPU, in f32.
    pub(crate) fn to_tensor(&self) -> Result<Tensor> {
        let bytes = self.read()?;
        let numbers: Vec<f32> = match self.dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|&chunk| f32::from_le_bytes(chunk)).collect(),
            Dtype::F16 => bytes.as_chunks().0.iter().map(|&chunk| f16::from_le_bytes(chunk).to_f32()).collect(),
            Dtype::BF16 => bytes.as_chunks().0.iter().map(|&chunk| bf16::from_le_bytes(chunk).to_f32()).collect(),
        };
        Tensor::from_vec(numbers, self.dims.as_slice(), &Device::Cpu)
            .map_err(|error| GpuError::call("a tensor of the CPU", error))
    }
}
