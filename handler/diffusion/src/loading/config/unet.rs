//! `unet/config.json` of a `UNet2DConditionModel`.

use super::{
    PerBlock,
    fields::{self, Field, only, unneeded, used},
    read_object, require,
};
use crate::error::Result;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;

pub(super) const FILE: &str = "unet/config.json";

/// `unet/config.json` of a `UNet2DConditionModel`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnetConfig {
    /// Channels of the input latents.
    pub in_channels: usize,
    /// Channels of the predicted noise.
    pub out_channels: usize,
    /// Channels per level, outermost first.
    pub block_out_channels: Vec<usize>,
    /// The class of each down block.
    pub down_block_types: Vec<String>,
    /// The class of each up block.
    pub up_block_types: Vec<String>,
    /// ResNets per level.
    pub layers_per_block: PerBlock,
    /// Width of the prompt's embedding.
    pub cross_attention_dim: PerBlock,
    /// Heads per attention. For SD1.5, diffusers has the number of heads under this name.
    pub attention_head_dim: PerBlock,
    /// Transformer blocks per attention.
    pub transformer_layers_per_block: PerBlock,
    /// Groups of each GroupNorm.
    pub norm_num_groups: usize,
    /// Epsilon of each GroupNorm.
    pub norm_eps: f64,
    /// Whether the projections around the transformer are linear layers (SD2), else 1x1 convolutions (SD1).
    pub use_linear_projection: bool,
    /// Whether the timestep embedding starts with the cosines.
    pub flip_sin_to_cos: bool,
    /// Shift of the timestep embedding's frequencies.
    pub freq_shift: f64,
    /// Width of the guidance scale's embedding, if the UNet takes the guidance scale as an input.
    pub time_cond_proj_dim: Option<usize>,
}

impl UnetConfig {
    /// Reads and checks `unet/config.json`.
    ///
    /// # Errors
    /// The file cannot be read, its JSON is wrong, or a setting is not supported.
    pub fn load(model: &Path) -> Result<Self> {
        Self::from_object(&read_object(model, FILE)?)
    }

    /// Makes a config of the content of `unet/config.json`.
    ///
    /// # Errors
    /// A setting is not supported.
    pub fn from_object(content: &Map<String, Value>) -> Result<Self> {
        let mut config: Self = fields::read(FILE, content, &table())?;
        let levels = config.block_out_channels.len();
        let same = levels > 0 && config.down_block_types.len() == levels && config.up_block_types.len() == levels;
        require(FILE, "block_out_channels", levels, same, "as many entries as down_block_types and up_block_types")?;
        for kind in config.down_block_types.iter_mut().chain(&mut config.up_block_types) {
            // The first versions of diffusers wrote this before the name.
            if let Some(name) = kind.strip_prefix("UNetRes") {
                *kind = name.to_string();
            }
        }
        for kind in &config.down_block_types {
            let known = matches!(kind.as_str(), "DownBlock2D" | "CrossAttnDownBlock2D");
            require(FILE, "down_block_types", kind, known, "DownBlock2D, CrossAttnDownBlock2D")?;
        }
        for kind in &config.up_block_types {
            let known = matches!(kind.as_str(), "UpBlock2D" | "CrossAttnUpBlock2D");
            require(FILE, "up_block_types", kind, known, "UpBlock2D, CrossAttnUpBlock2D")?;
        }
        let lists = [
            ("layers_per_block", &config.layers_per_block),
            ("cross_attention_dim", &config.cross_attention_dim),
            ("attention_head_dim", &config.attention_head_dim),
            ("transformer_layers_per_block", &config.transformer_layers_per_block),
        ];
        for (field, list) in lists {
            if let PerBlock::Each(values) = list {
                require(
                    FILE,
                    field,
                    format!("{values:?}"),
                    values.len() == levels,
                    "as many entries as block_out_channels",
                )?;
            }
        }
        for (level, channels) in config.block_out_channels.iter().enumerate() {
            let grouped = config.norm_num_groups > 0 && channels.is_multiple_of(config.norm_num_groups);
            require(FILE, "block_out_channels", channels, grouped, "multiples of `norm_num_groups`")?;
            let heads = config.heads(level);
            let divides = heads > 0 && channels.is_multiple_of(heads);
            require(FILE, "attention_head_dim", heads, divides, "a divisor of the level's channels")?;
        }
        if let Some(width) = config.time_cond_proj_dim {
            require(FILE, "time_cond_proj_dim", width, width >= 4, "null, 4 and more")?;
        }
        Ok(config)
    }

    /// Attention heads at a level, 0 the outermost.
    pub fn heads(&self, level: usize) -> usize {
        self.attention_head_dim.at(level)
    }
}

/// The parameters of diffusers' `UNet2DConditionModel` with their defaults, in its order.
pub(super) fn table() -> Vec<Field> {
    let (whole, number, switch, texts) = ("a whole number", "a number", "true, false", "a list of names");
    let per_block = "a whole number, or a list of one for each level";
    let unread = "only read with another type of embedding or block, which is refused";
    vec![
        unneeded("sample_size", json!(null), "each task names its size"),
        used("in_channels", json!(4), whole),
        used("out_channels", json!(4), whole),
        only("center_input_sample", json!(false), "false"),
        used("flip_sin_to_cos", json!(true), switch),
        used("freq_shift", json!(0), number),
        used(
            "down_block_types",
            json!(["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]),
            texts,
        ),
        only("mid_block_type", json!("UNetMidBlock2DCrossAttn"), "UNetMidBlock2DCrossAttn"),
        used(
            "up_block_types",
            json!(["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]),
            texts,
        ),
        only("only_cross_attention", json!(false), "false"),
        used("block_out_channels", json!([320, 640, 1280, 1280]), "a list of whole numbers"),
        used("layers_per_block", json!(2), per_block),
        only("downsample_padding", json!(1), "1"),
        only("mid_block_scale_factor", json!(1), "1"),
        unneeded("dropout", json!(0.0), "for training"),
        only("act_fn", json!("silu"), "silu, swish"),
        used("norm_num_groups", json!(32), whole),
        used("norm_eps", json!(1e-5), number),
        used("cross_attention_dim", json!(1280), per_block),
        used("transformer_layers_per_block", json!(1), per_block),
        only("reverse_transformer_layers_per_block", json!(null), "null"),
        only("encoder_hid_dim", json!(null), "null"),
        only("encoder_hid_dim_type", json!(null), "null"),
        used("attention_head_dim", json!(8), per_block),
        only("num_attention_heads", json!(null), "null (diffusers refuses others: heads are in `attention_head_dim`)"),
        only("dual_cross_attention", json!(false), "false"),
        used("use_linear_projection", json!(false), switch),
        only("class_embed_type", json!(null), "null"),
        only("addition_embed_type", json!(null), "null (SDXL is another model)"),
        unneeded("addition_time_embed_dim", json!(null), unread),
        only("num_class_embeds", json!(null), "null"),
        unneeded("upcast_attention", json!(false), "the scores of an attention are always f32"),
        only("resnet_time_scale_shift", json!("default"), "default"),
        only("resnet_skip_time_act", json!(false), "false"),
        only("resnet_out_scale_factor", json!(1.0), "1"),
        only("time_embedding_type", json!("positional"), "positional"),
        only("time_embedding_dim", json!(null), "null"),
        only("time_embedding_act_fn", json!(null), "null"),
        only("timestep_post_act", json!(null), "null"),
        used("time_cond_proj_dim", json!(null), "null, a whole number"),
        only("conv_in_kernel", json!(3), "3"),
        only("conv_out_kernel", json!(3), "3"),
        unneeded("projection_class_embeddings_input_dim", json!(null), unread),
        only("attention_type", json!("default"), "default"),
        only("class_embeddings_concat", json!(false), "false"),
        only("mid_block_only_cross_attention", json!(null), "null, false"),
        only("cross_attention_norm", json!(null), "null"),
        unneeded("addition_embed_type_num_heads", json!(64), unread),
        // Not the constructor's, but read where it is.
        only("quantization_config", json!(null), "null (give weights that are not quantised)"),
    ]
}
