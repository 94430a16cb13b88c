//! A checkpoint: one file with a whole Stable Diffusion 1.x model, in the names of the original code (LDM), as most models are shared.
//!
//! It has the tensors of UNet, text encoder and VAE under `model.diffusion_model.`, `cond_stage_model.transformer.` and
//! `first_stage_model.`, and no settings: they are those of Stable Diffusion 1.5, with the widths that the tensors have. Tensors with
//! other names are not read: averages of training (`model_ema.`), constants of the noise schedule, and what other programs keep there.
//! diffusers' `from_single_file` does the same.

mod base;
mod settings;
mod structure;
#[cfg(test)]
mod tests;

pub(super) use settings::FILES;

use super::{
    ldm::{unet_from_ldm, vae_from_ldm},
    shards::unreadable,
    tensor_files::TensorFiles,
};
use crate::error::{MAX_NAME, PipelineError, Result, cut};
use std::path::{Path, PathBuf};
use structure::Structure;

/// Before the names of the UNet.
const UNET: &str = "model.diffusion_model.";
/// Before the names of the text encoder.
const TEXT: &str = "cond_stage_model.transformer.";
/// Before the names of the VAE. If a file has several, the last one counts, as in diffusers.
const VAE: [&str; 2] = ["first_stage_model.", "vae."];
/// Beginnings of names that every checkpoint may have, and that say nothing about its pictures.
const SILENT: [&str; 13] = [
    "model_ema.",
    "alphas_cumprod",
    "betas",
    "log_one_minus_alphas_cumprod",
    "logvar",
    "posterior_",
    "sqrt_",
    "cond_stage_model.logit_scale",
    "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "cond_stage_model.transformer.embeddings.position_ids",
    "first_stage_model.loss.",
    "v_pred",
    "ztsnr",
];

/// An opened checkpoint. Its header is read, its tensors are not.
pub(super) struct Checkpoint {
    path: PathBuf,
    files: TensorFiles,
    structure: Structure,
    /// The name of the VAE's tensors begins so.
    vae: &'static str,
}

/// A network of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Component {
    TextEncoder,
    Unet,
    Vae,
}

impl Checkpoint {
    /// Opens a file and finds out what it is.
    ///
    /// # Errors
    /// It is not a safetensors file, or no checkpoint of Stable Diffusion 1.x. The error says what it is.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut files = TensorFiles::default();
        files.add(path).map_err(|error| unreadable(path, error))?;
        let vae = VAE.into_iter().rfind(|prefix| files.names().any(|name| name.starts_with(prefix))).unwrap_or(VAE[0]);
        let wrong = |reason: String| PipelineError::ModelFile { path: path.into(), reason };
        base::check(&files).map_err(wrong)?;
        let structure = Structure::of(&files, vae).map_err(wrong)?;
        Ok(Self { path: path.into(), files, structure, vae })
    }

    /// The content of a file that a model folder with this model has.
    pub(super) fn file(&self, name: &str) -> Option<String> {
        let has = |mark| self.files.get(mark).is_some();
        settings::file(name, &self.structure, has("v_pred"), has("ztsnr"))
    }

    /// The tensors of a component under diffusers' names.
    ///
    /// # Errors
    /// Two tensors are the same part of the model.
    pub(super) fn component(&self, component: Component) -> Result<TensorFiles> {
        let rename = |name: &str| self.place(name).filter(|(found, _)| *found == component).map(|(_, name)| name);
        let picked = self.files.picked(|name, dims| {
            let name = rename(name)?;
            // Convolutions of 1x1 in LDM, of one dimension in some converters' files, linear layers in diffusers.
            let dims = match dims {
                [out, inner, rest @ ..]
                    if name.contains("coder.mid_block.attentions.") && rest.iter().all(|&side| side == 1) =>
                {
                    vec![*out, *inner]
                }
                _ => dims.to_vec(),
            };
            Some((name, dims))
        });
        let mut wanted: Vec<String> = self.files.names().filter_map(rename).collect();
        wanted.sort();
        match wanted.windows(2).find(|pair| pair[0] == pair[1]) {
            None => Ok(picked),
            Some(pair) => {
                let reason = format!("two of its tensors are `{}` in diffusers' names: take another copy", pair[0]);
                Err(PipelineError::ModelFile { path: self.path.clone(), reason })
            }
        }
    }

    /// Names of tensors that are not read, and that not every checkpoint may have; shortened and sorted.
    pub(super) fn unread(&self) -> Vec<String> {
        let silent = |name: &str| SILENT.iter().any(|start| name.starts_with(start));
        let unread = self.files.names().filter(|name| !silent(name) && self.place(name).is_none());
        let mut unread: Vec<String> = unread.map(|name| cut(name, MAX_NAME).into_owned()).collect();
        unread.sort();
        unread
    }

    /// The component that a tensor belongs to, and its name there in diffusers' names.
    fn place(&self, name: &str) -> Option<(Component, String)> {
        if let Some(name) = name.strip_prefix(UNET) {
            let renamed = module(name, |module| unet_from_ldm(module, self.structure.per_block));
            return Some((Component::Unet, renamed?));
        }
        if let Some(name) = name.strip_prefix(TEXT) {
            let name = name.strip_prefix("text_model.").unwrap_or(name);
            let known = ["encoder.", "embeddings.", "final_layer_norm."].iter().any(|start| name.starts_with(start));
            let read = known && !name.ends_with(".position_ids");
            return read.then(|| (Component::TextEncoder, format!("text_model.{name}")));
        }
        let name = name.strip_prefix(self.vae)?;
        let renamed = module(name, |module| vae_from_ldm(module, self.structure.vae_channels.len()));
        Some((Component::Vae, renamed?))
    }
}

/// Renames the module in a tensor's name.
fn module(name: &str, rename: impl Fn(&str) -> Option<String>) -> Option<String> {
    let (module, part) = name.rsplit_once('.').filter(|(_, part)| matches!(*part, "weight" | "bias"))?;
    Some(format!("{}.{part}", rename(module)?))
}
