//! Checks a model without reading its weights: whether its settings fit together, and whether its files have the tensors that its networks
//! need. Loading a model and looking at it ask the same questions here.

use super::{networks, safety, tokenizer};
use crate::{
    error::{MAX_NAME, PipelineError, Result, cut},
    loading::{
        DIFFUSION_FILES, ENCODER_FILES, ModelWeights,
        config::{ModelIndex, TextEncoderConfig, UnetConfig, VaeConfig, check_together},
        is_checkpoint, safety_checker_name, text_encoder_name, vae_name,
        weights::Weights,
    },
    ops::params::Shapes,
    schedulers::{self, Kind, SchedulerConfig},
};
use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

/// What names of the original code begin with, in a whole checkpoint and in the network alone.
const ORIGINAL: [(&str, &[&str]); 3] = [
    ("text_encoder", &["cond_stage_model.", "transformer.text_model.", "transformer.resblocks.", "model.transformer."]),
    ("unet", &["model.diffusion_model.", "diffusion_model.", "input_blocks.", "middle_block.", "output_blocks."]),
    ("vae", &["first_stage_model.", "decoder.mid.", "decoder.up.", "encoder.mid.", "encoder.down."]),
];
/// Tensors that a file has beside those of the networks here, by folder and a part of the name.
const EXPECTED: [(&str, &[&str]); 4] = [
    ("text_encoder", &["position_ids", "text_projection.", "logit_scale", "vision_model."]),
    ("unet", &[]),
    ("vae", &["encoder.", "quant_conv."]),
    (safety::CHECKER, &["position_ids"]),
];

/// What was found in a model that can be loaded.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Tensors of the networks.
    pub tensors: usize,
    /// Tensors that no network reads: their folder, their number, and the first by name.
    pub unread: Vec<(&'static str, usize, String)>,
    /// Schedulers that cannot be built from the folder's file, with the reason. The default one is not among them.
    pub unusable: Vec<(Kind, PipelineError)>,
}

/// Checks a model folder or a checkpoint without reading its weights: settings, tokenizer, schedulers, and the names and shapes of all
/// tensors.
///
/// # Errors
/// A missing or broken file, or an unsupported model. The error names the file and the field or tensor.
pub fn inspect(model: &Path) -> Result<Inspection> {
    inspect_settings(model)?;
    let config = SchedulerConfig::load(model)?;
    let mut inspection = Inspection::default();
    for ((folder, needed), weights) in networks::parameters_by_folder(model)?.iter().zip(open(model)?) {
        let found = Found::of_weights(folder, &weights);
        found.fits(needed)?;
        inspection.tensors += needed.len();
        inspection.unread.extend(found.unread(needed));
    }
    for &(_, kind) in Kind::NAMES {
        if let Err(error) = schedulers::check(kind, &config) {
            inspection.unusable.push((kind, error));
        }
    }
    Ok(inspection)
}

/// Checks the JSON files and the tokenizer of a model folder, and that they fit together. Needs no weights.
///
/// # Errors
/// As [`inspect`].
pub fn inspect_settings(model: &Path) -> Result<()> {
    let (index, text) = (ModelIndex::load(model)?, TextEncoderConfig::load(model)?);
    check_together(&index, &text, &UnetConfig::load(model)?, &VaeConfig::load(model)?)?;
    tokenizer(model, &text)?;
    schedulers::check(Kind::default(), &SchedulerConfig::load(model)?)
}

/// Checks tensors, by name and shape as their files have them, against what the network of a folder (`text_encoder`, `unet`, `vae`,
/// `safety_checker`) needs. Reads only the model folder's JSON files.
///
/// # Errors
/// As [`inspect`], or there is no such network.
pub fn check_weights(model: &Path, folder: &str, tensors: &Shapes) -> Result<()> {
    let found = |folder| Found::new(folder, tensors.iter().map(|(name, dims)| (name.as_str(), dims.as_slice())));
    if folder == safety::CHECKER {
        return found(safety::CHECKER).fits(&safety::shapes(&safety::settings_of(model)?)?);
    }
    let networks = networks::parameters_by_folder(model)?;
    let Some((folder, needed)) = networks.into_iter().find(|(name, _)| *name == folder) else {
        return Err(candle_core::Error::msg(format!("a model has no {folder}/")).into());
    };
    found(folder).fits(&needed)
}

/// Checks the headers of weights against what a network needs.
///
/// # Errors
/// A tensor is missing or has another shape.
pub(super) fn fits(folder: &'static str, weights: &Weights, needed: &Shapes) -> Result<()> {
    Found::of_weights(folder, weights).fits(needed)
}

/// The same, and returns the number of tensors that the network does not read, with the name of the first.
///
/// # Errors
/// As [`fits`].
pub(super) fn unread_of(folder: &'static str, weights: &Weights, needed: &Shapes) -> Result<Option<(usize, String)>> {
    let found = Found::of_weights(folder, weights);
    found.fits(needed)?;
    Ok(found.unread(needed).map(|(_, number, first)| (number, first)))
}

/// Opens the weights of a model folder or a checkpoint, and checks their headers. They have diffusers' names.
///
/// # Errors
/// As [`inspect`].
pub(super) fn open_checked(model: &Path) -> Result<ModelWeights> {
    let weights = open(model)?;
    for ((folder, needed), weights) in networks::parameters_by_folder(model)?.iter().zip(&weights) {
        Found::of_weights(folder, weights).fits(needed)?;
    }
    let [text_encoder, unet, vae] = weights;
    Ok(ModelWeights { text_encoder: text_encoder.renamed(text_encoder_name), unet, vae: vae.renamed(vae_name) })
}

/// Opens the weights of text encoder, UNet and VAE. Those of a folder have the names that they have in their files.
fn open(model: &Path) -> Result<[Weights; 3]> {
    if is_checkpoint(model) {
        let ModelWeights { text_encoder, unet, vae } = ModelWeights::open(model)?;
        return Ok([text_encoder, unet, vae]);
    }
    Ok([
        Weights::open(&model.join("text_encoder"), &ENCODER_FILES)?,
        Weights::open(&model.join("unet"), &DIFFUSION_FILES)?,
        Weights::open(&model.join("vae"), &DIFFUSION_FILES)?,
    ])
}

/// The name that the networks here use.
fn canonical(folder: &str, name: &str) -> String {
    match folder {
        "text_encoder" => text_encoder_name(name),
        "vae" => vae_name(name),
        safety::CHECKER => safety_checker_name(name),
        _ => name.to_string(),
    }
}

/// The tensors of one folder.
struct Found {
    folder: &'static str,
    /// By the name in the networks: the name in the file, and the shape. In order, so that an error names the same one each time.
    tensors: BTreeMap<String, (String, Vec<usize>)>,
}

impl Found {
    fn new<'a>(folder: &'static str, tensors: impl Iterator<Item = (&'a str, &'a [usize])>) -> Self {
        let tensor = |(name, dims): (&str, &[usize])| (canonical(folder, name), (name.to_string(), dims.to_vec()));
        Self { folder, tensors: tensors.map(tensor).collect() }
    }

    fn of_weights(folder: &'static str, weights: &Weights) -> Self {
        Self::new(folder, weights.names().into_iter().filter_map(|name| Some((name, weights.dims(name)?))))
    }

    /// Checks that every tensor of the network is there in its shape.
    fn fits(&self, needed: &Shapes) -> Result<()> {
        let folder = self.folder;
        let misfit = |problem| PipelineError::Misfit { folder, problem };
        let others = |count: usize| match count {
            0 => String::new(),
            1 => ", and 1 other".into(),
            count => format!(", and {count} others"),
        };
        let missing: Vec<&(String, Vec<usize>)> =
            needed.iter().filter(|(name, _)| !self.tensors.contains_key(name)).collect();
        if let [(name, dims), ..] = missing.as_slice() {
            let others = others(missing.len() - 1);
            let lacks = format!("the weights have no `{name}` {dims:?}{others} that {folder}/config.json asks for");
            return Err(misfit(self.another_form().map_or(lacks.clone(), |form| format!("{form} ({lacks})"))));
        }
        let differs =
            |(name, dims): &&(String, Vec<usize>)| self.tensors.get(name).is_some_and(|(_, found)| found != dims);
        let wrong: Vec<&(String, Vec<usize>)> = needed.iter().filter(differs).collect();
        match wrong.as_slice() {
            [] => Ok(()),
            [(name, dims), ..] => {
                let (found, others) = (&self.tensors[name].1, others(wrong.len() - 1));
                let differs = if wrong.len() > 1 { ", differ" } else { "" };
                Err(misfit(format!("`{name}` is {found:?}, {folder}/config.json asks for {dims:?}{others}{differs}")))
            }
        }
    }

    /// What the file is instead, by the names of its tensors.
    fn another_form(&self) -> Option<String> {
        let file_names = || self.tensors.values().map(|(name, _)| name.as_str());
        let begins = |starts: &[&str]| file_names().find(|name| starts.iter().any(|start| name.starts_with(start)));
        let (_, own) = ORIGINAL.iter().find(|(folder, _)| *folder == self.folder)?;
        let whole = ORIGINAL.iter().find_map(|(_, starts)| begins(&starts[..1]));
        if let Some(name) = whole.or_else(|| begins(own)) {
            return Some(format!(
                "the weights have names of the original Stable Diffusion code, as `{}`: they are a checkpoint's; give that \
                 file as the model, or make a folder of it by handler weights convert",
                cut(name, MAX_NAME)
            ));
        }
        let lora = file_names().find(|name| name.contains("lora_") || name.contains(".lora"))?;
        Some(format!("the weights are a LoRA, as `{}` shows, and no model", cut(lora, MAX_NAME)))
    }

    /// Number and first name of the tensors that are not expected.
    fn unread(&self, needed: &Shapes) -> Option<(&'static str, usize, String)> {
        let read: HashSet<&str> = needed.iter().map(|(name, _)| name.as_str()).collect();
        let expected = EXPECTED.iter().find(|(folder, _)| *folder == self.folder).map_or(&[][..], |(_, parts)| parts);
        let unread = self.tensors.iter().filter(|(name, _)| !read.contains(name.as_str()));
        let unread = unread.map(|(_, (name, _))| name.as_str());
        let mut unread: Vec<&str> = unread.filter(|name| !expected.iter().any(|part| name.contains(part))).collect();
        unread.sort_unstable();
        let first = cut(unread.first()?, MAX_NAME).into_owned();
        Some((self.folder, unread.len(), first))
    }
}

#[cfg(test)]
mod tests;
