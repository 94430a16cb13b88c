//! What `handler generate` paints.

use super::SignatureConfig;
use crate::task::Format;
use crate::{
    engine::options::ModelConfig,
    picture::options::{CredentialFiles, PictureConfig},
};
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use diffusion::{noise, prompt, schedulers};
use std::{path::PathBuf, str::FromStr};

/// Settings of `handler generate`.
#[derive(Debug, Clone, Args)]
pub struct GenerateConfig {
    /// The model.
    #[command(flatten)]
    pub model: ModelConfig,
    /// A LoRA file, with its scale; can be given several times.
    #[arg(long = "lora", value_name = "FILE[=SCALE]")]
    pub loras: Vec<LoraFile>,
    /// What the picture shows.
    #[arg(long)]
    pub prompt: String,
    /// What the picture must not show.
    #[arg(long, default_value = "")]
    pub negative_prompt: String,
    /// What brackets in the prompts mean: text (none), or weights as in AUTOMATIC1111's web UI (a1111).
    #[arg(long, default_value_t)]
    pub prompt_weighting: prompt::Weighting,
    /// Seed of the noise.
    #[arg(long, default_value_t = 42, allow_negative_numbers = true, value_parser = seed)]
    pub seed: i128,
    /// Denoising steps.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub steps: u16,
    /// Classifier-free guidance; none at 1 and below.
    #[arg(long, default_value_t = 7.5, value_parser = finite)]
    pub guidance_scale: f64,
    /// 1:1 is 512x512, 2:2 is 768x768, 1:2 is 512x1024.
    #[arg(long, default_value = "1:1", value_parser = ["1:1", "2:2", "1:2"])]
    pub aspect_ratio: String,
    /// How the noise becomes a picture.
    #[arg(long, default_value_t, value_parser = schedulers())]
    pub scheduler: schedulers::Kind,
    /// Use the noise levels of Karras et al., or not, whatever the model's file says. Not every scheduler has them.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub karras_sigmas: Option<bool>,
    /// Whose generator draws the noise: torch's on a GPU (cuda) or on the CPU (cpu).
    #[arg(long, default_value_t)]
    pub noise_source: noise::Source,
    /// How many pictures of the seed, from 1 to 4; the second is written to the name given by --out with -2 before the ending.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=4))]
    pub num_images: u8,
    /// Whose signature it gets, and how.
    #[command(flatten)]
    pub signature: SignatureConfig,
    /// How the file is written.
    #[command(flatten)]
    pub picture: PictureConfig,
    /// What signs the file.
    #[command(flatten)]
    pub credential: CredentialFiles,
    /// The picture; the name's ending says its format.
    #[arg(long, value_name = "FILE", help = out_help(), value_parser = picture)]
    pub out: PathBuf,
}

/// Names, so that help and completions show them.
fn schedulers() -> impl TypedValueParser<Value = schedulers::Kind> {
    let names = schedulers::Kind::NAMES.iter().map(|(name, _)| *name);
    PossibleValuesParser::new(names).try_map(|name| name.parse::<schedulers::Kind>())
}

fn out_help() -> String {
    format!("The picture. The name's ending says the format: {}", Format::all_endings())
}

/// A seed as a task has it.
fn seed(text: &str) -> Result<i128, String> {
    let seed = text.parse().ok().filter(|seed: &i128| (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(seed));
    seed.ok_or_else(|| "must be an integer from -2^63 to 2^64 - 1".into())
}

fn finite(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or_else(|| "must be a finite number".into())
}

/// A name whose ending says the format.
fn picture(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    Format::of_path(&path).map(|_| path)
}

/// `FILE[=SCALE]`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraFile {
    /// The file.
    pub path: PathBuf,
    /// Multiplier, 1 if none is given.
    pub scale: f64,
}

impl FromStr for LoraFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, scale) = match text.rsplit_once('=') {
            Some((path, scale)) => (path, scale.parse().map_err(|_| format!("the scale `{scale}` is no number"))?),
            None => (text, 1.0),
        };
        if !f64::is_finite(scale) {
            return Err("the scale must be finite".into());
        }
        Ok(Self { path: path.into(), scale })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        assert_eq!((seed("-1"), finite("7.5")), (Ok(-1), Ok(7.5)));
        assert!(["x", "1.5", "18446744073709551616"].iter().all(|text| seed(text).is_err()));
        assert!(["x", "nan", "inf"].iter().all(|text| finite(text).is_err()));
    }

    #[test]
    fn a_picture_has_the_ending_of_a_format() {
        assert_eq!(picture("a/b.c/cat.WEBP"), Ok("a/b.c/cat.WEBP".into()));
        for name in ["cat", "cat.gif", "b.png/cat"] {
            assert!(picture(name).is_err_and(|error| error.contains(".png")), "{name}");
        }
    }

    #[test]
    fn lora_files_carry_their_scale() {
        let cases =
            [("a.safetensors", Ok(("a.safetensors", 1.0))), ("a=b.safetensors=-0.5", Ok(("a=b.safetensors", -0.5)))];
        for (text, expected) in cases {
            let expected = expected.map(|(path, scale): (&str, f64)| LoraFile { path: path.into(), scale });
            assert_eq!(text.parse::<LoraFile>(), expected, "{text}");
        }
        for text in ["a.safetensors=strong", "a=nan"] {
            assert!(text.parse::<LoraFile>().is_err(), "{text}");
        }
    }
}
