//! The weights of one component: base tensors, and an overlay of tensors that LoRAs have changed.
//!
//! The base never changes, so without the overlay it is restored exactly.

use super::{shards, tensor_files::TensorFiles};
use crate::{
    error::Result,
    gpu::{self, Dtype, GpuError},
};
use candle_core::{CpuStorage, DType, Device, Error, Storage, Tensor};
use half::{bf16, f16};
use std::{
    collections::HashMap,
    fs::File,
    num::NonZeroU64,
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
    /// In files, in their dtypes, read when needed.
    Files(Arc<TensorFiles>),
}

impl Weights {
    /// As [`Weights::open`], then [`Weights::in_memory`].
    ///
    /// # Errors
    /// As [`Weights::open`], or a tensor has a dtype that is not supported.
    pub fn load(folder: &Path, names: &[&str]) -> Result<Self> {
        Self::open(folder, names)?.in_memory()
    }

    /// The weights in `folder`: the first of `names` that is there, as one file or as an index with shards. The tensors stay on the disk,
    /// in their dtypes, until they are needed.
    ///
    /// # Errors
    /// There is no such file, it is not a safetensors file, or an index and its shards disagree.
    pub fn open(folder: &Path, names: &[&str]) -> Result<Self> {
        Ok(Self::of_files(shards::open(&shards::find(folder, names)?)?))
    }

    /// Weights that stay in their files.
    pub(super) fn of_files(files: TensorFiles) -> Self {
        Self { base: Base::Files(Arc::new(files)), overlay: Arc::default() }
    }

    /// Reads all base tensors into memory, floats as f32.
    ///
    /// # Errors
    /// A tensor has a dtype that is not supported, or reading fails.
    pub fn in_memory(self) -> Result<Self> {
        let Base::Files(files) = &self.base else { return Ok(self) };
        let mut base = Tensors::new();
        for name in files.names() {
            let tensor = files.tensor(name)?;
            let wide = tensor.dtype().is_float() && tensor.dtype() != DType::F32;
            base.insert(name.to_string(), if wide { tensor.to_dtype(DType::F32)? } else { tensor });
        }
        Ok(Self { base: Base::Memory(Arc::new(base)), ..self })
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
            Base::Files(files) => files.tensor(name),
        }
    }

    /// The shape of the base tensor of that name.
    pub fn dims(&self, name: &str) -> Option<&[usize]> {
        match &self.base {
            Base::Memory(tensors) => tensors.get(name).map(Tensor::dims),
            Base::Files(files) => files.get(name).map(|entry| entry.dims.as_slice()),
        }
    }

    /// Renames base tensors, for files with older names.
    pub fn renamed(self, rename: impl Fn(&str) -> String) -> Self {
        let base = match self.base {
            Base::Memory(tensors) => {
                let renamed = tensors.iter().map(|(name, tensor)| (rename(name), tensor.clone()));
                Base::Memory(Arc::new(renamed.collect()))
            }
            Base::Files(files) => Base::Files(Arc::new(files.picked(|name, dims| Some((rename(name), dims.to_vec()))))),
        };
        Self { base, ..self }
    }

    /// Names of the base tensors.
    pub fn names(&self) -> Vec<&str> {
        match &self.base {
            Base::Memory(tensors) => tensors.keys().map(String::as_str).collect(),
            Base::Files(files) => files.names().collect(),
        }
    }

    /// The numbers of all base tensors together.
    pub fn parameters(&self) -> usize {
        let dims = self.names().into_iter().filter_map(|name| self.dims(name));
        dims.map(|dims| dims.iter().product::<usize>()).sum()
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
        if let (Base::Files(files), false) = (&self.base, self.overlay.contains_key(name)) {
            return files.rows(name, rows);
        }
        let rows = Tensor::new(rows, &Device::Cpu)?;
        self.tensor(name)?.index_select(&rows, 0)?.to_dtype(DType::F32)
    }
}

/// Asks the operating system to read the weights in a folder into its page cache, on a new thread.
pub(super) fn read_ahead(folder: &Path, names: &[&str]) {
    let Ok(files) = shards::find(folder, names).and_then(|path| shards::open(&path)) else { return };
    read_files_ahead(files.paths().map(Path::to_path_buf).collect());
}

/// The same for files.
pub(super) fn read_files_ahead(paths: Vec<PathBuf>) {
    thread::spawn(move || paths.iter().for_each(|path| advise(path)));
}

fn advise(path: &Path) {
    let Ok(file) = File::open(path) else { return };
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    for offset in (0..length).step_by(READ_AHEAD as usize) {
        // Only advice: if it fails, the data is read when it is needed.
        let _ = rustix::fs::fadvise(&file, offset, NonZeroU64::new(READ_AHEAD), rustix::fs::Advice::WillNeed);
    }
}

/// The bytes for a GPU: the overlay's tensor if there is one, else those of the base.
impl gpu::Source for Weights {
    fn dtype(&self, name: &str) -> std::result::Result<Dtype, GpuError> {
        let failed = |error: candle_core::Error| GpuError::Unavailable(error.to_string());
        let dtype = match (self.overlay.get(name), &self.base) {
            (Some(tensor), _) => Some(tensor.dtype()),
            (None, Base::Files(files)) => {
                files.get(name).map(|entry| entry.candle_dtype(name)).transpose().map_err(failed)?
            }
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
        if let (None, Base::Files(files)) = (self.overlay.get(name), &self.base)
            && let Some(entry) = files.get(name)
        {
            return files.read(entry, from, into).map_err(failed);
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
