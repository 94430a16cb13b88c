//! The widths and depths of a checkpoint's networks, from the shapes of its tensors.

use super::{TEXT, TensorFiles, UNET};

/// Tokens of CLIP's vocabulary. A model may have more.
const VOCABULARY: usize = 49_408;

/// Widths and depths. What shapes do not tell is as in Stable Diffusion 1.5.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Structure {
    /// Channels of the UNet's levels, outermost first.
    pub(super) unet_channels: Vec<usize>,
    /// Whether each level has attention to the prompt.
    pub(super) unet_attention: Vec<bool>,
    /// ResNets per level of the UNet.
    pub(super) per_block: usize,
    pub(super) unet_out: usize,
    /// Width of the prompt's embedding.
    pub(super) context: usize,
    pub(super) vocabulary: usize,
    pub(super) positions: usize,
    pub(super) text_width: usize,
    pub(super) text_inner: usize,
    pub(super) text_layers: usize,
    /// Channels of the VAE's levels, outermost first.
    pub(super) vae_channels: Vec<usize>,
    /// ResNets per level of the VAE's encoder; its decoder has one more.
    pub(super) vae_layers: usize,
    pub(super) latent_channels: usize,
}

impl Structure {
    /// Reads the shapes. `vae` is the prefix of the VAE's tensors.
    ///
    /// # Errors
    /// A tensor is missing, as the rest of a sentence about the file.
    pub(super) fn of(files: &TensorFiles, vae: &str) -> Result<Self, String> {
        // transformers' own level, which some files do not have.
        let text = ["text_model.", ""].map(|level| format!("{TEXT}{level}"));
        let level = text.iter().find(|text| files.get(&format!("{text}embeddings.token_embedding.weight")).is_some());
        let text = level.unwrap_or(&text[0]).as_str();
        let has = |name: &str| files.get(name).is_some();
        let side = |name: String, side: usize| {
            let found = files.get(&name).and_then(|entry| entry.dims.get(side).copied());
            found.ok_or_else(|| format!("it lacks the tensor `{name}`: take another copy of the checkpoint"))
        };
        let count = |name: &dyn Fn(usize) -> String| (0..).take_while(|&index| has(&name(index))).count();

        let inputs = count(&|index| {
            let part = if index == 0 {
                "0.weight"
            } else if has(&format!("{UNET}input_blocks.{index}.0.op.weight")) {
                "0.op.weight"
            } else {
                "0.in_layers.0.weight"
            };
            format!("{UNET}input_blocks.{index}.{part}")
        });
        let samplers: Vec<usize> =
            (1..inputs).filter(|index| has(&format!("{UNET}input_blocks.{index}.0.op.weight"))).collect();
        let per_block = samplers.first().map_or(inputs.saturating_sub(1), |first| first - 1).max(1);
        let levels = inputs / (per_block + 1);
        let block = |level: usize| format!("{UNET}input_blocks.{}", 1 + level * (per_block + 1));
        let attention = |level: usize| has(&format!("{}.1.norm.weight", block(level)));
        let to_k = format!("{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight");

        let vae_levels = count(&|level| format!("{vae}decoder.up.{level}.block.0.conv1.weight"));
        let vae_blocks = count(&|block| format!("{vae}decoder.up.0.block.{block}.conv1.weight"));
        let vae_width = |level: usize| side(format!("{vae}decoder.up.{level}.block.0.conv1.weight"), 0);
        side(format!("{vae}decoder.up.0.block.0.conv1.weight"), 0)?;

        let vocabulary = side(format!("{text}embeddings.token_embedding.weight"), 0)?;
        if vocabulary < VOCABULARY {
            let advice = "a model folder can bring another tokenizer";
            return Err(format!("it has embeddings of {vocabulary} tokens, CLIP has {VOCABULARY}: {advice}"));
        }
        Ok(Self {
            unet_channels: (0..levels.max(1))
                .map(|level| side(format!("{}.0.out_layers.3.weight", block(level)), 0))
                .collect::<Result<_, _>>()?,
            unet_attention: (0..levels.max(1)).map(attention).collect(),
            per_block,
            unet_out: side(format!("{UNET}out.2.weight"), 0)?,
            context: side(to_k, 1)?,
            vocabulary,
            positions: side(format!("{text}embeddings.position_embedding.weight"), 0)?,
            text_width: side(format!("{text}embeddings.token_embedding.weight"), 1)?,
            text_inner: side(format!("{text}encoder.layers.0.mlp.fc1.weight"), 0)?,
            text_layers: count(&|layer| format!("{text}encoder.layers.{layer}.mlp.fc1.weight")),
            vae_channels: (0..vae_levels).map(vae_width).collect::<Result<_, _>>()?,
            vae_layers: vae_blocks - 1,
            latent_channels: side(format!("{vae}decoder.conv_in.weight"), 1)?,
        })
    }
}
