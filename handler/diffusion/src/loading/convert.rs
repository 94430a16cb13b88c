//! Writes a checkpoint as a model folder in the diffusers layout.
//!
//! Tensors keep their dtypes and are copied in pieces, so that the memory needed does not depend on the model. The folder appears under
//! its name when it is whole.

use super::{
    checkpoint::{Checkpoint, Component, FILES},
    tensor_files::TensorFiles,
};
use crate::error::{PipelineError, Result};
use serde_json::{Map, Value, json};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

/// How much of a tensor is copied at once, in bytes.
const PIECE: usize = 4 << 20;
/// The components, their folders and files.
const COMPONENTS: [(Component, &str); 3] = [
    (Component::TextEncoder, "text_encoder/model.safetensors"),
    (Component::Unet, "unet/diffusion_pytorch_model.safetensors"),
    (Component::Vae, "vae/diffusion_pytorch_model.safetensors"),
];

/// A file that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// Its name in the folder.
    pub name: &'static str,
    /// Its length.
    pub bytes: u64,
}

/// Removes a folder that did not become whole.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // It is gone if the folder became whole.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes the checkpoint as a model folder, which must not be there yet or be empty. Calls `report` with each file. Returns the names of
/// tensors that are not read and do not go along.
///
/// # Errors
/// The file is no checkpoint of Stable Diffusion 1.x, the folder has files, or it cannot be written. Then nothing is left behind.
pub fn convert(checkpoint: &Path, folder: &Path, report: &mut dyn FnMut(&Written)) -> Result<Vec<String>> {
    let source = Checkpoint::open(checkpoint)?;
    if fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some()) || folder.is_file() {
        let reason = "it is there already: name a new folder".to_string();
        return Err(PipelineError::ModelFile { path: folder.into(), reason });
    }
    let partial = Partial(beside(folder));
    let root = partial.0.as_path();
    let failed = |source| PipelineError::Write { path: folder.into(), source };
    // What an earlier process of that number left behind.
    let _ = fs::remove_dir_all(root);
    fs::create_dir_all(root).map_err(failed)?;
    for name in FILES {
        let content = source.file(name).unwrap_or_default();
        let bytes = content.len() as u64;
        write(&root.join(name), |file| file.write_all(content.as_bytes())).map_err(failed)?;
        report(&Written { name, bytes });
    }
    for (component, name) in COMPONENTS {
        let tensors = source.component(component)?;
        let bytes = write(&root.join(name), |file| copy(&tensors, file)).map_err(failed)?;
        report(&Written { name, bytes });
    }
    fs::rename(root, folder).map_err(failed)?;
    let above = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(above).and_then(|above| above.sync_all()).map_err(failed)?;
    Ok(source.unread())
}

/// A hidden folder on the same volume.
fn beside(folder: &Path) -> PathBuf {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    folder.with_file_name(format!(".{name}.partial-{}", std::process::id()))
}

/// Writes a file and its folders, waits until it is on the disk, and returns its length.
fn write(path: &Path, content: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>) -> io::Result<u64> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = BufWriter::new(File::create(path)?);
    content(&mut file)?;
    let file = file.into_inner()?;
    file.sync_all()?;
    Ok(file.metadata()?.len())
}

/// Writes a safetensors file as the library does: wide dtypes first, then by name, so that each tensor is aligned.
fn copy(tensors: &TensorFiles, file: &mut BufWriter<File>) -> io::Result<()> {
    let mut order: Vec<_> = tensors.names().filter_map(|name| Some((name, tensors.get(name)?))).collect();
    order.sort_by_key(|(name, entry)| (std::cmp::Reverse(entry.dtype), *name));
    let mut header = Map::new();
    // transformers reads no file without it.
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut end = 0;
    for (name, entry) in &order {
        let start = end;
        end += entry.bytes();
        let described = json!({ "dtype": entry.dtype, "shape": entry.dims, "data_offsets": [start, end] });
        header.insert((*name).to_string(), described);
    }
    let mut header = Value::Object(header).to_string();
    let padded = header.len().next_multiple_of(8);
    header.extend(std::iter::repeat_n(' ', padded - header.len()));
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(header.as_bytes())?;
    let mut piece = vec![0; PIECE];
    for (_, entry) in order {
        for from in (0..entry.bytes()).step_by(PIECE) {
            let piece = &mut piece[..PIECE.min(entry.bytes() - from)];
            tensors.read(entry, from, piece).map_err(io::Error::other)?;
            file.write_all(piece)?;
        }
    }
    Ok(())
}
