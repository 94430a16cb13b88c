//! The weights of one component: base tensors, and an overlay of tensors that LoRAs have changed.
//!
//! The base never changes, so without the overlay it is restored exactly.

use crate::{
    error::{PipelineError, Result},
    gpu::{self, Dtype, GpuError},
    loading::Header,
};
use candle_core::{CpuStorage, DType, Device, Error, Storage, Tensor};
use half::{bf16, f16};
use safetensors::tensor::TensorInfo;
use std::{
    collections::HashMap,
    fs::File,
    io,
    num::NonZeroU64,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

/// How much is read ahead with one call, in bytes.
const READ_AHEAD: u64 = 8 << 20;

/// Tensors by name.
pub type Tensors = HashMap<String, Tensor>;

/// The tensors of one component (text encoder, UNet or VAE) on the CPU. Cheap to clone.
#[derive(Clone)]
pub struct Weights {
    base: Base,
    overlay: Arc<Tensors>,
}

#[derive(Clone)]
enum Base {
    /// In memory, all in f32.
    Memory(Arc<Tensors>),
    /// In a file, in its dtypes, read when needed.
    File(Arc<TensorFile>),
}

/// A safetensors file whose tensors stay on the disk.
struct TensorFile {
    path: PathBuf,
    file: Arc<File>,
    tensors: HashMap<String, Entry>,
}

/// Where a tensor is in its file.
#[derive(Clone)]
struct Entry {
    dtype: DType,
    dims: Vec<usize>,
    offset: u64,
}

impl Weights {
    /// Loads all tensors of the first of `names` that exists in `folder`, floats as f32.
    ///
    /// # Errors
    /// There is no such file, or it is not a safetensors file.
    pub fn load(folder: &Path, names: &[&str]) -> Result<Self> {
        let path = existing(folder, names)?;
        let mut base = candle_core::safetensors::load(&path, &Device::Cpu)
            .map_err(|error| PipelineError::File { path, source: io::Error::other(error.to_string()) })?;
        for tensor in base.values_mut() {
            if tensor.dtype().is_float() && tensor.dtype() != DType::F32 {
                *tensor = tensor.to_dtype(DType::F32)?;
            }
        }
        Ok(Self::new(base))
    }

    /// As [`Weights::load`], but the tensors stay on the disk, in their dtypes, until they are needed.
    ///
    /// # Errors
    /// There is no such file, or it is not a safetensors file.
    pub fn open(folder: &Path, names: &[&str]) -> Result<Self> {
        let path = existing(folder, names)?;
        let file = TensorFile::open(&path).map_err(|source| PipelineError::File { path, source })?;
        Ok(Self { base: Base::File(Arc::new(file)), overlay: Arc::default() })
    }

    /// Weights from tensors in memory.
    pub fn new(base: Tensors) -> Self {
        Self { base: Base::Memory(Arc::new(base)), overlay: Arc::default() }
    }

    /// The same base under another overlay.
    pub fn with_overlay(&self, overlay: Tensors) -> Self {
        Self { overlay: Arc::new(overlay), ..self.clone() }
    }

    /// The tensors that replace those of the base.
    pub(crate) fn overlay(&self) -> &Tensors {
        &self.overlay
    }

    /// The base tensor of that name, without the overlay.
    ///
    /// # Errors
    /// There is none, or reading fails.
    pub fn base(&self, name: &str) -> candle_core::Result<Tensor> {
        let missing = || Error::CannotFindTensor { path: name.to_string() }.bt();
        match &self.base {
            Base::Memory(tensors) => tensors.get(name).cloned().ok_or_else(missing),
            Base::File(file) => file.tensor(file.tensors.get(name).ok_or_else(missing)?),
        }
    }

    /// The shape of the base tensor of that name.
    pub fn dims(&self, name: &str) -> Option<&[usize]> {
        match &self.base {
            Base::Memory(tensors) => tensors.get(name).map(Tensor::dims),
            Base::File(file) => file.tensors.get(name).map(|entry| entry.dims.as_slice()),
        }
    }

    /// Renames base tensors, for files with older names.
    pub fn renamed(self, rename: impl Fn(&str) -> String) -> Self {
        let base = match self.base {
            Base::Memory(tensors) => {
                let renamed = tensors.iter().map(|(name, tensor)| (rename(name), tensor.clone()));
                Base::Memory(Arc::new(renamed.collect()))
            }
            Base::File(file) => Base::File(Arc::new(file.renamed(rename))),
        };
        Self { base, ..self }
    }

    /// Names of the base tensors.
    pub fn names(&self) -> Vec<&str> {
        match &self.base {
            Base::Memory(tensors) => tensors.keys().map(String::as_str).collect(),
            Base::File(file) => file.tensors.keys().map(String::as_str).collect(),
        }
    }

    /// The tensor of that name, from the overlay if it is there.
    ///
    /// # Errors
    /// There is none, or reading fails.
    pub fn tensor(&self, name: &str) -> candle_core::Result<Tensor> {
        self.overlay.get(name).map_or_else(|| self.base(name), |tensor| Ok(tensor.clone()))
    }

    /// Some rows of a matrix, `[rows, columns]` in f32. Only they are read from a file.
    ///
    /// # Errors
    /// There is no such matrix or row, or reading fails.
    pub fn rows(&self, name: &str, rows: &[u32]) -> candle_core::Result<Tensor> {
        if let (Base::File(file), false) = (&self.base, self.overlay.contains_key(name)) {
            return file.rows(name, rows);
        }
        let rows = Tensor::new(rows, &Device::Cpu)?;
        self.tensor(name)?.index_select(&rows, 0)?.to_dtype(DType::F32)
    }
}

/// Asks the operating system to read a file into its page cache, on a new thread.
pub(crate) fn read_ahead(folder: &Path, names: &[&str]) {
    let Ok(path) = existing(folder, names) else { return };
    thread::spawn(move || {
        let Ok(file) = File::open(path) else { return };
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        for offset in (0..length).step_by(READ_AHEAD as usize) {
            // Only advice: if it fails, the data is read when it is needed.
            let _ = rustix::fs::fadvise(&file, offset, NonZeroU64::new(READ_AHEAD), rustix::fs::Advice::WillNeed);
        }
    });
}

fn existing(folder: &Path, names: &[&str]) -> Result<PathBuf> {
    let found = names.iter().map(|name| folder.join(name)).find(|path| path.exists());
    let path = found.unwrap_or_else(|| folder.join(names[0]));
    if path.exists() {
        return Ok(path);
    }
    let source = io::Error::new(io::ErrorKind::NotFound, "no such file");
    Err(PipelineError::File { path, source })
}

impl TensorFile {
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let header = Header::read(&mut file).map_err(|error| io::Error::other(error.to_string()))?;
        let entry = |(name, info): (String, TensorInfo)| {
            let dtype = DType::try_from(info.dtype).map_err(|error| io::Error::other(error.to_string()))?;
            Ok((name, Entry { dtype, dims: info.shape, offset: header.data + info.data_offsets.0 as u64 }))
        };
        let tensors = header.tensors.into_iter().map(entry).collect::<io::Result<_>>()?;
        Ok(Self { path: path.into(), file: Arc::new(file), tensors })
    }

    fn renamed(&self, rename: impl Fn(&str) -> String) -> Self {
        let tensors = self.tensors.iter().map(|(name, entry)| (rename(name), entry.clone())).collect();
        Self { path: self.path.clone(), file: self.file.clone(), tensors }
    }

    fn read(&self, entry: &Entry, from: usize, into: &mut [u8]) -> candle_core::Result<()> {
        let read = self.file.read_exact_at(into, entry.offset + from as u64);
        read.map_err(|error| Error::Msg(format!("{}: {error}", self.path.display())))
    }

    fn tensor(&self, entry: &Entry) -> candle_core::Result<Tensor> {
        let mut bytes = vec![0; entry.dims.iter().product::<usize>() * entry.dtype.size_in_bytes()];
        self.read(entry, 0, &mut bytes)?;
        Tensor::from_raw_buffer(&bytes, entry.dtype, &entry.dims, &Device::Cpu)
    }

    fn rows(&self, name: &str, rows: &[u32]) -> candle_core::Result<Tensor> {
        let entry = self.tensors.get(name).ok_or_else(|| Error::CannotFindTensor { path: name.to_string() }.bt())?;
        let width: usize = entry.dims[1..].iter().product();
        let bytes = width * entry.dtype.size_in_bytes();
        let mut all = vec![0; rows.len() * bytes];
        for (into, &row) in all.chunks_mut(bytes.max(1)).zip(rows) {
            if row as usize >= entry.dims[0] {
                return Err(Error::Msg(format!("{name} has {} rows, no {row}", entry.dims[0])));
            }
            self.read(entry, row as usize * bytes, into)?;
        }
        Tensor::from_raw_buffer(&all, entry.dtype, &[rows.len(), width], &Device::Cpu)?.to_dtype(DType::F32)
    }
}

/// The bytes for a GPU: the overlay's tensor if there is one, else those of the base.
impl gpu::Source for Weights {
    fn dtype(&self, name: &str) -> std::result::Result<Dtype, GpuError> {
        let dtype = match (self.overlay.get(name), &self.base) {
            (Some(tensor), _) => Some(tensor.dtype()),
            (None, Base::File(file)) => file.tensors.get(name).map(|entry| entry.dtype),
            (None, Base::Memory(tensors)) => tensors.get(name).map(Tensor::dtype),
        };
        match dtype {
            Some(DType::F16) => Ok(Dtype::F16),
            Some(DType::BF16) => Ok(Dtype::BF16),
            Some(DType::F32) => Ok(Dtype::F32),
            Some(other) => Err(GpuError::Unavailable(format!("{name} is {other:?}, a GPU takes f16, bf16 and f32"))),
            None => Err(GpuError::Unavailable(format!("the model has no {name}"))),
        }
    }

    fn read(&self, name: &str, from: usize, into: &mut [u8]) -> std::result::Result<(), GpuError> {
        let failed = |error: candle_core::Error| GpuError::Unavailable(error.to_string());
        if let (None, Base::File(file)) = (self.overlay.get(name), &self.base)
            && let Some(entry) = file.tensors.get(name)
        {
            return file.read(entry, from, into).map_err(failed);
        }
        copy_bytes(&self.tensor(name).map_err(failed)?, from, into).map_err(failed)
    }
}

/// Copies bytes of a contiguous tensor on the CPU, little-endian, from the byte `from` on.
fn copy_bytes(tensor: &Tensor, from: usize, into: &mut [u8]) -> candle_core::Result<()> {
    fn numbers<const N: usize, T: Copy>(values: &[T], from: usize, into: &mut [u8], bytes: impl Fn(T) -> [u8; N]) {
        for (into, &value) in into.as_chunks_mut().0.iter_mut().zip(&values[from / N..]) {
            *into = bytes(value);
        }
    }
    let (storage, layout) = tensor.storage_and_layout();
    let (start, end) = layout.contiguous_offsets().ok_or_else(|| Error::RequiresContiguous { op: "bytes" }.bt())?;
    match &*storage {
        Storage::Cpu(CpuStorage::F32(values)) => numbers(&values[start..end], from, into, f32::to_le_bytes),
        Storage::Cpu(CpuStorage::F16(values)) => numbers(&values[start..end], from, into, f16::to_le_bytes),
        Storage::Cpu(CpuStorage::BF16(values)) => numbers(&values[start..end], from, into, bf16::to_le_bytes),
        _ => return Err(Error::UnsupportedDTypeForOp(tensor.dtype(), "bytes").bt()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::Source;
    use std::path::PathBuf;

    const NAMES: [&str; 1] = ["weights.safetensors"];

    /// A folder with one file that has a matrix in f16 and a vector in f32.
    fn folder() -> (tempfile::TempDir, Tensors) {
        let matrix = Tensor::arange(0f32, 60.0, &Device::Cpu).unwrap().reshape((12, 5)).unwrap();
        let vector = Tensor::new(&[0.5f32, -2.0, 3.25], &Device::Cpu).unwrap();
        let tensors = HashMap::from([
            ("a.weight".to_string(), matrix.to_dtype(DType::F16).unwrap()),
            ("a.bias".to_string(), vector),
        ]);
        let folder = tempfile::tempdir().unwrap();
        candle_core::safetensors::save(&tensors, folder.path().join(NAMES[0])).unwrap();
        (folder, tensors)
    }

    fn numbers(tensor: &Tensor) -> Vec<f32> {
        tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn file_and_memory_give_the_same_tensors_rows_and_bytes() {
        let (folder, tensors) = folder();
        let open = Weights::open(folder.path(), &NAMES).unwrap().renamed(|name| name.replace("a.", "b."));
        let loaded = Weights::load(folder.path(), &NAMES).unwrap();
        assert_eq!(open.dims("b.weight"), Some([12, 5].as_slice()));
        assert_eq!(open.dims("a.weight"), None);
        assert_eq!(open.tensor("b.weight").unwrap().dtype(), DType::F16);
        for part in ["weight", "bias"] {
            let (ours, theirs) = (format!("b.{part}"), format!("a.{part}"));
            assert_eq!(numbers(&open.base(&ours).unwrap()), numbers(&tensors[&theirs]));
            assert_eq!(numbers(&loaded.base(&theirs).unwrap()), numbers(&tensors[&theirs]));
        }
        for weights in [open.rows("b.weight", &[11, 0, 3]), loaded.rows("a.weight", &[11, 0, 3])] {
            let rows = numbers(&weights.unwrap());
            assert_eq!((rows.len(), rows[0], rows[5], rows[14]), (15, 55.0, 0.0, 19.0));
        }
        // The second number of the vector, from the file and from memory.
        for (weights, name) in [(&open, "b.bias"), (&loaded, "a.bias")] {
            let mut bytes = [0; 4];
            Source::read(weights, name, 4, &mut bytes).unwrap();
            assert_eq!(f32::from_le_bytes(bytes), -2.0);
        }
    }

    #[test]
    fn an_overlay_takes_precedence_over_the_file() {
        let (folder, _) = folder();
        let over = Tensor::ones((12, 5), DType::BF16, &Device::Cpu).unwrap();
        let open = Weights::open(folder.path(), &NAMES).unwrap();
        let weights = open.with_overlay(HashMap::from([("a.weight".to_string(), over)]));
        assert_eq!(weights.dtype("a.weight").unwrap(), Dtype::BF16);
        assert_eq!(open.dtype("a.weight").unwrap(), Dtype::F16);
        assert_eq!(numbers(&weights.rows("a.weight", &[2]).unwrap()), [1.0; 5]);
        assert_eq!(numbers(&weights.base("a.weight").unwrap())[1], 1.0);
        let mut bytes = [0; 2];
        Source::read(&weights, "a.weight", 2, &mut bytes).unwrap();
        assert_eq!(bf16::from_le_bytes(bytes), bf16::ONE);
    }

    #[test]
    fn errors_name_what_is_missing_or_cut_short() {
        let (folder, _) = folder();
        let open = Weights::open(folder.path(), &NAMES).unwrap();
        assert!(open.rows("a.weight", &[12]).unwrap_err().to_string().contains("has 12 rows, no 12"));
        assert!(open.tensor("c").is_err() && open.dtype("c").unwrap_err().to_string().contains("no c"));
        let path: PathBuf = folder.path().join(NAMES[0]);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        let error = Weights::open(folder.path(), &NAMES).err().unwrap().to_string();
        assert!(error.contains("weights.safetensors"), "{error}");
        let missing = Weights::open(folder.path(), &["none.safetensors"]).err().unwrap().to_string();
        assert!(missing.contains("none.safetensors"), "{missing}");
    }
}
