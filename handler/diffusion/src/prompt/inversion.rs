//! Textual inversions: files with token embeddings that somebody trained (Gal et al., "An image is worth one word", 2022), and the tokens
//! that stand for them in a prompt.
//!
//! A file is a safetensors file with one tensor: `[width]` or `[vectors, width]`. diffusers names the tensor as the token; other programs
//! name it `emb_params`, and the token must be told. Several vectors are the tokens `x`, `x_1`, `x_2` and so on, and `x` in a prompt
//! stands for all of them, as in diffusers.

use crate::{
    error::{MAX_NAME, cut},
    loading::{FileKind, Header, HeaderError},
};
use safetensors::{Dtype, tensor::TensorInfo};
use sha2::{Digest, Sha256};
use std::{
    fs::File,
    io::{self, Cursor, Read, Seek},
    path::Path,
    sync::Arc,
};

/// Most vectors of a file: as many as a prompt has tokens beside start and end.
pub const MAX_VECTORS: usize = 75;
/// Largest file, in bytes.
pub const MAX_BYTES: u64 = 4 << 20;
/// Longest token, in characters.
pub const MAX_TOKEN: usize = 100;
/// Names of tensors that are no tokens: those of AUTOMATIC1111's web UI and kohya's scripts, of SDXL files, and of old files.
const NO_TOKENS: [&str; 3] = ["emb_params", "clip_l", "*"];
/// Tensors of text encoders that SD1.5 does not have.
const OTHER_ENCODERS: [&str; 4] = ["clip_g", "t5", "t5xxl", "llama"];

/// A file's vectors.
#[derive(Debug)]
pub struct TextualInversion {
    /// The name of the tensor, if it is a token.
    token: Option<String>,
    /// The numbers of all vectors.
    numbers: Vec<f32>,
    width: usize,
    sha256: String,
}

/// A textual inversion and the token for it.
#[derive(Debug, Clone)]
pub struct AppliedInversion {
    /// The file's content.
    pub inversion: Arc<TextualInversion>,
    /// What stands for it in a prompt. By default, the name in the file.
    pub token: Option<String>,
}

impl PartialEq for AppliedInversion {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inversion, &other.inversion) && self.token == other.token
    }
}

/// Why a textual inversion cannot be used. All but `File` are faults of the file or of its token.
#[derive(Debug, thiserror::Error)]
pub enum InversionError {
    /// The bytes are not a safetensors file.
    #[error("the textual inversion is not a safetensors file: {0}")]
    NotSafetensors(String),
    /// The bytes are something else, whatever the file's name says.
    #[error("the textual inversion is {0}")]
    OtherKind(FileKind),
    /// The file's content, or its token, does not fit.
    #[error("the textual inversion {0}")]
    Unfit(String),
    /// The file cannot be read.
    #[error("the textual inversion cannot be read: {0}")]
    File(#[from] io::Error),
}

impl From<HeaderError> for InversionError {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::NotSafetensors(reason) => Self::NotSafetensors(reason),
            HeaderError::OtherKind(kind) => Self::OtherKind(kind),
            HeaderError::File(error) => Self::File(error),
        }
    }
}

impl InversionError {
    /// Whether the file or its token is at fault, so that a retry would end the same way.
    pub fn is_permanent(&self) -> bool {
        !matches!(self, Self::File(_))
    }
}

fn unfit(what: impl Into<String>) -> InversionError {
    InversionError::Unfit(what.into())
}

impl TextualInversion {
    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, or [`TextualInversion::from_bytes`] would refuse its content.
    pub fn read(path: &Path) -> Result<Self, InversionError> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        if length > MAX_BYTES {
            return Err(unfit(format!("has {length} bytes, the limit is {MAX_BYTES}")));
        }
        let mut bytes = Vec::with_capacity(length as usize);
        file.take(MAX_BYTES).read_to_end(&mut bytes)?;
        Self::from_bytes(&bytes)
    }

    /// Reads a safetensors file that is in memory.
    ///
    /// # Errors
    /// It is no safetensors file, has not one tensor, or that is no vectors of finite numbers.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InversionError> {
        Self::read_hashed(&mut Cursor::new(bytes), Sha256::digest(bytes).into())
    }

    /// Reads a safetensors file whose SHA-256 is known.
    ///
    /// # Errors
    /// As [`TextualInversion::from_bytes`].
    pub fn read_hashed(source: &mut (impl Read + Seek), sha256: [u8; 32]) -> Result<Self, InversionError> {
        let header = Header::read(source)?;
        if let Some((name, _)) = header.tensors.iter().find(|(name, _)| OTHER_ENCODERS.contains(&name.as_str())) {
            return Err(unfit(format!(
                "was made for a model with other text encoders (its tensor `{name}`), not for Stable Diffusion 1.5"
            )));
        }
        let [(name, info)] = header.tensors.as_slice() else {
            let names: Vec<_> = header.tensors.iter().take(3).map(|(name, _)| cut(name, MAX_NAME)).collect();
            let (count, names) = (header.tensors.len(), names.join(", "));
            return Err(unfit(format!("has {count} tensors ({names}), must have one: the vectors of its token")));
        };
        let (vectors, width) = match *info.shape.as_slice() {
            [width] => (1, width),
            [vectors, width] => (vectors, width),
            _ => {
                let shape = cut(&format!("{:?}", info.shape), MAX_NAME).into_owned();
                return Err(unfit(format!("is {shape}, must be [width] or [vectors, width]")));
            }
        };
        if vectors == 0 || width == 0 {
            return Err(unfit(format!("is {:?} and holds no numbers", info.shape)));
        }
        if vectors > MAX_VECTORS {
            return Err(unfit(format!("has {vectors} vectors, a prompt has room for {MAX_VECTORS}")));
        }
        let numbers = numbers(&header, source, info)?;
        if numbers.iter().any(|number| !number.is_finite()) {
            return Err(unfit("holds NaN or infinity"));
        }
        let token = Some(name.clone()).filter(|name| !NO_TOKENS.contains(&name.as_str()));
        Ok(Self { token, numbers, width, sha256: hex::encode(sha256) })
    }

    /// The SHA-256 of the whole file, in hex digits.
    pub fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The vectors, for an encoder whose embeddings have `width` numbers.
    ///
    /// # Errors
    /// They have another width.
    pub(crate) fn vectors(&self, width: usize) -> Result<impl ExactSizeIterator<Item = &[f32]>, InversionError> {
        if self.width != width {
            let made_for = match self.width {
                768 => " (made for Stable Diffusion 1)",
                1024 => " (made for Stable Diffusion 2)",
                1280 => " (made for SDXL)",
                _ => "",
            };
            let own = self.width;
            return Err(unfit(format!(
                "has vectors of {own} numbers{made_for}, those of the text encoder have {width}"
            )));
        }
        Ok(self.numbers.chunks_exact(width))
    }
}

impl AppliedInversion {
    /// The token for it.
    ///
    /// # Errors
    /// Neither the request nor the file names one, or it is empty or too long.
    pub(crate) fn token(&self) -> Result<&str, InversionError> {
        let token = self.token.as_deref().or(self.inversion.token.as_deref());
        let token = token.ok_or_else(|| unfit("names no token: give the word that stands for it in the prompt"))?;
        let length = token.chars().count();
        if token.trim().is_empty() || length > MAX_TOKEN {
            return Err(unfit(format!(
                "has a token of {length} characters, must be 1 to {MAX_TOKEN} with something to see"
            )));
        }
        Ok(token)
    }
}

fn numbers(header: &Header, source: &mut (impl Read + Seek), info: &TensorInfo) -> Result<Vec<f32>, InversionError> {
    let size = match info.dtype {
        Dtype::F64 => 8,
        Dtype::F32 => 4,
        Dtype::F16 | Dtype::BF16 => 2,
        other => return Err(unfit(format!("is {other:?}; F64, F32, F16 and BF16 are supported"))),
    };
    let mut bytes = Vec::new();
    header.bytes(source, info, |chunk| bytes.extend_from_slice(chunk))?;
    let number = |bytes: &[u8]| match (info.dtype, bytes) {
        (Dtype::F16, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f32(),
        (Dtype::BF16, &[a, b]) => half::bf16::from_le_bytes([a, b]).to_f32(),
        (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (_, bytes) => bytes.try_into().map_or(f32::NAN, |bytes| f64::from_le_bytes(bytes) as f32),
    };
    Ok(bytes.chunks_exact(size).map(number).collect())
}
