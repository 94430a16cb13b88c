//! LoRAs: read from a safetensors file, checked key by key, and merged over the base weights.
//!
//! Reads what peft, diffusers (four generations), kohya's scripts, LyCORIS, OneTrainer, ComfyUI and ai-toolkit write for SD1.5: LoRA,
//! LoCon, LoHa, LoKr, GLoRA, IA3, OFT, BOFT, OLoRA, full differences and DoRA. A file that fits nothing or changes nothing is an error.

mod base_model;
mod blocks;
mod change;
mod error;
mod factorized;
mod files;
mod inspect;
mod keys;
mod layer;
mod matrices;
mod merge;
mod olora;
mod reading;
mod rotation;
mod settings;
mod sparse;
mod target;

pub use base_model::BaseModel;
pub use blocks::{BlockWeights, Part, Place, PlaceError};
pub use error::{LoraError, Misfit};
pub use inspect::{ModuleCounts, Range, Report};
pub use keys::KeyLayout;
pub(crate) use merge::LowRankUpdate;
pub use merge::{MergePlan, Overlays, merge, plan};
pub use target::Target;

use crate::error::{MAX_NAME, cut};
use files::Files;
use layer::Layer;
use matrices::Matrices;
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, Cursor, Read, Seek},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

/// How much of a file is hashed at once, in bytes.
const HASHED_AT_ONCE: usize = 1 << 20;

/// One LoRA file in memory, in the dtypes it has on disk.
#[derive(Debug)]
pub struct Lora {
    matrices: Matrices,
    layers: Vec<Layer>,
    misfits: Vec<Misfit>,
    info: FileInfo,
    /// Whether anything but DoRA's magnitudes changes a weight.
    active: bool,
    sha256: String,
}

/// What is known about a file besides its layers.
#[derive(Debug)]
struct FileInfo {
    layouts: Vec<KeyLayout>,
    /// The base model it was made for, and the key or metadata that says so.
    base: Option<(BaseModel, String)>,
    tensors: usize,
    /// Where peft's settings are, if there are any.
    settings: Option<&'static str>,
    /// Keys of numbers that change nothing.
    unused: Vec<String>,
}

/// A LoRA and how strongly it is applied.
#[derive(Debug, Clone)]
pub struct AppliedLora {
    /// The file's content.
    pub lora: Arc<Lora>,
    /// Multiplier: 1 is what the artist trained, 0 is off, a negative one leads away from the style.
    pub scale: f64,
    /// More multipliers, by the model's blocks.
    pub weights: BlockWeights,
}

impl AppliedLora {
    /// A LoRA at one scale for all blocks.
    pub fn new(lora: Arc<Lora>, scale: f64) -> Self {
        Self { lora, scale, weights: BlockWeights::default() }
    }
}

impl PartialEq for AppliedLora {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.lora, &other.lora) && self.scale == other.scale && self.weights == other.weights
    }
}

/// What to do with DoRA's magnitudes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dora {
    /// Apply them, as LyCORIS and peft do.
    #[default]
    Apply,
    /// As diffusers does: drop LyCORIS' `dora_scale`, apply peft's `lora_magnitude_vector`.
    Ignore,
}

impl Lora {
    /// Reads a file, or the file of a folder, with the `adapter_config.json` beside it.
    ///
    /// # Errors
    /// The file cannot be read, or [`Lora::from_bytes`] would refuse its content.
    pub fn read(path: &Path) -> Result<Self, LoraError> {
        let Files { mut file, config, .. } = Files::open(path)?;
        let same = file.try_clone()?;
        // Parsing takes longer, so hashing beside it costs no time.
        let (lora, sha256) = rayon::join(|| Self::parse(&mut file, config.as_deref()), || sha256_of(&same));
        Ok(Self { sha256: sha256?, ..lora?.ready()? })
    }

    /// Reads a safetensors file that is in memory.
    ///
    /// # Errors
    /// See [`LoraError`]. Every key that cannot be used is an error.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LoraError> {
        let lora = Self::parse(&mut Cursor::new(bytes), None)?.ready()?;
        Ok(Self { sha256: hex::encode(Sha256::digest(bytes)), ..lora })
    }

    /// Reads a safetensors file whose SHA-256 is known.
    ///
    /// # Errors
    /// As [`Lora::from_bytes`].
    pub fn read_hashed(source: &mut (impl Read + Seek), sha256: [u8; 32]) -> Result<Self, LoraError> {
        Ok(Self { sha256: hex::encode(sha256), ..Self::parse(source, None)?.ready()? })
    }

    /// The number of modules that the file changes.
    pub fn modules(&self) -> usize {
        self.layers.len()
    }

    /// The SHA-256 of the whole file, in hex digits.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// What whoever made the file should know, though it is painted: nothing of it is an error.
    pub(crate) fn notes(&self) -> Vec<String> {
        let scaled = || self.layers.iter().filter_map(|layer| Some((layer, layer.weight.as_ref()?)));
        let ranked: Vec<_> = scaled().filter(|(_, change)| change.rank().is_some()).collect();
        let unnamed = ranked.iter().filter(|(layer, _)| layer.alpha.is_none()).count();
        let series = self.info.settings.is_none() && scaled().any(|(_, change)| change.kind.needs_settings());
        let mut notes = Vec::new();
        if unnamed > 0 {
            notes.push(format!(
                "alpha is not named for {unnamed} of {} modules: the rank is taken, so their scale is 1",
                ranked.len()
            ));
        }
        if series {
            notes.push("the settings of its OFT are not named: peft's own are taken".into());
        }
        if !self.info.unused.is_empty() {
            let (first, more) = (cut(&self.info.unused[0], MAX_NAME), self.info.unused.len() - 1);
            let others = if more == 0 { String::new() } else { format!(" (and {more} more)") };
            notes.push(format!("`{first}` is not used{others}"));
        }
        notes
    }

    /// [`Self::validated`], with the notes in the log.
    fn ready(self) -> Result<Self, LoraError> {
        let lora = self.validated()?;
        lora.notes().iter().for_each(|note| tracing::warn!("LoRA: {note}"));
        Ok(lora)
    }

    /// The LoRA itself, if it can be used without looking at a model.
    fn validated(self) -> Result<Self, LoraError> {
        if let Some(error) = self.unsupported_base() {
            return Err(error);
        }
        if !self.misfits.is_empty() {
            return Err(LoraError::Misfits(self.misfits));
        }
        if self.layers.is_empty() {
            return Err(LoraError::NoEffect("no key of it is for a weight"));
        }
        if !self.active && self.layers.iter().all(|layer| layer.weight.as_ref().is_none_or(|w| w.magnitude.is_none())) {
            return Err(LoraError::NoEffect("every product of its matrices is zero"));
        }
        Ok(self)
    }
}

/// The SHA-256 of a file in hex digits. It does not move the file's cursor, which the parser uses at the same time.
fn sha256_of(file: &File) -> io::Result<String> {
    let (mut hash, mut chunk, mut offset) = (Sha256::new(), vec![0; HASHED_AT_ONCE], 0);
    loop {
        match file.read_at(&mut chunk, offset) {
            Ok(0) => return Ok(hex::encode(hash.finalize())),
            Ok(read) => {
                hash.update(&chunk[..read]);
                offset += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
