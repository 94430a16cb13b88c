//! The modules of a model, by every name a LoRA may use for them.

use super::{LoraError, base_model::BaseModel, keys::Component, ldm};
use crate::{
    error::PipelineError,
    loading::Header,
    loading::weights::Weights,
    loading::{DIFFUSION_FILES, ENCODER_FILES},
    models::text_encoder,
};
use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    path::Path,
};

/// What LoRAs are fitted to: names and shapes, no data.
pub struct Target {
    modules: Vec<Module>,
    /// Index into `modules` by component and name with `_` for `.`.
    names: HashMap<(Component, String), usize>,
    base: Option<BaseModel>,
}

/// One module of the model.
pub(super) struct Module {
    pub component: Component,
    /// Its path in diffusers' names, dots included.
    pub path: String,
    /// Shape of its weight.
    pub weight: Option<Vec<usize>>,
    /// Shape of its bias.
    pub bias: Option<Vec<usize>>,
}

impl Target {
    /// The modules of loaded weights.
    pub fn of_weights(unet: &Weights, text_encoder: &Weights) -> Self {
        let shapes = |weights: &Weights| -> Vec<(String, Vec<usize>)> {
            let named = weights.names().into_iter();
            named.filter_map(|name| Some((name.to_string(), weights.dims(name)?.to_vec()))).collect()
        };
        Self::new(shapes(unet), shapes(text_encoder))
    }

    /// The modules of a model folder; only the headers of its files are read.
    ///
    /// # Errors
    /// A file is missing or is no safetensors file.
    pub fn of_folder(model: &Path) -> Result<Self, LoraError> {
        let shapes = |folder: &str, files: &[&str]| -> Result<Vec<(String, Vec<usize>)>, LoraError> {
            let folder = model.join(folder);
            let found = files.iter().map(|file| folder.join(file)).find(|path| path.exists());
            let path = found.unwrap_or_else(|| folder.join(files[0]));
            let named = |source: io::Error| PipelineError::File { path: path.clone(), source };
            let header = Header::read(&mut File::open(&path).map_err(named)?)?;
            Ok(header.tensors.into_iter().map(|(name, info)| (name, info.shape)).collect())
        };
        let mut encoder = shapes("text_encoder", &ENCODER_FILES)?;
        encoder.iter_mut().for_each(|(name, _)| *name = text_encoder::canonical_name(name));
        Ok(Self::new(shapes("unet", &DIFFUSION_FILES)?, encoder))
    }

    fn new(unet: Vec<(String, Vec<usize>)>, text_encoder: Vec<(String, Vec<usize>)>) -> Self {
        let tagged = |component, tensors: Vec<_>| tensors.into_iter().map(move |(name, dims)| (component, name, dims));
        let mut found: BTreeMap<(Component, String), Module> = BTreeMap::new();
        for (component, name, dims) in tagged(Component::Unet, unet).chain(tagged(Component::TextEncoder, text_encoder))
        {
            let Some((path, part)) = name.rsplit_once('.') else { continue };
            let module = Module { component, path: path.to_string(), weight: None, bias: None };
            let module = found.entry((component, path.to_string())).or_insert(module);
            match part {
                "weight" => module.weight = Some(dims),
                "bias" => module.bias = Some(dims),
                _ => {}
            }
        }
        let modules: Vec<Module> = found.into_values().collect();
        let per_block = ldm::resnets_per_block(modules.iter().map(|module| module.path.as_str()));
        let mut names = HashMap::new();
        let mut base = None;
        for (index, module) in modules.iter().enumerate() {
            let alias = match module.component {
                Component::Unet => ldm::name(&module.path, per_block),
                // What transformers 5 calls it.
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

    /// The module a LoRA means.
    pub(super) fn module(&self, component: Component, name: &str) -> Option<&Module> {
        self.names.get(&(component, name.to_string())).map(|&index| &self.modules[index])
    }

    /// Which base model it is, where its width tells.
    pub(super) fn base(&self) -> Option<BaseModel> {
        self.base
    }
}
