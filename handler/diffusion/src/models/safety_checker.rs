//! diffusers' `StableDiffusionSafetyChecker`: CLIP's vision encoder (Radford et al., "Learning transferable visual models from natural
//! language supervision", 2021; a vision transformer of Dosovitskiy et al., "An image is worth 16x16 words", 2021), and how near its
//! embedding of a picture is to those of seventeen concepts. Names and shapes are those of transformers 5.

use super::clip::{Layer, LayerConfig};
use crate::{
    error::Result,
    loading::config::{SafetyCheckerConfig, VisionConfig},
    ops::params::Params,
    ops::{Array, LayerNorm, Linear},
};
use candle_core::{DType, Device, Error, Result as CandleResult, Tensor};
use half::{bf16, f16};

/// Concepts that flag a picture, and those that call for special care.
const CONCEPTS: usize = 17;
const SPECIAL_CARE: usize = 3;
/// What special care adds to the scores after it.
const CARE: f32 = 0.01;
/// The least norm of an embedding that is divided by its norm, as in torch's `normalize`.
const LEAST_NORM: f32 = 1e-12;
const COLOURS: usize = 3;

/// How near a picture is to each concept. Cosines are rounded to the model's dtype.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Cosines {
    pub concepts: Vec<f32>,
    pub special_care: Vec<f32>,
}

/// Scores by concept: cosine minus threshold plus adjustment, rounded to three digits.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Scores {
    pub concepts: Vec<f32>,
    pub special_care: Vec<f32>,
}

/// A `StableDiffusionSafetyChecker`.
pub(crate) struct SafetyChecker {
    vision: VisionConfig,
    patch_embedding: Linear,
    /// The embedding of each position, `[1, 1 + patches, hidden_size]`, the first one with that of the class token. On the CPU.
    positions: Tensor,
    first_norm: LayerNorm,
    layers: Vec<Layer>,
    last_norm: LayerNorm,
    projection: Linear,
    concepts: Concepts,
    special_care: Concepts,
    /// Copies inputs to the device.
    inputs: Params,
}

/// Concepts with their thresholds, rounded to the model's dtype.
struct Concepts {
    /// Of norm 1.
    embeddings: Vec<Vec<f32>>,
    thresholds: Vec<f32>,
}

impl SafetyChecker {
    /// Takes its tensors from `params`.
    ///
    /// # Errors
    /// A tensor is missing, or its shape does not fit the config.
    pub(crate) fn new(config: &SafetyCheckerConfig, params: Params) -> Result<Self> {
        let vision = &config.vision;
        let (width, eps, patch) = (vision.hidden_size, vision.layer_norm_eps, vision.patch_size);
        let network = params.pp("vision_model");
        let embeddings = network.pp("embeddings");
        let per_side = vision.image_size / patch;
        let count = 1 + per_side * per_side;
        let class = embeddings.tensor(&[width], "class_embedding")?.reshape((1, width))?;
        let positions = embeddings.tensor(&[count, width], "position_embedding.weight")?;
        let class = class.pad_with_zeros(0, 0, count - 1)?;
        let layer = LayerConfig {
            width,
            inner: vision.intermediate_size,
            heads: vision.num_attention_heads,
            eps,
            causal: false,
        };
        let layers =
            (0..vision.num_hidden_layers).map(|index| Layer::new(layer, network.pp("encoder.layers").pp(index)));
        Ok(Self {
            patch_embedding: Linear::of_windows(COLOURS, patch, width, embeddings.pp("patch_embedding"))?,
            positions: (positions + class)?.unsqueeze(0)?,
            // transformers' spelling.
            first_norm: LayerNorm::new(width, eps, network.pp("pre_layrnorm"))?,
            layers: layers.collect::<CandleResult<_>>()?,
            last_norm: LayerNorm::new(width, eps, network.pp("post_layernorm"))?,
            projection: Linear::no_bias(width, config.projection_dim, params.pp("visual_projection"))?,
            concepts: Concepts::new(CONCEPTS, config.projection_dim, "concept_embeds", &params)?,
            special_care: Concepts::new(SPECIAL_CARE, config.projection_dim, "special_care_embeds", &params)?,
            vision: vision.clone(),
            inputs: params,
        })
    }

    /// The cosines of one picture: `pixels` is `[3, image_size, image_size]` in f32 on the CPU, scaled and shifted as the network expects.
    ///
    /// # Errors
    /// The picture has another size, or the device fails or has too little memory.
    pub(crate) fn cosines(&self, pixels: &Tensor) -> Result<Cosines> {
        let embedding = self.embed(pixels)?.to_tensor()?.flatten_all()?.to_vec1::<f32>()?;
        let dtype = self.inputs.dtype();
        let embedding = normalised(&embedding, dtype);
        let cosines = |concepts: &Concepts| -> Vec<f32> {
            let cosine = |concept: &Vec<f32>| {
                let products = concept.iter().zip(&embedding).map(|(a, b)| f64::from(*a) * f64::from(*b));
                rounded(products.sum::<f64>() as f32, dtype)
            };
            concepts.embeddings.iter().map(cosine).collect()
        };
        Ok(Cosines { concepts: cosines(&self.concepts), special_care: cosines(&self.special_care) })
    }

    /// The scores that follow from cosines.
    pub(crate) fn scores(&self, cosines: &Cosines) -> Scores {
        scores(cosines, &self.concepts.thresholds, &self.special_care.thresholds)
    }

    /// The projected embedding, `[1, projection_dim]`.
    fn embed(&self, pixels: &Tensor) -> CandleResult<Array> {
        let windows = self.inputs.rows_on_device(&self.windows(pixels)?)?;
        // The class token's window is zero, so that only its embedding is left of it.
        let xs = self.patch_embedding.forward_adding(&windows, &self.inputs.on_device(&self.positions)?)?;
        let mut xs = self.first_norm.forward(&xs)?;
        for layer in &self.layers {
            xs = layer.forward(&xs)?;
        }
        self.projection.forward(&self.last_norm.forward(&xs.first_token()?)?)
    }

    /// The windows that become tokens, `[1, 1 + patches, 3 x patch x patch]`: one of zeros, then those of the picture, line by line.
    fn windows(&self, pixels: &Tensor) -> CandleResult<Tensor> {
        let VisionConfig { image_size: size, patch_size: patch, .. } = self.vision;
        if pixels.dims() != [COLOURS, size, size] {
            return Err(Error::Msg(format!("a picture of {:?} for a checker of {size} pixels", pixels.dims())).bt());
        }
        // A convolution leaves out what is no whole window.
        let per_side = size / patch;
        let (count, length) = (1 + per_side * per_side, COLOURS * patch * patch);
        let pixels = pixels.flatten_all()?.to_vec1::<f32>()?;
        let mut windows = vec![0f32; count * length];
        for (index, window) in windows.chunks_exact_mut(length).skip(1).enumerate() {
            let (top, left) = (index / per_side * patch, index % per_side * patch);
            for (line, row) in window.chunks_exact_mut(patch).enumerate() {
                let (colour, y) = (line / patch, top + line % patch);
                let from = (colour * size + y) * size + left;
                row.copy_from_slice(&pixels[from..from + patch]);
            }
        }
        Tensor::from_vec(windows, (1, count, length), &Device::Cpu)
    }
}

impl Concepts {
    fn new(count: usize, width: usize, name: &str, params: &Params) -> CandleResult<Self> {
        let dtype = params.dtype();
        let embeddings = params.tensor(&[count, width], name)?.to_vec2::<f32>()?;
        let thresholds = params.tensor(&[count], &format!("{name}_weights"))?.to_vec1::<f32>()?;
        let in_dtype = |numbers: &Vec<f32>| numbers.iter().map(|&number| rounded(number, dtype)).collect::<Vec<_>>();
        Ok(Self {
            embeddings: embeddings.iter().map(|numbers| normalised(&in_dtype(numbers), dtype)).collect(),
            thresholds: in_dtype(&thresholds),
        })
    }
}

/// Special care first, as the first of its scores above 0 adds to all later ones.
pub(crate) fn scores(cosines: &Cosines, concepts: &[f32], special_care: &[f32]) -> Scores {
    let mut adjustment = 0.0;
    let mut careful = Vec::with_capacity(special_care.len());
    for (cosine, threshold) in cosines.special_care.iter().zip(special_care) {
        let score = round3(cosine - threshold + adjustment);
        if score > 0.0 {
            adjustment = CARE;
        }
        careful.push(score);
    }
    let concepts = cosines.concepts.iter().zip(concepts);
    let concepts = concepts.map(|(cosine, threshold)| round3(cosine - threshold + adjustment));
    Scores { concepts: concepts.collect(), special_care: careful }
}

/// The vector divided by its norm, with both rounded to `dtype`.
fn normalised(numbers: &[f32], dtype: DType) -> Vec<f32> {
    let norm = numbers.iter().map(|&number| f64::from(number).powi(2)).sum::<f64>().sqrt();
    let norm = rounded(norm as f32, dtype).max(LEAST_NORM);
    numbers.iter().map(|&number| rounded(number / norm, dtype)).collect()
}

/// The nearest number of a dtype.
fn rounded(number: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(number).to_f32(),
        DType::BF16 => bf16::from_f32(number).to_f32(),
        _ => number,
    }
}

/// Rounded to three digits as numpy does with f32: half of the last digit goes to the even one.
pub(crate) fn round3(number: f32) -> f32 {
    (number * 1000.0).round_ties_even() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{loading::weights::Weights, pipeline::safety_tests::drawn};
    use candle_nn::{Module, VarBuilder};
    use candle_transformers::models::clip::{
        text_model::Activation,
        vision_model::{ClipVisionConfig, ClipVisionTransformer},
    };

    /// candle-transformers is an independent implementation of the vision encoder.
    #[test]
    fn embeddings_are_those_of_candle_transformers() {
        let vision = VisionConfig {
            hidden_size: 64,
            intermediate_size: 160,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            image_size: 40,
            patch_size: 8,
            layer_norm_eps: 1e-5,
        };
        let config = SafetyCheckerConfig { projection_dim: 24, vision: vision.clone() };
        let tensors = drawn(&config);
        let theirs = ClipVisionConfig {
            embed_dim: vision.hidden_size,
            activation: Activation::QuickGelu,
            intermediate_size: vision.intermediate_size,
            num_hidden_layers: vision.num_hidden_layers,
            num_attention_heads: vision.num_attention_heads,
            projection_dim: config.projection_dim,
            num_channels: COLOURS,
            image_size: vision.image_size,
            patch_size: vision.patch_size,
        };
        let builder = VarBuilder::from_tensors(tensors.clone(), DType::F32, &Device::Cpu);
        let theirs = ClipVisionTransformer::new(builder.pp("vision_model"), &theirs).unwrap();
        let ours = SafetyChecker::new(&config, Params::on_cpu(&Weights::new(tensors.clone()))).unwrap();
        let numbers: Vec<f32> = (0..3 * 40 * 40).map(|index| (index as f32 * 0.37).sin() * 1.8).collect();
        let pixels = Tensor::from_vec(numbers, (3, 40, 40), &Device::Cpu).unwrap();
        let pooled = theirs.forward(&pixels.unsqueeze(0).unwrap()).unwrap();
        let theirs = pooled.matmul(&tensors["visual_projection.weight"].t().unwrap()).unwrap();
        let ours = ours.embed(&pixels).unwrap().to_tensor().unwrap();
        let most = |tensor: &Tensor| tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let error = most(&(&ours - &theirs).unwrap()) / most(&theirs);
        assert!(error < 1e-5, "{error:e}");
    }
}
