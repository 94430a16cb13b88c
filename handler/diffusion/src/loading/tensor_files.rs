//! The tensors of one or several safetensors files. They stay on the disk, in their dtypes, until they are read.

use super::{Header, HeaderError};
use candle_core::{DType, Device, Error, Tensor};
use std::{
    collections::HashMap,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

/// The tensors of one or several files. Cheap to clone but for the names.
#[derive(Clone, Default)]
pub(super) struct TensorFiles {
    files: Vec<(PathBuf, Arc<File>)>,
    tensors: HashMap<String, Entry>,
}

/// Where a tensor is.
#[derive(Clone)]
pub(super) struct Entry {
    /// Index into the files.
    file: usize,
    pub(super) dtype: safetensors::Dtype,
    pub(super) dims: Vec<usize>,
    offset: u64,
}

impl Entry {
    /// The dtype in candle.
    ///
    /// # Errors
    /// candle does not have it. The error names the tensor `name`.
    pub(super) fn candle_dtype(&self, name: &str) -> candle_core::Result<DType> {
        let unsupported = |_| Error::Msg(format!("{name} is {:?}, which is not supported", self.dtype)).bt();
        DType::try_from(self.dtype).map_err(unsupported)
    }

    fn elements(&self) -> usize {
        self.dims.iter().product()
    }

    /// Its length in the file, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.elements() * self.dtype.bitsize() / 8
    }
}

impl TensorFiles {
    /// Adds the tensors of a file. Reads its header only. Returns their names and the file's metadata.
    ///
    /// # Errors
    /// The file cannot be opened or is not a safetensors file.
    pub(super) fn add(&mut self, path: &Path) -> Result<(Vec<String>, HashMap<String, String>), HeaderError> {
        let mut file = File::open(path)?;
        let header = Header::read(&mut file)?;
        let index = self.files.len();
        self.files.push((path.into(), Arc::new(file)));
        let mut names = Vec::with_capacity(header.tensors.len());
        for (name, info) in header.tensors {
            let offset = header.data + info.data_offsets.0 as u64;
            names.push(name.clone());
            self.tensors.insert(name, Entry { file: index, dtype: info.dtype, dims: info.shape, offset });
        }
        Ok((names, header.metadata))
    }

    pub(super) fn get(&self, name: &str) -> Option<&Entry> {
        self.tensors.get(name)
    }

    /// The files, in the order in which they were added.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensors for which `pick` has a name and a shape of as many elements.
    pub(super) fn picked(&self, pick: impl Fn(&str, &[usize]) -> Option<(String, Vec<usize>)>) -> Self {
        let picked = self.tensors.iter().filter_map(|(name, entry)| {
            let (name, dims) = pick(name, &entry.dims)?;
            debug_assert_eq!(dims.iter().product::<usize>(), entry.elements());
            Some((name, Entry { dims, ..entry.clone() }))
        });
        Self { files: self.files.clone(), tensors: picked.collect() }
    }

    /// Reads bytes of a tensor, from its byte `from` on.
    ///
    /// # Errors
    /// Reading fails.
    pub(super) fn read(&self, entry: &Entry, from: usize, into: &mut [u8]) -> candle_core::Result<()> {
        let (path, file) = &self.files[entry.file];
        let read = file.read_exact_at(into, entry.offset + from as u64);
        read.map_err(|error| Error::Msg(format!("{}: {error}", path.display())))
    }

    /// A whole tensor on the CPU, in its dtype.
    ///
    /// # Errors
    /// There is none, candle does not have its dtype, or reading fails.
    pub(super) fn tensor(&self, name: &str) -> candle_core::Result<Tensor> {
        let entry = self.entry(name)?;
        let dtype = entry.candle_dtype(name)?;
        let mut bytes = vec![0; entry.bytes()];
        self.read(entry, 0, &mut bytes)?;
        Tensor::from_raw_buffer(&bytes, dtype, &entry.dims, &Device::Cpu)
    }

    /// Some rows of a matrix, `[rows, columns]` in f32. Only they are read.
    ///
    /// # Errors
    /// There is no such matrix or row, or reading fails.
    pub(super) fn rows(&self, name: &str, rows: &[u32]) -> candle_core::Result<Tensor> {
        let entry = self.entry(name)?;
        let dtype = entry.candle_dtype(name)?;
        let width: usize = entry.dims[1..].iter().product();
        let bytes = width * dtype.size_in_bytes();
        let mut all = vec![0; rows.len() * bytes];
        for (into, &row) in all.chunks_mut(bytes.max(1)).zip(rows) {
            if row as usize >= entry.dims[0] {
                return Err(Error::Msg(format!("{name} has {} rows, no {row}", entry.dims[0])));
            }
            self.read(entry, row as usize * bytes, into)?;
        }
        Tensor::from_raw_buffer(&all, dtype, &[rows.len(), width], &Device::Cpu)?.to_dtype(DType::F32)
    }

    fn entry(&self, name: &str) -> candle_core::Result<&Entry> {
        self.get(name).ok_or_else(|| Error::CannotFindTensor { path: name.to_string() }.bt())
    }
}
