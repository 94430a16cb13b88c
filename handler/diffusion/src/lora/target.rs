//! The modules of a model, by every name that a LoRA may use for them: diffusers' names and those of the original Stable Diffusion
//! code (LDM), which some kohya files have.

use super::{LoraError, base_model::BaseModel, keys::Component};
use crate::loading::{ModelWeights, unet_to_ldm, weights::Weights};
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
    /// The modules of a model folder or a checkpoint. Only the headers of its files are read.
    ///
    /// # Errors
    /// A file is missing or is not a safetensors file.
    pub fn of_folder(model: &Path) -> Result<Self, LoraError> {
        let weights = ModelWeights::open(model)?;
        Ok(Self::of_weights(&weights.unet, &weights.text_encoder))
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
                Component::Unet => unet_to_ldm(&module.path, per_block),
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

    /// The paths of all modules of the UNet, in diffusers' names.
    pub(super) fn paths(&self) -> impl Iterator<Item = &str> {
        let of_unet = self.modules.iter().filter(|module| module.component == Component::Unet);
        of_unet.map(|module| module.path.as_str())
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
