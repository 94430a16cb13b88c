//! An artist's LoRA: read from a safetensors file, checked key by key, merged over the base weights.
//!
//! Knows what peft, diffusers (three generations), kohya's scripts and LyCORIS write for SD1.5: LoRA, LoCon, LoHa, LoKr, IA3, full
//! differences and DoRA. A file that fits nothing or changes nothing is an error, never a silent no-op.

mod arena;
mod base_model;
mod change;
mod digest;
mod error;
mod half;
mod inspect;
mod keys;
mod layer;
mod ldm;
mod merge;
mod reading;
mod settings;
mod target;
mod vector;

pub use base_model::BaseModel;
pub use error::{LoraError, Misfit};
pub use inspect::{Modules, Range, Report};
pub use keys::Layout;
pub(crate) use merge::LowRank;
pub use merge::{Overlays, Plan, merge, plan};
pub use target::Target;

use arena::Arena;
use layer::Layer;
use std::{
    fs::File,
    io::{Cursor, Read, Seek},
    path::Path,
    sync::Arc,
};

/// One LoRA file in memory, in the dtypes it has on disk.
#[derive(Debug)]
pub struct Lora {
    arena: Arena,
    layers: Vec<Layer>,
    misfits: Vec<Misfit>,
    about: About,
    /// Whether anything but DoRA's lengths changes a weight.
    active: bool,
    sha256: String,
}

/// What is known of a file beside its layers.
#[derive(Debug)]
struct About {
    layouts: Vec<Layout>,
    base: Option<(BaseModel, String)>,
    tensors: usize,
}

/// A LoRA and how strongly it is applied.
#[derive(Debug, Clone)]
pub struct AppliedLora {
    /// The file's content.
    pub lora: Arc<Lora>,
    /// Multiplier; 1 is what the artist trained, 0 is off, negative is away from the style.
    pub scale: f64,
}

impl PartialEq for AppliedLora {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.lora, &other.lora) && self.scale == other.scale
    }
}

/// What becomes of DoRA's lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Dora {
    /// They are applied, as LyCORIS and peft do.
    #[default]
    Apply,
    /// LyCORIS' `dora_scale` is dropped, as diffusers does; peft's `lora_magnitude_vector` is applied, as diffusers does.
    Ignore,
}

impl Lora {
    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, or is refused as by [`Lora::from_bytes`].
    pub fn read(path: &Path) -> Result<Self, LoraError> {
        let mut file = File::open(path)?;
        let same = file.try_clone()?;
        // Hashing goes on beside the reading, which takes longer.
        let (lora, sha256) = rayon::join(|| Self::examine(&mut file), || digest::of_file(&same));
        Ok(Self { sha256: sha256?, ..lora?.sound()? })
    }

    /// Reads a safetensors file that is in memory.
    ///
    /// # Errors
    /// See [`LoraError`]; every key is accounted for.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LoraError> {
        let lora = Self::examine(&mut Cursor::new(bytes))?.sound()?;
        Ok(Self { sha256: digest::of_bytes(bytes), ..lora })
    }

    /// Reads a safetensors file whose SHA-256 is known.
    ///
    /// # Errors
    /// As [`Lora::from_bytes`].
    pub fn read_hashed(source: &mut (impl Read + Seek), sha256: [u8; 32]) -> Result<Self, LoraError> {
        Ok(Self { sha256: hex::encode(sha256), ..Self::examine(source)?.sound()? })
    }

    /// How many modules the file has matrices for.
    pub fn modules(&self) -> usize {
        self.layers.len()
    }

    /// The SHA-256 of the whole file, in hex digits.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    fn sound(self) -> Result<Self, LoraError> {
        if let Some(error) = self.foreign() {
            return Err(error);
        }
        if !self.misfits.is_empty() {
            return Err(LoraError::Misfits(self.misfits));
        }
        if self.layers.is_empty() {
            return Err(LoraError::NoEffect("the file has no keys"));
        }
        if !self.active && self.layers.iter().all(|layer| layer.weight.as_ref().is_none_or(|w| w.magnitude.is_none())) {
            return Err(LoraError::NoEffect("every product of its matrices is zero"));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests;
