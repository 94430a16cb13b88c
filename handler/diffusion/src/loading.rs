//! Reads model folders in the diffusers layout: their JSON files and their tensors.

pub mod config;
mod header;
mod kind;
mod shards;
mod tensor_files;
pub mod weights;

pub use header::{Header, HeaderError};
pub use kind::FileKind;

use std::path::Path;

/// File names of the weights of UNet and VAE, in order of preference. Each may have an index with shards in its place.
pub const DIFFUSION_FILES: [&str; 2] =
    ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"];
/// File names of the weights of the text encoder, in order of preference. Each may have an index with shards in its place.
pub const ENCODER_FILES: [&str; 2] = ["model.safetensors", "model.fp16.safetensors"];

/// Asks the operating system to read a model's weights into its page cache. Does not wait for it.
pub fn read_ahead(model: &Path) {
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
