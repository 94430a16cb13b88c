//! Reads models: folders in the diffusers layout, with their JSON files and tensors, and checkpoints, which are one file.

mod checkpoint;
pub mod clip;
pub mod config;
mod convert;
mod header;
mod kind;
mod ldm;
mod names;
mod shards;
mod tensor_files;
pub mod weights;

pub use convert::{Written, convert};
pub use header::{Header, HeaderError};
pub use kind::FileKind;
pub use ldm::{unet_to_ldm, vae_to_ldm};
pub use names::{safety_checker_name, text_encoder_name, vae_name};

use crate::error::Result;
use checkpoint::{Checkpoint, Component};
use std::path::Path;
use weights::Weights;

/// File names of the weights of UNet and VAE, in order of preference. Each may have an index with shards in its place.
pub const DIFFUSION_FILES: [&str; 2] =
    ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"];
/// File names of the weights of the text encoder, in order of preference. Each may have an index with shards in its place.
pub const ENCODER_FILES: [&str; 2] = ["model.safetensors", "model.fp16.safetensors"];
/// File names of the weights of the safety checker, in order of preference. Each may have an index with shards in its place.
pub const CHECKER_FILES: [&str; 2] = ENCODER_FILES;

/// The weights of a model under diffusers' names. They stay in their files until they are needed.
pub struct ModelWeights {
    /// Of the text encoder.
    pub text_encoder: Weights,
    /// Of the UNet.
    pub unet: Weights,
    /// Of the VAE.
    pub vae: Weights,
}

impl ModelWeights {
    /// Opens the weights of a model folder or a checkpoint. Only headers are read.
    ///
    /// # Errors
    /// A file is missing or is none with weights, or a checkpoint is one of another base model. The error names the file.
    pub fn open(model: &Path) -> Result<Self> {
        if is_checkpoint(model) {
            let checkpoint = Checkpoint::open(model)?;
            if let [first, rest @ ..] = checkpoint.unread().as_slice() {
                tracing::warn!(model = %model.display(), tensor = first, more = rest.len(), "tensors of the checkpoint are not read");
            }
            let weights = |component| checkpoint.component(component).map(Weights::of_files);
            return Ok(Self {
                text_encoder: weights(Component::TextEncoder)?,
                unet: weights(Component::Unet)?,
                vae: weights(Component::Vae)?,
            });
        }
        let text_encoder = Weights::open(&model.join("text_encoder"), &ENCODER_FILES)?;
        Ok(Self {
            text_encoder: text_encoder.renamed(text_encoder_name),
            unet: Weights::open(&model.join("unet"), &DIFFUSION_FILES)?,
            vae: Weights::open(&model.join("vae"), &DIFFUSION_FILES)?.renamed(vae_name),
        })
    }

    /// Reads all tensors into memory, floats as f32.
    ///
    /// # Errors
    /// A tensor has a dtype that is not supported, or reading fails.
    pub fn in_memory(self) -> Result<Self> {
        let Self { text_encoder, unet, vae } = self;
        Ok(Self { text_encoder: text_encoder.in_memory()?, unet: unet.in_memory()?, vae: vae.in_memory()? })
    }
}

/// Whether a model is one file and not a folder.
pub fn is_checkpoint(model: &Path) -> bool {
    model.is_file()
}

/// The text of one of a model's settings, by its name in a model folder. A checkpoint has those of Stable Diffusion 1.5.
///
/// # Errors
/// The file is missing or another one than its name says, or a checkpoint cannot be used.
pub(crate) fn settings(model: &Path, name: &str) -> Result<String> {
    if is_checkpoint(model) {
        let settings = Checkpoint::open(model)?.file(name);
        return Ok(settings.unwrap_or_default());
    }
    config::read_text(&model.join(name))
}

/// Asks the operating system to read a model's weights into its page cache. Does not wait for it.
pub fn read_ahead(model: &Path) {
    if is_checkpoint(model) {
        return weights::read_files_ahead(vec![model.into()]);
    }
    weights::read_ahead(&model.join("unet"), &DIFFUSION_FILES);
    weights::read_ahead(&model.join("text_encoder"), &ENCODER_FILES);
    weights::read_ahead(&model.join("vae"), &DIFFUSION_FILES);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline;
    use std::fs;

    /// easel-tiny's folder with links to its files; one has another content.
    fn model_with(name: &str, content: &str) -> tempfile::TempDir {
        let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/model/easel-tiny"));
        let folder = tempfile::tempdir().unwrap();
        for part in ["scheduler", "text_encoder", "tokenizer", "unet", "vae"] {
            fs::create_dir(folder.path().join(part)).unwrap();
            for entry in fs::read_dir(model.join(part)).unwrap() {
                let file = entry.unwrap().file_name();
                std::os::unix::fs::symlink(model.join(part).join(&file), folder.path().join(part).join(&file)).unwrap();
            }
        }
        std::os::unix::fs::symlink(model.join("model_index.json"), folder.path().join("model_index.json")).unwrap();
        fs::remove_file(folder.path().join(name)).unwrap();
        fs::write(folder.path().join(name), content).unwrap();
        folder
    }

    #[test]
    fn other_files_in_place_of_settings_are_said_by_their_kind() {
        let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 743\n";
        let cases = [
            ("unet/config.json", pointer, "a Git LFS pointer, not the file of 743 bytes itself: run `git lfs pull`"),
            ("vae/config.json", "<!DOCTYPE html>", "a web page"),
            (
                "scheduler/scheduler_config.json",
                "{\"error\":\"Repository not found\"}",
                "JSON (`Repository not found`)",
            ),
            ("model_index.json", "Entry not found", "a text (`Entry not found`)"),
            ("text_encoder/config.json", "", "an empty file"),
        ];
        for (name, content, said) in cases {
            let folder = model_with(name, content);
            let error = pipeline::inspect(folder.path()).unwrap_err().to_string();
            assert!(error.contains(&format!("{name}: it is {said}")), "{error}");
        }
    }
}
