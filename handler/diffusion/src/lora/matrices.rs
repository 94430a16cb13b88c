//! The matrices of one LoRA file, in the file's dtypes. All matrices of a dtype share one tensor, end to end.

use candle_core::{CpuStorage, DType, Device, Result, Storage, Tensor};
use half::{bf16, f16};
use safetensors::{Dtype, tensor::TensorInfo};

/// Where a matrix is in [`Matrices`].
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Matrix {
    dtype: DType,
    start: usize,
    /// Its shape.
    pub dims: Vec<usize>,
    /// Whether it has neither NaN nor infinity.
    pub finite: bool,
}

impl Matrix {
    /// Number of elements.
    pub(super) fn count(&self) -> usize {
        self.dims.iter().product()
    }

    /// Elements per row: the product of all dimensions but the first.
    pub(super) fn width(&self) -> usize {
        self.dims[1..].iter().product()
    }
}

/// Collects the matrices while the file is read.
#[derive(Default)]
pub(super) struct MatricesBuilder {
    f32: Vec<f32>,
    f16: Vec<f16>,
    bf16: Vec<bf16>,
    finite: bool,
}

impl MatricesBuilder {
    /// Reserves the memory that these tensors need.
    ///
    /// # Errors
    /// There is not enough memory.
    pub(super) fn for_tensors<'a>(tensors: impl Iterator<Item = &'a TensorInfo>) -> Result<Self> {
        let mut builder = Self::default();
        let mut counts = [0; 3];
        for info in tensors {
            let slot = match info.dtype {
                Dtype::F32 | Dtype::F64 => 0,
                Dtype::F16 | Dtype::F8_E4M3 | Dtype::F8_E5M2 => 1,
                Dtype::BF16 => 2,
                _ => continue,
            };
            counts[slot] += info.shape.iter().product::<usize>();
        }
        let reserved = builder
            .f32
            .try_reserve_exact(counts[0])
            .and_then(|()| builder.f16.try_reserve_exact(counts[1]))
            .and_then(|()| builder.bf16.try_reserve_exact(counts[2]));
        reserved.map_err(candle_core::Error::msg)?;
        Ok(builder)
    }

    /// Begins a matrix and returns its place. None for a dtype that no LoRA has.
    pub(super) fn begin(&mut self, info: &TensorInfo) -> Option<Matrix> {
        // f64 is rounded to f32: no device computes with more. f16 holds every number of 8 bits exactly.
        let (dtype, start) = match info.dtype {
            Dtype::F32 | Dtype::F64 => (DType::F32, self.f32.len()),
            Dtype::F16 | Dtype::F8_E4M3 | Dtype::F8_E5M2 => (DType::F16, self.f16.len()),
            Dtype::BF16 => (DType::BF16, self.bf16.len()),
            _ => return None,
        };
        self.finite = true;
        Some(Matrix { dtype, start, dims: info.shape.clone(), finite: true })
    }

    /// Appends little-endian numbers to the matrix begun last.
    pub(super) fn push(&mut self, dtype: Dtype, bytes: &[u8]) {
        self.finite &= match dtype {
            Dtype::F64 => append(&mut self.f32, bytes, |b| f64::from_le_bytes(b) as f32, |value| value.is_finite()),
            Dtype::F32 => append(&mut self.f32, bytes, f32::from_le_bytes, |value| value.is_finite()),
            Dtype::F16 => append(&mut self.f16, bytes, f16::from_le_bytes, |value| value.is_finite()),
            Dtype::F8_E4M3 => append(&mut self.f16, bytes, |[byte]| of_e4m3(byte), |value| value.is_finite()),
            Dtype::F8_E5M2 => append(&mut self.f16, bytes, |[byte]| of_e5m2(byte), |value| value.is_finite()),
            _ => append(&mut self.bf16, bytes, bf16::from_le_bytes, |value| value.is_finite()),
        };
    }

    /// Whether the matrix begun last has neither NaN nor infinity so far.
    pub(super) fn is_finite(&self) -> bool {
        self.finite
    }

    /// All matrices, on the CPU. Nothing is copied.
    pub(super) fn build(self) -> Result<Matrices> {
        let Self { f32, f16, bf16, .. } = self;
        let mut tensors = Vec::new();
        let (lengths, cpu) = ([f32.len(), f16.len(), bf16.len()], &Device::Cpu);
        if lengths[0] > 0 {
            tensors.push(Tensor::from_vec(f32, lengths[0], cpu)?);
        }
        if lengths[1] > 0 {
            tensors.push(Tensor::from_vec(f16, lengths[1], cpu)?);
        }
        if lengths[2] > 0 {
            tensors.push(Tensor::from_vec(bf16, lengths[2], cpu)?);
        }
        Ok(Matrices(tensors))
    }
}

/// A number of 8 bits with 4 bits of exponent, as f16. It has no infinity (Micikevicius et al., "FP8 formats for deep learning", 2022).
pub(super) fn of_e4m3(byte: u8) -> f16 {
    let magnitude = match (byte >> 3 & 15, f32::from(byte & 7)) {
        (15, 7.0) => return f16::NAN,
        (0, mantissa) => mantissa / 512.0,
        (exponent, mantissa) => (1.0 + mantissa / 8.0) * f32::from(exponent).exp2() / 128.0,
    };
    f16::from_f32(if byte < 128 { magnitude } else { -magnitude })
}

/// A number of 8 bits with 5 bits of exponent: the upper half of an f16.
pub(super) fn of_e5m2(byte: u8) -> f16 {
    f16::from_bits(u16::from(byte) << 8)
}

/// Appends what `read` makes of each `N` bytes. Returns whether all numbers are finite.
fn append<T: Copy, const N: usize>(
    to: &mut Vec<T>,
    bytes: &[u8],
    read: impl Fn([u8; N]) -> T,
    is_finite: impl Fn(T) -> bool,
) -> bool {
    let from = to.len();
    to.extend(bytes.as_chunks().0.iter().map(|&chunk| read(chunk)));
    to[from..].iter().fold(true, |finite, &value| finite & is_finite(value))
}

/// All matrices of one file.
#[derive(Debug, Clone)]
pub(super) struct Matrices(Vec<Tensor>);

impl Matrices {
    /// Writes the numbers of a matrix as f32, times `gain`, to `into`: `width` numbers a row, rows `pitch` numbers apart.
    pub(super) fn write(&self, matrix: &Matrix, gain: f32, width: usize, pitch: usize, into: &mut [f32]) -> Result<()> {
        fn rows<T: Copy>(from: &[T], width: usize, pitch: usize, into: &mut [f32], wide: impl Fn(T) -> f32) {
            for (row, from) in from.chunks(width).enumerate() {
                for (into, &number) in into[row * pitch..].iter_mut().zip(from) {
                    *into = wide(number);
                }
            }
        }
        let tensor = self.0.iter().find(|tensor| tensor.dtype() == matrix.dtype);
        let tensor = tensor.ok_or_else(|| candle_core::Error::msg("a matrix of another file"))?;
        let (storage, _) = tensor.storage_and_layout();
        let range = matrix.start..matrix.start + matrix.count();
        match &*storage {
            Storage::Cpu(CpuStorage::F32(all)) => rows(&all[range], width, pitch, into, |x| x * gain),
            Storage::Cpu(CpuStorage::F16(all)) => rows(&all[range], width, pitch, into, |x| x.to_f32() * gain),
            Storage::Cpu(CpuStorage::BF16(all)) => rows(&all[range], width, pitch, into, |x| x.to_f32() * gain),
            _ => return Err(candle_core::Error::msg("a matrix of no LoRA's dtype")),
        }
        Ok(())
    }

    /// A matrix in its own shape, as f32.
    pub(super) fn get(&self, matrix: &Matrix) -> Result<Tensor> {
        let tensor = self.0.iter().find(|tensor| tensor.dtype() == matrix.dtype);
        let tensor = tensor.ok_or_else(|| candle_core::Error::msg("a matrix of another file"))?;
        tensor.narrow(0, matrix.start, matrix.count())?.reshape(matrix.dims.as_slice())?.to_dtype(DType::F32)
    }
}
