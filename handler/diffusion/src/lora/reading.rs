//! Parses a file into layers. Every key ends up in a layer or among the misfits.

use super::{
    FileInfo, Lora, LoraError,
    base_model::BaseModel,
    error::Misfit,
    keys::{self, Component, Part},
    layer::{Layer, ModuleTensors, TensorData},
    matrices::{MatricesBuilder, of_e4m3, of_e5m2},
    settings::Settings,
};
use crate::{
    error::{MAX_NAME, cut},
    loading::Header,
};
use safetensors::{Dtype, tensor::TensorInfo};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::{Read, Seek},
};

impl Lora {
    /// Parses a file without refusing it for its keys: keys that cannot be used go into `misfits`. `config` is the text of the
    /// `adapter_config.json` beside it, which belongs to the file if its keys are those of peft's `save_pretrained`.
    ///
    /// # Errors
    /// It is not a safetensors file, or cannot be read.
    pub(super) fn parse(source: &mut (impl Read + Seek), config: Option<&str>) -> Result<Self, LoraError> {
        let header = Header::read(source)?;
        let mut misfits = Vec::new();
        let is_peft = header.tensors.iter().any(|(key, _)| key.starts_with("base_model.model."));
        let settings = Settings::read(&header.metadata, config.filter(|_| is_peft)).unwrap_or_else(|misfit| {
            misfits.push(misfit);
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
        let mut matrices = MatricesBuilder::for_tensors(keys.iter().map(|(_, info, _)| *info))?;
        let mut modules: BTreeMap<(Component, String), ModuleTensors> = BTreeMap::new();
        for (key, info, parsed) in keys {
            let data = match read_tensor(&header, source, info, parsed.part, &mut matrices)? {
                Ok(data) => data,
                Err(reason) => {
                    misfits.push(Misfit::new(key, reason));
                    continue;
                }
            };
            let (component, module) = (parsed.component, parsed.module());
            let entry = modules.entry((component, module.clone()));
            let tensors = HashMap::new();
            let entry = entry.or_insert_with(|| ModuleTensors { component, module, path: parsed.path, tensors });
            if let Some((other, _)) = &entry.tensors.insert(parsed.part, (key.clone(), data)) {
                misfits
                    .push(Misfit::new(key, format!("`{}` is the same part of the same module", cut(other, MAX_NAME))));
            }
        }
        let (mut layers, mut unused) = (Vec::with_capacity(modules.len()), Vec::new());
        for tensors in modules.into_values() {
            match tensors.layer(&settings) {
                Ok(layer) => {
                    unused.extend(layer.unused.iter().cloned());
                    layers.extend(Some(layer).filter(|layer| layer.weight.is_some() || layer.bias.is_some()));
                }
                Err(more) => misfits.extend(more),
            }
        }
        let base = base(&header, &layers);
        let info = FileInfo { layouts, base, tensors: header.tensors.len(), settings: settings.source, unused };
        let matrices = matrices.build()?;
        let active = is_active(&layers, &matrices)?;
        Ok(Self { matrices, layers, misfits, info, active, sha256: String::new() })
    }
}

/// What a part holds.
enum Holds {
    Matrix,
    Number,
    Integers,
}

fn holds(part: Part) -> Holds {
    match part {
        Part::Alpha | Part::Scalar | Part::Ia3OnInput => Holds::Number,
        Part::SparseIndices | Part::SparseSize => Holds::Integers,
        _ => Holds::Matrix,
    }
}

/// Reads one tensor. The inner error is a fault of the key.
fn read_tensor(
    header: &Header,
    source: &mut (impl Read + Seek),
    info: &TensorInfo,
    part: Part,
    matrices: &mut MatricesBuilder,
) -> Result<Result<TensorData, String>, LoraError> {
    // Without a 0, the product of the other dimensions is limited by the file's length and cannot overflow.
    if info.shape.contains(&0) {
        return Ok(Err(format!("its {:?} holds no numbers: rank 0", info.shape)));
    }
    let mut read = |width: usize| -> Result<Vec<u8>, LoraError> {
        let mut bytes = Vec::with_capacity(width * info.shape.iter().product::<usize>());
        header.bytes(source, info, |chunk| bytes.extend_from_slice(chunk))?;
        Ok(bytes)
    };
    Ok(match (holds(part), info.dtype) {
        (Holds::Number, _) if info.shape.iter().product::<usize>() != 1 => {
            Err(format!("it is {:?}, not one number", info.shape))
        }
        (Holds::Number, dtype) => match number_of(dtype, &read(8)?) {
            Some(number) => Ok(TensorData::Number(number)),
            None => Err(format!("it is {dtype:?}, not a number a LoRA has")),
        },
        (Holds::Integers, Dtype::I16) => Ok(integers(&read(2)?, i16::from_le_bytes)),
        (Holds::Integers, Dtype::I32) => Ok(integers(&read(4)?, i32::from_le_bytes)),
        (Holds::Integers, Dtype::I64) => Ok(integers(&read(8)?, i64::from_le_bytes)),
        (Holds::Integers, dtype) => Err(format!("it is {dtype:?}, not a whole number")),
        (Holds::Matrix, dtype) => match matrices.begin(info) {
            Some(mut matrix) => {
                header.bytes(source, info, |chunk| matrices.push(dtype, chunk))?;
                matrix.finite = matrices.is_finite();
                Ok(TensorData::Matrix(matrix))
            }
            None => Err(format!("it is {dtype:?}; F64, F32, F16, BF16, F8_E4M3 and F8_E5M2 are supported")),
        },
    })
}

fn integers<T: Into<i64>, const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> TensorData {
    TensorData::Integers(bytes.as_chunks().0.iter().map(|&chunk| read(chunk).into()).collect())
}

fn number_of(dtype: Dtype, bytes: &[u8]) -> Option<f64> {
    Some(match dtype {
        Dtype::F64 => f64::from_le_bytes(bytes.try_into().ok()?),
        Dtype::F32 => f32::from_le_bytes(bytes.try_into().ok()?).into(),
        Dtype::F16 => half::f16::from_le_bytes(bytes.try_into().ok()?).into(),
        Dtype::BF16 => half::bf16::from_le_bytes(bytes.try_into().ok()?).into(),
        Dtype::F8_E4M3 => of_e4m3(*bytes.first()?).into(),
        Dtype::F8_E5M2 => of_e5m2(*bytes.first()?).into(),
        Dtype::I64 => i64::from_le_bytes(bytes.try_into().ok()?) as f64,
        Dtype::I32 => i32::from_le_bytes(bytes.try_into().ok()?).into(),
        Dtype::I16 => i16::from_le_bytes(bytes.try_into().ok()?).into(),
        Dtype::U8 | Dtype::BOOL => bytes.first().copied()?.into(),
        _ => return None,
    })
}

/// The base model that the file was made for, and the key or metadata that shows it. Keys come first, then shapes, then metadata.
fn base(header: &Header, layers: &[Layer]) -> Option<(BaseModel, String)> {
    let named = |key: &String| Some((BaseModel::of_key(key)?, format!("key `{}`", cut(key, MAX_NAME))));
    let mut by_key: Vec<_> = header.tensors.iter().filter_map(|(key, _)| named(key)).collect();
    // A Flux file has keys that look like SD3's as well.
    by_key.sort_by_key(|(model, _)| *model != BaseModel::Flux);
    let by_shape = || {
        layers.iter().find_map(|layer| {
            let change = layer.weight.as_ref()?;
            let model = BaseModel::of_input(&layer.module, change.input_width()?)?;
            let shape = format!("{:?}", change.shape());
            Some((model, format!("key `{}` makes {}", cut(&change.key, MAX_NAME), cut(&shape, MAX_NAME))))
        })
    };
    by_key.into_iter().next().or_else(by_shape).or_else(|| BaseModel::of_metadata(&header.metadata))
}

/// Whether anything but DoRA's magnitudes changes a weight. Small layers come first: nearly always the first one changes something.
fn is_active(layers: &[Layer], matrices: &super::matrices::Matrices) -> candle_core::Result<bool> {
    let mut changes: Vec<_> = layers.iter().flat_map(|layer| layer.weight.iter().chain(&layer.bias)).collect();
    changes.sort_by_key(|change| change.shape().iter().fold(1usize, |size, &side| size.saturating_mul(side)));
    for change in changes {
        if !change.is_noop(matrices)? {
            return Ok(true);
        }
    }
    Ok(false)
}
