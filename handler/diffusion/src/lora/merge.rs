//! Merging: what LoRAs add to the tensors they name, as an overlay over the base weights. No other tensor is touched.

use super::{
    AppliedLora, Dora, Lora, LoraError,
    arena::{Arena, Matrix},
    base_model::BaseModel,
    change::{Change, Kind},
    error::Misfit,
    keys::Component,
    target::Target,
};
use crate::{
    cut::{NAME, cut},
    loading::weights::{Tensors, Weights},
};
use candle_core::{DType, Tensor};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};

/// Below this relative change, DoRA's lengths are those of the base but for their rounding to bf16.
const UNTRAINED: f32 = 4e-3;

/// Merged tensors of each component, to be laid over the base.
#[derive(Default)]
pub struct Overlays {
    /// Tensors of the UNet, by name.
    pub unet: Tensors,
    /// Tensors of the text encoder, by name.
    pub text_encoder: Tensors,
}

/// A tensor of the model, by component and name.
type Place = (Component, String);

/// What LoRAs change, tensor by tensor. Each adds to the base what it would add alone, so their order does not matter.
pub struct Plan<'a> {
    loras: &'a [AppliedLora],
    places: BTreeMap<Place, Vec<(usize, &'a Change)>>,
    dora: bool,
}

/// What is added to one matrix of the model: the product of two, each of several parts side by side.
pub(crate) struct LowRank<'a> {
    /// Whether it is one of the UNet, else of the text encoder.
    pub of_unet: bool,
    /// The tensor's name.
    pub name: String,
    /// Rows of the left factor.
    pub rows: usize,
    /// Columns of the right factor.
    pub columns: usize,
    /// Columns of the left factor and rows of the right one.
    pub rank: usize,
    parts: Vec<(&'a Arena, &'a Matrix, &'a Matrix, f64)>,
}

impl LowRank<'_> {
    /// The factors, `[rows, rank]` with all scales and `[rank, columns]`, in f32.
    ///
    /// # Errors
    /// None that a loaded LoRA can cause.
    pub(crate) fn write(&self, left: &mut [f32], right: &mut [f32]) -> candle_core::Result<()> {
        let mut done = 0;
        for (arena, a, b, gain) in &self.parts {
            arena.write(a, *gain as f32, a.width(), self.rank, &mut left[done..])?;
            arena.write(b, 1.0, self.columns, self.columns, &mut right[done * self.columns..])?;
            done += a.width();
        }
        Ok(())
    }
}

/// Finds the place of every change.
///
/// # Errors
/// A LoRA that does not fit `target`, or that changes nothing even at scale 1.
pub fn plan<'a>(
    loras: &'a [AppliedLora],
    target: &Target,
    unet: &Weights,
    text_encoder: &Weights,
    dora: Dora,
) -> Result<Plan<'a>, LoraError> {
    let dora = dora == Dora::Apply;
    let mut places: BTreeMap<Place, Vec<(usize, &Change)>> = BTreeMap::new();
    for (index, AppliedLora { lora, scale }) in loras.iter().enumerate() {
        let placed = lora.place(target)?;
        if !lora.active && !lengths_matter(lora, &placed, unet, text_encoder, dora)? {
            return Err(LoraError::NoEffect("every product of its matrices is zero"));
        }
        for (place, change) in placed.into_iter().filter(|_| *scale != 0.0) {
            places.entry(place).or_default().push((index, change));
        }
    }
    Ok(Plan { loras, places, dora })
}

/// Merges LoRAs, see [`plan`] and [`Plan::merge`].
///
/// # Errors
/// As those.
pub fn merge(
    loras: &[AppliedLora],
    target: &Target,
    unet: &Weights,
    text_encoder: &Weights,
    dora: Dora,
) -> Result<Overlays, LoraError> {
    plan(loras, target, unet, text_encoder, dora)?.merge(unet, text_encoder)
}

impl<'a> Plan<'a> {
    /// A plan that changes nothing.
    pub(crate) fn nothing() -> Self {
        Self { loras: &[], places: BTreeMap::new(), dora: true }
    }

    /// Merges. Per tensor the sum is formed in f32 and rounded once to the base's dtype.
    ///
    /// # Errors
    /// Memory, or the disk from which the base is read.
    pub fn merge(self, unet: &Weights, text_encoder: &Weights) -> Result<Overlays, LoraError> {
        let Self { loras, places, dora } = self;
        let merged = places.into_par_iter().map(|((component, name), changes)| {
            let base = if component == Component::Unet { unet } else { text_encoder }.base(&name)?;
            let base_f32 = base.to_dtype(DType::F32)?;
            let mut sum = base_f32.clone();
            for (index, change) in changes {
                let AppliedLora { lora, scale } = &loras[index];
                sum = (sum + change.contribution(&lora.arena, &base_f32, *scale, dora)?)?;
            }
            Ok((component, name, sum.to_dtype(base.dtype())?))
        });
        let mut overlays = Overlays::default();
        for (component, name, tensor) in merged.collect::<Result<Vec<_>, LoraError>>()? {
            match component {
                Component::Unet => overlays.unet.insert(name, tensor),
                Component::TextEncoder => overlays.text_encoder.insert(name, tensor),
            };
        }
        Ok(overlays)
    }

    /// Takes out of the plan what are products and goes to tensors for which `takes` says so, by component (whether the UNet)
    /// and name: who takes them adds them.
    pub(crate) fn take_low_rank(&mut self, takes: impl Fn(bool, &str) -> bool) -> Vec<LowRank<'a>> {
        let (loras, dora) = (self.loras, self.dora);
        let (mut taken, mut left) = (Vec::new(), BTreeMap::new());
        for ((component, name), changes) in std::mem::take(&mut self.places) {
            let of_unet = component == Component::Unet;
            let parts = changes.iter().map(|(index, change)| {
                let (a, b) = change.product_of().filter(|_| change.is_product(dora))?;
                let AppliedLora { lora, scale } = &loras[*index];
                Some((&lora.arena, a, b, change.factor * scale))
            });
            match parts.collect::<Option<Vec<_>>>().filter(|_| takes(of_unet, &name)) {
                Some(parts) => {
                    let (rows, columns) = (parts[0].1.dims[0], parts[0].2.width());
                    let rank = parts.iter().map(|(_, a, ..)| a.width()).sum();
                    taken.push(LowRank { of_unet, name, rows, columns, rank, parts });
                }
                None => {
                    left.insert((component, name), changes);
                }
            }
        }
        self.places = left;
        taken
    }
}

impl Lora {
    /// Where each change goes.
    ///
    /// # Errors
    /// Another base model, or every key that fits nowhere.
    pub(super) fn place(&self, target: &Target) -> Result<Vec<(Place, &Change)>, LoraError> {
        if let (Some((made_for, sign)), Some(model)) = (&self.about.base, target.base())
            && *made_for != model
        {
            return Err(LoraError::OtherBase { made_for: *made_for, sign: sign.clone(), model: model.name() });
        }
        let (placed, misfits) = self.try_place(target);
        if misfits.is_empty() { Ok(placed) } else { Err(LoraError::Misfits(misfits)) }
    }

    /// Where each change goes, and what fits nowhere.
    pub(super) fn try_place(&self, target: &Target) -> (Vec<(Place, &Change)>, Vec<Misfit>) {
        let (mut placed, mut misfits) = (Vec::new(), Vec::new());
        let mut taken: HashMap<(Component, &str), &str> = HashMap::new();
        for layer in &self.layers {
            let any_key = layer.weight.as_ref().or(layer.bias.as_ref()).map_or("", |change| change.key.as_str());
            let Some(module) = target.module(layer.component, &layer.module) else {
                misfits.push(Misfit::new(any_key, format!("the model has no module `{}`", cut(&layer.module, NAME))));
                continue;
            };
            if let Some(other) = taken.insert((module.component, &module.path), any_key) {
                misfits.push(Misfit::new(any_key, format!("`{}` is for the same module", cut(other, NAME))));
            }
            for (change, shape, part) in
                [(&layer.weight, &module.weight, "weight"), (&layer.bias, &module.bias, "bias")]
            {
                let Some(change) = change else { continue };
                match shape {
                    // peft's IA3 on the inputs leaves the bias alone.
                    _ if change.optional && scales_inputs(layer.weight.as_ref(), module.weight.as_deref()) => {}
                    Some(dims) => match change.fits(&layer.module, dims) {
                        Ok(()) => placed.push(((module.component, format!("{}.{part}", module.path)), change)),
                        Err(misfit) => misfits.push(misfit),
                    },
                    None if change.optional => {}
                    None => {
                        misfits.push(Misfit::new(&change.key, format!("the model's `{}` has no {part}", module.path)))
                    }
                }
            }
        }
        (placed, misfits)
    }

    /// The base model it was made for, if that is one no UNet of this function can be of.
    pub(super) fn foreign(&self) -> Option<LoraError> {
        let (made_for, sign) = self.about.base.as_ref().filter(|(model, _)| !model.is_paintable())?;
        Some(LoraError::OtherBase { made_for: *made_for, sign: sign.clone(), model: BaseModel::Sd1.name() })
    }
}

fn scales_inputs(weight: Option<&Change>, dims: Option<&[usize]>) -> bool {
    match (weight.map(|change| &change.kind), dims) {
        (Some(Kind::Scaled(vector)), Some(dims)) => vector.side.dimension(&vector.numbers.dims, dims) == Ok(1),
        _ => false,
    }
}

/// Whether DoRA's lengths alone change something, for a LoRA whose products are all zero.
fn lengths_matter(
    lora: &Lora,
    placed: &[(Place, &Change)],
    unet: &Weights,
    text_encoder: &Weights,
    dora: bool,
) -> Result<bool, LoraError> {
    for ((component, name), change) in placed.iter().filter(|(_, change)| change.magnitude.is_some()) {
        let base = if *component == Component::Unet { unet } else { text_encoder }.base(name)?;
        let base = base.to_dtype(DType::F32)?;
        let largest = |tensor: &Tensor| tensor.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
        if largest(&change.contribution(&lora.arena, &base, 1.0, dora)?)? > UNTRAINED * largest(&base)? {
            return Ok(true);
        }
    }
    Ok(false)
}
