//! Merges LoRAs into an overlay over the base weights. Only the tensors that they change are in it.

use super::{
    AppliedLora, Dora, Lora, LoraError,
    base_model::BaseModel,
    change::{Change, Kind},
    error::Misfit,
    keys::Component,
    matrices::{Matrices, Matrix},
    target::Target,
};
use crate::{
    error::{MAX_NAME, cut},
    loading::weights::{Tensors, Weights},
};
use candle_core::{DType, Tensor};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};

/// Below this relative change, DoRA's magnitudes are the norms of the base, rounded to bf16.
const MIN_DORA_CHANGE: f32 = 4e-3;

/// The merged tensors of each component.
#[derive(Default)]
pub struct Overlays {
    /// Tensors of the UNet, by name.
    pub unet: Tensors,
    /// Tensors of the text encoder, by name.
    pub text_encoder: Tensors,
}

/// A tensor of the model, by component and name.
type TensorKey = (Component, String);

/// What LoRAs change, tensor by tensor. Each adds to the base what it would add alone, so their order does not matter.
pub struct MergePlan<'a> {
    changes: BTreeMap<TensorKey, Vec<ScaledChange<'a>>>,
    dora: bool,
}

/// A change of a tensor, with its LoRA's matrices and the scale at which it is applied.
struct ScaledChange<'a> {
    matrices: &'a Matrices,
    change: &'a Change,
    scale: f64,
}

/// A product `left @ right` to add to one matrix of the model. The products of several LoRAs are concatenated along the rank.
pub(crate) struct LowRankUpdate<'a> {
    /// Whether the matrix is in the UNet, else it is in the text encoder.
    pub of_unet: bool,
    /// The tensor's name.
    pub name: String,
    /// Rows of `left`.
    pub rows: usize,
    /// Columns of `right`.
    pub columns: usize,
    /// Columns of `left` and rows of `right`.
    pub rank: usize,
    parts: Vec<(&'a Matrices, &'a Matrix, &'a Matrix, f64)>,
}

impl LowRankUpdate<'_> {
    /// Writes both factors in f32: `left` `[rows, rank]`, with all scales applied, and `right` `[rank, columns]`.
    ///
    /// # Errors
    /// None for a loaded LoRA.
    pub(crate) fn write(&self, left: &mut [f32], right: &mut [f32]) -> candle_core::Result<()> {
        let mut done = 0;
        for (matrices, a, b, gain) in &self.parts {
            matrices.write(a, *gain as f32, a.width(), self.rank, &mut left[done..])?;
            matrices.write(b, 1.0, self.columns, self.columns, &mut right[done * self.columns..])?;
            done += a.width();
        }
        Ok(())
    }
}

/// Finds the tensor for every change. LoRAs with scale 0 are checked as well.
///
/// # Errors
/// A LoRA or its weights by block do not fit `target`, or it changes nothing even at scale 1.
pub fn plan<'a>(
    loras: &'a [AppliedLora],
    target: &Target,
    unet: &Weights,
    text_encoder: &Weights,
    dora: Dora,
) -> Result<MergePlan<'a>, LoraError> {
    let dora = dora == Dora::Apply;
    let mut changes: BTreeMap<TensorKey, Vec<ScaledChange>> = BTreeMap::new();
    for (index, AppliedLora { lora, scale, weights }) in loras.iter().enumerate() {
        let fitted = lora.fit(target)?;
        let broken = fitted.iter().filter_map(|(_, change)| change.applied_magnitude(dora));
        if let Some(magnitude) = broken.into_iter().find(|magnitude| !magnitude.numbers.finite) {
            return Err(LoraError::Misfits(vec![Misfit::new(&magnitude.key, "it holds NaN or infinity")]));
        }
        if !lora.active && !magnitudes_matter(lora, &fitted, unet, text_encoder, dora)? {
            return Err(LoraError::NoEffect("every product of its matrices is zero"));
        }
        let weights = weights.of_model(target).map_err(|error| LoraError::Blocks { lora: index, error })?;
        for (key, change) in fitted {
            let scale = scale * weights.of(key.0, &key.1);
            if scale != 0.0 {
                changes.entry(key).or_default().push(ScaledChange { matrices: &lora.matrices, change, scale });
            }
        }
    }
    Ok(MergePlan { changes, dora })
}

/// Merges LoRAs: [`plan`] and [`MergePlan::merge`] in one.
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

impl<'a> MergePlan<'a> {
    /// A plan that changes nothing.
    pub(crate) fn nothing() -> Self {
        Self { changes: BTreeMap::new(), dora: true }
    }

    /// Computes the merged tensors: a sum in f32, rounded once to the base's dtype.
    ///
    /// # Errors
    /// Not enough memory, or the base cannot be read from the disk.
    pub fn merge(self, unet: &Weights, text_encoder: &Weights) -> Result<Overlays, LoraError> {
        let Self { changes, dora } = self;
        let merged = changes.into_par_iter().map(|((component, name), changes)| {
            let base = if component == Component::Unet { unet } else { text_encoder }.base(&name)?;
            let base_f32 = base.to_dtype(DType::F32)?;
            let mut sum = base_f32.clone();
            for ScaledChange { matrices, change, scale } in changes {
                sum = (sum + change.contribution(matrices, &base_f32, scale, dora)?)?;
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

    /// Removes the tensors whose changes are all products and which `takes` accepts, by component (whether it is the UNet) and name.
    /// The caller has to add the products.
    pub(crate) fn take_low_rank(&mut self, takes: impl Fn(bool, &str) -> bool) -> Vec<LowRankUpdate<'a>> {
        let dora = self.dora;
        let (mut taken, mut left) = (Vec::new(), BTreeMap::new());
        for ((component, name), changes) in std::mem::take(&mut self.changes) {
            let of_unet = component == Component::Unet;
            let parts = changes.iter().map(|ScaledChange { matrices, change, scale }| {
                let (a, b) = change.product_of().filter(|_| change.is_product(dora))?;
                Some((*matrices, a, b, change.factor * scale))
            });
            match parts.collect::<Option<Vec<_>>>().filter(|_| takes(of_unet, &name)) {
                Some(parts) => {
                    let (rows, columns) = (parts[0].1.dims[0], parts[0].2.width());
                    let rank = parts.iter().map(|(_, a, ..)| a.width()).sum();
                    taken.push(LowRankUpdate { of_unet, name, rows, columns, rank, parts });
                }
                None => {
                    left.insert((component, name), changes);
                }
            }
        }
        self.changes = left;
        taken
    }
}

impl Lora {
    /// The tensor of each change.
    ///
    /// # Errors
    /// Another base model, or all keys that do not fit the model.
    pub(super) fn fit(&self, target: &Target) -> Result<Vec<(TensorKey, &Change)>, LoraError> {
        if let (Some((made_for, sign)), Some(model)) = (&self.info.base, target.base())
            && *made_for != model
        {
            return Err(LoraError::OtherBase { made_for: *made_for, sign: sign.clone(), model: model.name() });
        }
        let (fitted, misfits) = self.try_fit(target);
        if misfits.is_empty() { Ok(fitted) } else { Err(LoraError::Misfits(misfits)) }
    }

    /// The tensor of each change, and the keys that do not fit the model.
    pub(super) fn try_fit(&self, target: &Target) -> (Vec<(TensorKey, &Change)>, Vec<Misfit>) {
        let (mut fitted, mut misfits) = (Vec::new(), Vec::new());
        let mut taken: HashMap<(Component, &str), &str> = HashMap::new();
        for layer in &self.layers {
            let any_key = layer.weight.as_ref().or(layer.bias.as_ref()).map_or("", |change| change.key.as_str());
            let Some(module) = target.module(layer.component, &layer.module) else {
                misfits
                    .push(Misfit::new(any_key, format!("the model has no module `{}`", cut(&layer.module, MAX_NAME))));
                continue;
            };
            if let Some(other) = taken.insert((module.component, &module.path), any_key) {
                misfits.push(Misfit::new(any_key, format!("`{}` is for the same module", cut(other, MAX_NAME))));
            }
            for (change, shape, part) in
                [(&layer.weight, &module.weight, "weight"), (&layer.bias, &module.bias, "bias")]
            {
                let Some(change) = change else { continue };
                match shape {
                    // peft's IA3 on the inputs leaves the bias alone.
                    _ if change.optional && scales_inputs(layer.weight.as_ref(), module.weight.as_deref()) => {}
                    Some(dims) => match change.fits(&layer.module, dims) {
                        Ok(()) => fitted.push(((module.component, format!("{}.{part}", module.path)), change)),
                        Err(misfit) => misfits.push(misfit),
                    },
                    None if change.optional => {}
                    None => {
                        misfits.push(Misfit::new(&change.key, format!("the model's `{}` has no {part}", module.path)))
                    }
                }
            }
        }
        (fitted, misfits)
    }

    /// An error if it was made for a base model that the pipeline cannot load.
    pub(super) fn unsupported_base(&self) -> Option<LoraError> {
        let (made_for, sign) = self.info.base.as_ref().filter(|(model, _)| !model.is_supported())?;
        Some(LoraError::OtherBase { made_for: *made_for, sign: sign.clone(), model: BaseModel::Sd1.name() })
    }
}

fn scales_inputs(weight: Option<&Change>, dims: Option<&[usize]>) -> bool {
    match (weight.map(|change| &change.kind), dims) {
        (Some(Kind::Scaled(vector)), Some(dims)) => vector.side.dimension(&vector.numbers.dims, dims) == Ok(1),
        _ => false,
    }
}

/// Whether DoRA's magnitudes alone change something, for a LoRA whose products are all zero.
fn magnitudes_matter(
    lora: &Lora,
    fitted: &[(TensorKey, &Change)],
    unet: &Weights,
    text_encoder: &Weights,
    dora: bool,
) -> Result<bool, LoraError> {
    for ((component, name), change) in fitted.iter().filter(|(_, change)| change.magnitude.is_some()) {
        let base = if *component == Component::Unet { unet } else { text_encoder }.base(name)?;
        let base = base.to_dtype(DType::F32)?;
        let largest = |tensor: &Tensor| tensor.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>();
        if largest(&change.contribution(&lora.matrices, &base, 1.0, dora)?)? > MIN_DORA_CHANGE * largest(&base)? {
            return Ok(true);
        }
    }
    Ok(false)
}
