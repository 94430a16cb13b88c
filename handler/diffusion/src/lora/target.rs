//! The modules of a model, by every name that a LoRA may use for them: diffusers' names and those of the original Stable Diffusion
//! code (LDM), which some kohya files have.

use super::{LoraError, base_model::BaseModel, keys::Component};
use crate::{
    loading::{DIFFUSION_FILES, ENCODER_FILES, weights::Weights},
    models::text_encoder,
};
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

/// The names and shapes of a model's modules, to which LoRAs must fit.
pub struct Target {
    modules: Vec<Module>,
    /// Index into `modules` by component and name with `_` for `.`.
    names: HashMap<(Component, String), usize>,
    base: Option<BaseModel>,
}

/// One module of the model.
pub(super) struct Module {
    pub component: Component,
    /// Its path in diffusers' names, with dots.
    pub path: String,
    /// The shape of its weight.
    pub weight: Option<Vec<usize>>,
    /// The shape of its bias.
    pub bias: Option<Vec<usize>>,
}

impl Target {
    /// The modules of a model folder. Only the headers of its files are read.
    ///
    /// # Errors
    /// A file is missing or is not a safetensors file.
    pub fn of_folder(model: &Path) -> Result<Self, LoraError> {
        let text_encoder = Weights::open(&model.join("text_encoder"), &ENCODER_FILES)?;
        let text_encoder = text_encoder.renamed(text_encoder::canonical_name);
        Ok(Self::of_weights(&Weights::open(&model.join("unet"), &DIFFUSION_FILES)?, &text_encoder))
    }

    /// The modules of these weights.
    pub fn of_weights(unet: &Weights, text_encoder: &Weights) -> Self {
        let mut found: BTreeMap<(Component, String), Module> = BTreeMap::new();
        for (component, weights) in [(Component::Unet, unet), (Component::TextEncoder, text_encoder)] {
            for name in weights.names() {
                let Some((path, part)) = name.rsplit_once('.') else { continue };
                let module = Module { component, path: path.to_string(), weight: None, bias: None };
                let module = found.entry((component, path.to_string())).or_insert(module);
                let dims = weights.dims(name).map(<[usize]>::to_vec);
                match part {
                    "weight" => module.weight = dims,
                    "bias" => module.bias = dims,
                    _ => {}
                }
            }
        }
        let modules: Vec<Module> = found.into_values().collect();
        let per_block = resnets_per_block(modules.iter().map(|module| module.path.as_str()));
        let mut names = HashMap::new();
        let mut base = None;
        for (index, module) in modules.iter().enumerate() {
            let alias = match module.component {
                Component::Unet => ldm_name(&module.path, per_block),
                // The name in transformers 5.
                Component::TextEncoder => module.path.strip_prefix("text_model.").map(str::to_string),
            };
            for path in [Some(module.path.clone()), alias].into_iter().flatten() {
                names.insert((module.component, path.replace('.', "_")), index);
            }
            if module.path.ends_with("attn2.to_k") {
                base = module.weight.as_ref().and_then(|dims| BaseModel::of_context(*dims.get(1)?));
            }
        }
        Self { modules, names, base }
    }

    /// The module of that name, `_` for `.`.
    pub(super) fn module(&self, component: Component, name: &str) -> Option<&Module> {
        self.names.get(&(component, name.to_string())).map(|&index| &self.modules[index])
    }

    /// The base model, if the width of the prompt's embedding shows it.
    pub(super) fn base(&self) -> Option<BaseModel> {
        self.base
    }
}

/// ResNets per block of the UNet, from the names of its modules. 2 in SD1.5.
fn resnets_per_block<'a>(paths: impl Iterator<Item = &'a str>) -> usize {
    let index = |path: &str| path.strip_prefix("down_blocks.0.resnets.")?.split('.').next()?.parse::<usize>().ok();
    paths.filter_map(index).max().map_or(2, |last| last + 1)
}

/// The LDM name of a module of diffusers' UNet with `per_block` ResNets per block.
fn ldm_name(path: &str, per_block: usize) -> Option<String> {
    let whole = [
        ("conv_in", "input_blocks.0.0"),
        ("conv_norm_out", "out.0"),
        ("conv_out", "out.2"),
        ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"),
    ];
    if let Some((_, name)) = whole.iter().find(|(ours, _)| *ours == path) {
        return Some((*name).to_string());
    }
    if let Some(rest) = path.strip_prefix("mid_block.") {
        let (kind, index, rest) = numbered(rest)?;
        return match (kind, index) {
            ("resnets", 0 | 1) => Some(format!("middle_block.{}.{}", 2 * index, resnet(rest)?)),
            ("attentions", 0) => Some(format!("middle_block.1.{rest}")),
            _ => None,
        };
    }
    let (side, block, rest) = numbered(path)?;
    let (kind, layer, rest) = numbered(rest)?;
    // Each block has one index more than ResNets: down blocks for the downsampler, up blocks for one more ResNet.
    let index = block * (per_block + 1) + layer;
    match (side, kind) {
        ("down_blocks", "resnets") => Some(format!("input_blocks.{}.0.{}", index + 1, resnet(rest)?)),
        ("down_blocks", "attentions") => Some(format!("input_blocks.{}.1.{rest}", index + 1)),
        ("down_blocks", "downsamplers") => Some(format!("input_blocks.{}.0.op", (block + 1) * (per_block + 1))),
        ("up_blocks", "resnets") => Some(format!("output_blocks.{index}.0.{}", resnet(rest)?)),
        ("up_blocks", "attentions") => Some(format!("output_blocks.{index}.1.{rest}")),
        // After the attention, which all up blocks but the first have.
        ("up_blocks", "upsamplers") => {
            let after = if block == 0 { 1 } else { 2 };
            Some(format!("output_blocks.{}.{after}.conv", block * (per_block + 1) + per_block))
        }
        _ => None,
    }
}

/// `resnets.1.conv1` is `("resnets", 1, "conv1")`.
fn numbered(path: &str) -> Option<(&str, usize, &str)> {
    let (kind, rest) = path.split_once('.')?;
    let (index, rest) = rest.split_once('.')?;
    Some((kind, index.parse().ok()?, rest))
}

fn resnet(part: &str) -> Option<&'static str> {
    Some(match part {
        "norm1" => "in_layers.0",
        "conv1" => "in_layers.2",
        "time_emb_proj" => "emb_layers.1",
        "norm2" => "out_layers.0",
        "conv2" => "out_layers.3",
        "conv_shortcut" => "skip_connection",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sd15_are_those_of_the_original_code() {
        let cases = [
            ("conv_in", "input_blocks.0.0"),
            ("down_blocks.0.attentions.1.proj_in", "input_blocks.2.1.proj_in"),
            ("down_blocks.0.downsamplers.0.conv", "input_blocks.3.0.op"),
            (
                "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
                "input_blocks.4.1.transformer_blocks.0.attn1.to_q",
            ),
            ("down_blocks.3.resnets.1.conv2", "input_blocks.11.0.out_layers.3"),
            ("mid_block.resnets.1.time_emb_proj", "middle_block.2.emb_layers.1"),
            ("mid_block.attentions.0.proj_out", "middle_block.1.proj_out"),
            ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
            ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
            ("up_blocks.3.resnets.2.conv_shortcut", "output_blocks.11.0.skip_connection"),
            ("up_blocks.3.attentions.2.proj_out", "output_blocks.11.1.proj_out"),
            ("time_embedding.linear_2", "time_embed.2"),
            ("conv_out", "out.2"),
        ];
        for (ours, theirs) in cases {
            assert_eq!(ldm_name(ours, 2).as_deref(), Some(theirs), "{ours}");
        }
    }
}
