//! `vae/config.json` of an `AutoencoderKL`.

use super::{
    fields::{self, Field, only, unneeded, used},
    read_object, require,
};
use crate::error::Result;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;

const FILE: &str = "vae/config.json";

/// `vae/config.json` of an `AutoencoderKL`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VaeConfig {
    /// Channels per level, outermost first.
    pub block_out_channels: Vec<usize>,
    /// Channels of the picture that the encoder reads.
    pub in_channels: usize,
    /// The class of each down block of the encoder.
    pub down_block_types: Vec<String>,
    /// The class of each up block of the decoder.
    pub up_block_types: Vec<String>,
    /// ResNets per level of the encoder; the decoder has one more.
    pub layers_per_block: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of the picture.
    pub out_channels: usize,
    /// Groups of each GroupNorm.
    pub norm_num_groups: usize,
    /// The factor of the latents after encoding, 0.18215 for SD1.5.
    pub scaling_factor: f64,
    /// Whether the mid block has an attention.
    pub mid_block_add_attention: bool,
    /// Whether a 1x1 convolution follows the encoder.
    pub use_quant_conv: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    pub use_post_quant_conv: bool,
}

impl VaeConfig {
    /// Reads and checks `vae/config.json`.
    ///
    /// # Errors
    /// The file cannot be read, its JSON is wrong, or a setting is not supported.
    pub fn load(model: &Path) -> Result<Self> {
        Self::from_object(&read_object(model, FILE)?)
    }

    /// Makes a config of the content of `vae/config.json`.
    ///
    /// # Errors
    /// A setting is not supported.
    pub fn from_object(content: &Map<String, Value>) -> Result<Self> {
        let config: Self = fields::read(FILE, content, &table())?;
        let levels = config.block_out_channels.len();
        require(FILE, "out_channels", config.out_channels, config.out_channels == 3, "3")?;
        require(FILE, "block_out_channels", "[]", levels > 0, "one entry per level")?;
        let ups = config.up_block_types.len();
        require(
            FILE,
            "up_block_types",
            format!("a list of {ups}"),
            ups == levels,
            "as many entries as block_out_channels",
        )?;
        for kind in &config.up_block_types {
            let known = kind.strip_prefix("UNetRes").unwrap_or(kind) == "UpDecoderBlock2D";
            require(FILE, "up_block_types", kind, known, "UpDecoderBlock2D")?;
        }
        for channels in &config.block_out_channels {
            let grouped = config.norm_num_groups > 0 && channels.is_multiple_of(config.norm_num_groups);
            require(FILE, "block_out_channels", channels, grouped, "multiples of `norm_num_groups`")?;
        }
        require(FILE, "scaling_factor", config.scaling_factor, config.scaling_factor != 0.0, "a number other than 0")?;
        Ok(config)
    }

    /// Checks what only the encoder reads. A model that is not asked to begin from a picture may have any encoder, or none.
    ///
    /// # Errors
    /// A setting is not supported.
    pub(crate) fn check_encoder(&self) -> Result<()> {
        let (levels, downs) = (self.block_out_channels.len(), &self.down_block_types);
        require(FILE, "in_channels", self.in_channels, self.in_channels == 3, "3 where a run begins from a picture")?;
        let (found, wanted) = (format!("a list of {}", downs.len()), "as many entries as block_out_channels");
        require(FILE, "down_block_types", found, downs.len() == levels, wanted)?;
        downs.iter().try_for_each(|kind| {
            require(FILE, "down_block_types", kind, kind == "DownEncoderBlock2D", "DownEncoderBlock2D")
        })
    }

    /// Pixels per latent along one side, 8 for SD1.5.
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

/// The parameters of diffusers' `AutoencoderKL` with their defaults, in its order.
pub(super) fn table() -> Vec<Field> {
    let (whole, switch) = ("a whole number", "true, false");
    let another = "null (the pipeline of Stable Diffusion 1.5 only scales latents: this is another model's)";
    vec![
        used("in_channels", json!(3), whole),
        used("out_channels", json!(3), whole),
        used("down_block_types", json!(["DownEncoderBlock2D"]), "a list of names"),
        used("up_block_types", json!(["UpDecoderBlock2D"]), "a list of names"),
        used("block_out_channels", json!([64]), "a list of whole numbers"),
        used("layers_per_block", json!(1), whole),
        only("act_fn", json!("silu"), "silu, swish"),
        used("latent_channels", json!(4), whole),
        used("norm_num_groups", json!(32), whole),
        unneeded("sample_size", json!(32), "for decoding in tiles, which is off unless a program asks for it"),
        used("scaling_factor", json!(0.18215), "a number"),
        only("shift_factor", json!(null), another),
        only("latents_mean", json!(null), another),
        only("latents_std", json!(null), another),
        unneeded("force_upcast", json!(true), "StableDiffusionPipeline does not read it"),
        used("use_quant_conv", json!(true), switch),
        used("use_post_quant_conv", json!(true), switch),
        used("mid_block_add_attention", json!(true), switch),
        // Not the constructor's, but read where it is.
        only("quantization_config", json!(null), "null (give weights that are not quantised)"),
    ]
}
