//! From the bytes of a file to layers: every key ends in a layer or among the misfits.

use super::{
    About, Lora, LoraError,
    arena::Builder,
    base_model::BaseModel,
    error::Misfit,
    keys::{self, Component, Part},
    layer::{Held, Layer, Parts},
    settings::Settings,
};
use crate::{
    cut::{NAME, cut},
    loading::Header,
};
use safetensors::{Dtype, tensor::TensorInfo};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{Read, Seek},
};

impl Lora {
    /// Reads whatever the file holds; what is wrong with its keys is kept in `misfits`.
    ///
    /// # Errors
    /// It is no safetensors file, or cannot be read.
    pub(super) fn examine(source: &mut (impl Read + Seek)) -> Result<Self, LoraError> {
        let header = Header::read(source)?;
        let mut misfits = Vec::new();
        let settings = Settings::read(&header.metadata).unwrap_or_else(|reason| {
            misfits.push(Misfit::new("__metadata__", reason));
            Settings::default()
        });
        let mut keys = Vec::with_capacity(header.tensors.len());
        for (key, info) in &header.tensors {
            match keys::parse(key) {
                Ok(parsed) => keys.push((key, info, parsed)),
                Err(reason) => misfits.push(Misfit::new(key, reason)),
            }
        }
        let layouts = keys.iter().map(|(_, _, key)| key.layout).collect::<BTreeSet<_>>().into_iter().collect();
        let mut arena = Builder::for_tensors(keys.iter().map(|(_, info, _)| *info))?;
        let mut modules: BTreeMap<(Component, String), Parts> = BTreeMap::new();
        for (key, info, parsed) in keys {
            let held = match held(&header, source, info, is_number(parsed.part), &mut arena)? {
                Ok(held) => held,
                Err(reason) => {
                    misfits.push(Misfit::new(key, reason));
                    continue;
                }
            };
            let (component, module) = (parsed.component, parsed.module());
            let parts = modules.entry((component, module.clone()));
            let parts = parts.or_insert_with(|| Parts { component, module, path: parsed.path, held: HashMap::new() });
            if let Some((other, _)) = &parts.held.insert(parsed.part, (key.clone(), held)) {
                misfits.push(Misfit::new(key, format!("`{}` is the same part of the same module", cut(other, NAME))));
            }
        }
        let mut layers = Vec::with_capacity(modules.len());
        for parts in modules.into_values() {
            match parts.layer(&settings) {
                Ok(layer) => layers.push(layer),
                Err(more) => misfits.extend(more),
            }
        }
        let base = base(&header, &layers);
        let about = About { layouts, base, tensors: header.tensors.len() };
        let arena = arena.build()?;
        let active = is_active(&layers, &arena)?;
        Ok(Self { arena, layers, misfits, about, active, sha256: String::new() })
    }
}

fn is_number(part: Part) -> bool {
    matches!(part, Part::Alpha | Part::Scalar | Part::Ia3OnInput)
}

/// Reads one tensor. The inner error is the key's fault.
fn held(
    header: &Header,
    source: &mut (impl Read + Seek),
    info: &TensorInfo,
    number: bool,
    arena: &mut Builder,
) -> Result<Result<Held, String>, LoraError> {
    if number {
        if info.shape.iter().product::<usize>() != 1 {
            return Ok(Err(format!("it is {:?}, not one number", info.shape)));
        }
        let mut bytes = Vec::new();
        header.bytes(source, info, |chunk| bytes.extend_from_slice(chunk))?;
        return Ok(match number_of(info.dtype, &bytes) {
            Some(number) if number.is_finite() => Ok(Held::Number(number)),
            Some(_) => Err("it is NaN or infinite".into()),
            None => Err(format!("it is {:?}, not a number a LoRA has", info.dtype)),
        });
    }
    // Also keeps products of the other sides from overflowing later.
    if info.shape.contains(&0) {
        return Ok(Err(format!("its {:?} holds no numbers: rank 0", info.shape)));
    }
    let Some(matrix) = arena.begin(info) else {
        return Ok(Err(format!("it is {:?}; F64, F32, F16 and BF16 are supported", info.dtype)));
    };
    header.bytes(source, info, |chunk| arena.push(info.dtype, chunk))?;
    Ok(if arena.is_finite() { Ok(Held::Matrix(matrix)) } else { Err("it holds NaN or infinity".into()) })
}

fn number_of(dtype: Dtype, bytes: &[u8]) -> Option<f64> {
    Some(match dtype {
        Dtype::F64 => f64::from_le_bytes(bytes.try_into().ok()?),
        Dtype::F32 => f32::from_le_bytes(bytes.try_into().ok()?).into(),
        Dtype::F16 => half::f16::from_le_bytes(bytes.try_into().ok()?).into(),
        Dtype::BF16 => half::bf16::from_le_bytes(bytes.try_into().ok()?).into(),
        Dtype::I64 => i64::from_le_bytes(bytes.try_into().ok()?) as f64,
        Dtype::I32 => i32::from_le_bytes(bytes.try_into().ok()?).into(),
        Dtype::U8 | Dtype::BOOL => bytes.first().copied()?.into(),
        _ => return None,
    })
}

/// What the file was made for, and what gave it away: keys first, then shapes, then what the trainer says.
fn base(header: &Header, layers: &[Layer]) -> Option<(BaseModel, String)> {
    let named = |key: &String| Some((BaseModel::of_key(key)?, format!("key `{}`", cut(key, NAME))));
    let mut by_key: Vec<_> = header.tensors.iter().filter_map(|(key, _)| named(key)).collect();
    // diffusers' names for SD3 are a part of those for Flux.
    by_key.sort_by_key(|(model, _)| *model != BaseModel::Flux);
    let by_shape = || {
        layers.iter().find_map(|layer| {
            let change = layer.weight.as_ref()?;
            let shape = change.shape();
            let model = BaseModel::of_input(&layer.module, *shape.get(1)?)?;
            Some((model, format!("key `{}` makes {}", cut(&change.key, NAME), cut(&format!("{shape:?}"), NAME))))
        })
    };
    by_key.into_iter().next().or_else(by_shape).or_else(|| BaseModel::of_metadata(&header.metadata))
}

/// Whether anything but DoRA's lengths changes a weight. Small layers are looked at first; nearly always the first one tells.
fn is_active(layers: &[Layer], arena: &super::arena::Arena) -> candle_core::Result<bool> {
    let mut changes: Vec<_> = layers.iter().flat_map(|layer| layer.weight.iter().chain(&layer.bias)).collect();
    changes.sort_by_key(|change| change.shape().iter().fold(1usize, |size, &side| size.saturating_mul(side)));
    for change in changes {
        if !change.is_idle(arena)? {
            return Ok(true);
        }
    }
    Ok(false)
}
