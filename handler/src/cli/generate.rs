//! `handler generate`: paints from the shell, with a progress bar. No queue, no S3, no webhooks.

use crate::{
    cli::picture_size::PictureSize,
    engine::{Engine, GenerationRequest, options::ModelConfig},
    picture::{
        Credential, PictureOrigin,
        options::{CredentialFiles, PictureConfig},
    },
    storage::{self, ImageLimits},
    task::{
        Format, MAX_CLIP_SKIP, STRENGTH_OF_IMAGES, SafetyMode, block_weights,
        signature::{MAX_MARGIN, Position, SIZES, Signature},
    },
};
use anyhow::{Context, ensure};
use clap::{
    Args,
    builder::{PossibleValuesParser, TypedValueParser},
};
use diffusion::{
    lora::{AppliedLora, BlockWeights, Lora},
    noise,
    pipeline::{Request, StartImage, steps_of_strength},
    prompt,
    prompt::inversion::{AppliedInversion, MAX_TOKEN, TextualInversion},
    schedulers,
};
use indicatif::{ProgressBar, ProgressStyle};
use std::{
    fs, iter,
    ops::ControlFlow,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
};
use tracing::Span;

/// Settings of `handler generate`.
#[derive(Debug, Clone, Args)]
pub struct GenerateConfig {
    /// The model.
    #[command(flatten)]
    pub model: ModelConfig,
    /// A LoRA file, or a folder with one and its adapter_config.json, with its scale; can be given several times.
    #[arg(long = "lora", value_name = "FILE[=SCALE]")]
    pub loras: Vec<LoraFile>,
    /// Factors of a LoRA's scale for parts of the model, in JSON as a task's `lora_weights`; the first is for the first --lora.
    #[arg(long, value_name = "JSON", value_parser = block_weights)]
    pub lora_weights: Vec<BlockWeights>,
    /// A textual inversion file, with the word for it in the prompts if the file names none; can be given several times.
    #[arg(long = "textual-inversion", value_name = "FILE[=TOKEN]")]
    pub inversions: Vec<InversionFile>,
    /// What the picture shows.
    #[arg(long)]
    pub prompt: String,
    /// What the picture must not show.
    #[arg(long, default_value = "")]
    pub negative_prompt: String,
    /// What brackets in the prompts mean: text (none), or weights as in AUTOMATIC1111's web UI (a1111).
    #[arg(long, default_value_t)]
    pub prompt_weighting: prompt::Weighting,
    /// Read prompts of more than 75 tokens in chunks of 75, 8 at most; without it, what comes behind is not read.
    #[arg(long)]
    pub long_prompt: bool,
    /// How many of the text encoder's last layers the prompt skips, as diffusers counts them.
    #[arg(long, value_name = "LAYERS", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=MAX_CLIP_SKIP as i64))]
    pub clip_skip: u8,
    /// Seed of the noise.
    #[arg(long, default_value_t = 42, allow_negative_numbers = true, value_parser = seed)]
    pub seed: i128,
    /// Denoising steps.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub steps: u16,
    /// Classifier-free guidance; none at 1 and below.
    #[arg(long, default_value_t = 7.5, value_parser = finite)]
    pub guidance_scale: f64,
    /// Its size.
    #[command(flatten)]
    pub size: PictureSize,
    /// How the noise becomes a picture.
    #[arg(long, default_value_t, value_parser = schedulers())]
    pub scheduler: schedulers::Kind,
    /// Use the noise levels of Karras et al., or not, whatever the model's file says. Not every scheduler has them.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub karras_sigmas: Option<bool>,
    /// Whose generator draws the noise: torch's on a GPU (cuda) or on the CPU (cpu).
    #[arg(long, default_value_t)]
    pub noise_source: noise::Source,
    /// A picture to begin from, a PNG, JPEG or WebP file. It is scaled until it fills the size, and what is over on two sides is cut off.
    #[arg(long, value_name = "FILE")]
    pub image: Option<PathBuf>,
    /// How far from it: the share of the steps that are painted [default: 0.8]
    #[arg(long, value_name = "SHARE", requires = "image", value_parser = strength)]
    pub strength: Option<f64>,
    /// How large it may be.
    #[command(flatten)]
    pub limits: ImageLimits,
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
    #[arg(long, value_name = "FILE", help = out_help(), value_parser = picture_name)]
    pub out: PathBuf,
}

/// Possible values, so that help and completions show them.
fn schedulers() -> impl TypedValueParser<Value = schedulers::Kind> {
    let names = schedulers::Kind::NAMES.iter().map(|(name, _)| *name);
    PossibleValuesParser::new(names).try_map(|name| name.parse::<schedulers::Kind>())
}

fn out_help() -> String {
    format!("The picture. The name's ending says the format: {}", Format::all_endings())
}

/// A seed, in the range of a task's.
fn seed(text: &str) -> Result<i128, String> {
    let seed = text.parse().ok().filter(|seed: &i128| (i128::from(i64::MIN)..=i128::from(u64::MAX)).contains(seed));
    seed.ok_or_else(|| "must be an integer from -2^63 to 2^64 - 1".into())
}

/// Whether it leaves a step is seen when the number of steps is known.
fn strength(text: &str) -> Result<f64, String> {
    let strength = text.parse().ok().filter(|share: &f64| *share > 0.0 && *share <= 1.0);
    strength.ok_or_else(|| "must be a number above 0 and up to 1".into())
}

fn finite(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|number: &f64| number.is_finite()).ok_or_else(|| "must be a finite number".into())
}

/// A file name whose ending is that of a format.
fn picture_name(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    Format::of_path(&path).map(|_| path)
}

/// `FILE[=SCALE]`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraFile {
    /// The file or folder.
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

/// `FILE[=TOKEN]`.
#[derive(Debug, Clone, PartialEq)]
pub struct InversionFile {
    /// The file.
    pub path: PathBuf,
    /// The word for it; by default what the file names.
    pub token: Option<String>,
}

impl FromStr for InversionFile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A token may have an equals sign, and a file's name as well: the longest name that is there counts.
        let parts = text.match_indices('=').map(|(place, _)| (&text[..place], &text[place + 1..]));
        let found = parts.rev().find(|(path, _)| Path::new(path).is_file()).or_else(|| text.split_once('='));
        let whole = Path::new(text).is_file();
        let (path, token) = found.filter(|_| !whole).map_or((text, None), |(path, token)| (path, Some(token)));
        if token.is_some_and(|token| token.trim().is_empty() || token.chars().count() > MAX_TOKEN) {
            return Err(format!("the token must have 1 to {MAX_TOKEN} characters"));
        }
        Ok(Self { path: path.into(), token: token.map(str::to_string) })
    }
}

/// The signature of a picture from the shell.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Signature")]
pub struct SignatureConfig {
    /// Sign the picture with this name.
    #[arg(long = "signature", value_name = "NAME")]
    pub name: Option<String>,
    /// top-left, top, top-right, left, center, right, bottom-left, bottom or bottom-right.
    #[arg(long = "signature-position", value_name = "POSITION", default_value_t)]
    pub position: Position,
    /// From 0 (invisible) to 255 (solid).
    #[arg(long = "signature-opacity", value_name = "OPACITY", default_value_t = Signature::default().opacity)]
    pub opacity: u8,
    /// Height of the letters as a share of the picture's shorter side, from 0.02 to 0.25 [default: 0.05, more in tall pictures]
    #[arg(long = "signature-size", value_name = "SHARE", value_parser = size)]
    pub size: Option<f64>,
    /// Distance from the edges as a share of the picture's shorter side, from 0 to 0.25.
    #[arg(long = "signature-margin", value_name = "SHARE", default_value_t = Signature::default().margin, value_parser = margin)]
    pub margin: f64,
}

impl SignatureConfig {
    /// The options beside the name.
    pub fn options(&self) -> Signature {
        Signature { position: self.position, opacity: self.opacity, size: self.size, margin: self.margin }
    }
}

fn size(text: &str) -> Result<f64, String> {
    share(text, SIZES.0, SIZES.1)
}

fn margin(text: &str) -> Result<f64, String> {
    share(text, 0.0, MAX_MARGIN)
}

fn share(text: &str, min: f64, max: f64) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (min..=max).contains(share));
    share.ok_or_else(|| format!("must be a number from {min} to {max}"))
}

/// Paints the pictures and writes their files.
///
/// # Errors
/// The first problem with a file, an option or the model, in words for the person at the shell.
pub fn run(config: &GenerateConfig) -> anyhow::Result<()> {
    let request = generation_request(config)?;
    let folder = config.out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let is_there = folder.is_none_or(Path::is_dir);
    ensure!(is_there, "--out {}: there is no such folder; make it first", config.out.display());
    let mut engine = Engine::open(&config.model, (request.inputs.width, request.inputs.height))?;
    let style = ProgressStyle::with_template("{bar:40} step {pos}/{len}  {elapsed} elapsed, {eta} to go")?;
    let steps = request.inputs.painted_steps() as u64;
    let bar = ProgressBar::new(steps).with_style(style);
    let output = engine.paint(&request, &mut |step, _| {
        bar.set_length(steps * step.parts as u64);
        bar.set_position(steps * step.part as u64 + step.finished as u64);
        ControlFlow::Continue(())
    });
    bar.finish_and_clear();
    let output = output?;
    let names: Vec<PathBuf> = (1..).map(|number| numbered(&config.out, number)).take(output.files.len()).collect();
    for (name, file) in names.iter().zip(&output.files) {
        fs::write(name, file).with_context(|| format!("--out {}", name.display()))?;
    }
    for (name, checked) in names.iter().zip(&output.checked).filter(|(_, checked)| checked.nsfw) {
        eprintln!("{}", flagged(name, checked.mode));
    }
    let stages = output.stages.iter().map(|(name, time)| format!("{name} {} ms", time.as_millis()));
    eprintln!("{}", stages.collect::<Vec<_>>().join(", "));
    for name in &names {
        println!("{}", name.display());
    }
    Ok(())
}

/// What the person at the shell is told of a picture that the safety checker flagged.
fn flagged(name: &Path, mode: SafetyMode) -> String {
    let done = if mode == SafetyMode::Flag { "it stands" } else { "it is black" };
    format!("{}: flagged by the safety checker as not safe for work; {done} (--safety {mode})", name.display())
}

/// The name of a picture's file: `picture.png`, `picture-2.png` and so on.
fn numbered(out: &Path, number: usize) -> PathBuf {
    let (stem, ending) = (out.file_stem().unwrap_or_default(), out.extension().unwrap_or_default());
    match number {
        1 => out.into(),
        _ => out.with_file_name(format!("{}-{number}.{}", stem.to_string_lossy(), ending.to_string_lossy())),
    }
}

fn generation_request(config: &GenerateConfig) -> anyhow::Result<GenerationRequest> {
    let seed = config.seed;
    let (width, height) = config.size.pixels();
    let (loras, weights) = (config.loras.len(), config.lora_weights.len());
    ensure!(weights <= loras, "--lora-weights is given {weights} times, and --lora {loras} times: each is for one");
    let weights = config.lora_weights.iter().cloned().chain(iter::repeat_with(BlockWeights::default));
    let loras = config.loras.iter().zip(weights).map(|(file, weights)| {
        let lora = Lora::read(&file.path).with_context(|| format!("--lora {}", file.path.display()))?;
        Ok(AppliedLora { lora: Arc::new(lora), scale: file.scale, weights })
    });
    let inversions = config.inversions.iter().map(|file| {
        let named = || format!("--textual-inversion {}", file.path.display());
        let inversion = TextualInversion::read(&file.path).with_context(named)?;
        Ok(AppliedInversion { inversion: Arc::new(inversion), token: file.token.clone() })
    });
    Ok(GenerationRequest {
        inputs: Request {
            prompt: config.prompt.clone(),
            negative_prompt: config.negative_prompt.clone(),
            prompt_weighting: config.prompt_weighting,
            long_prompt: config.long_prompt,
            clip_skip: usize::from(config.clip_skip),
            width,
            height,
            seed: seed as u64,
            steps: usize::from(config.steps),
            guidance_scale: config.guidance_scale,
            scheduler: config.scheduler,
            karras_sigmas: config.karras_sigmas,
            noise_source: config.noise_source,
            start: start_image(config)?,
        },
        images: usize::from(config.num_images),
        tag_ends: Vec::new(),
        loras: loras.collect::<anyhow::Result<_>>()?,
        inversions: inversions.collect::<anyhow::Result<_>>()?,
        previews: false,
        safety: None,
        signature: config.signature.name.clone().map(|name| (name, config.signature.options())),
        format: Format::of_path(&config.out).map_err(anyhow::Error::msg)?,
        file: config.picture,
        origin: PictureOrigin { seed, ..PictureOrigin::default() },
        credential: Credential::of_files(&config.credential)?.map(Arc::new),
        span: Span::none(),
    })
}

/// The picture to begin from, if there is one.
fn start_image(config: &GenerateConfig) -> anyhow::Result<Option<StartImage>> {
    let Some(file) = &config.image else { return Ok(None) };
    let named = || format!("--image {}", file.display());
    let (length, limit) = (fs::metadata(file).with_context(named)?.len(), config.limits.max_image_bytes);
    let option = "--max-image-bytes (EASEL_MAX_IMAGE_BYTES)";
    ensure!(length <= limit, "{} has {length} bytes, the limit is {limit} by {option}", named());
    let bytes = fs::read(file).with_context(named)?;
    let picture = storage::read_image(&bytes, config.limits.max_image_pixels);
    let picture = picture.map_err(|error| anyhow::anyhow!("{} {error}", named()))?;
    let strength = config.strength.unwrap_or(STRENGTH_OF_IMAGES);
    let steps = config.steps;
    let painted = steps_of_strength(usize::from(steps), strength);
    ensure!(painted > 0, "--strength {strength} leaves none of the {steps} steps: --steps times it must be 1 or more");
    Ok(Some(StartImage { picture: Arc::new(picture), strength }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_pictures_are_numbered_before_the_ending() {
        let name = |out: &str, number| numbered(Path::new(out), number).display().to_string();
        assert_eq!(
            [1, 2, 3].map(|number| name("a/b.c/cat.png", number)),
            ["a/b.c/cat.png", "a/b.c/cat-2.png", "a/b.c/cat-3.png"]
        );
        assert_eq!(name("cat.v2.JPG", 4), "cat.v2-4.JPG");
    }

    #[test]
    fn a_flagged_picture_is_named_with_what_became_of_it() {
        for (mode, done) in
            [(SafetyMode::Flag, "it stands (--safety flag)"), (SafetyMode::Black, "it is black (--safety black)")]
        {
            let said = flagged("a/cat-2.png".as_ref(), mode);
            assert!(said.starts_with("a/cat-2.png: flagged") && said.ends_with(done), "{said}");
        }
    }

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        assert_eq!((seed("-1"), finite("7.5"), strength("1")), (Ok(-1), Ok(7.5), Ok(1.0)));
        assert!(["0", "-0.5", "1.01", "nan", "x"].iter().all(|text| strength(text).is_err()));
        assert!(["x", "1.5", "18446744073709551616"].iter().all(|text| seed(text).is_err()));
        assert!(["x", "nan", "inf"].iter().all(|text| finite(text).is_err()));
    }

    #[test]
    fn a_picture_has_the_ending_of_a_format() {
        assert_eq!(picture_name("a/b.c/cat.WEBP"), Ok("a/b.c/cat.WEBP".into()));
        for name in ["cat", "cat.gif", "b.png/cat"] {
            assert!(picture_name(name).is_err_and(|error| error.contains(".png")), "{name}");
        }
    }

    #[test]
    fn textual_inversion_files_carry_their_token() {
        let folder = tempfile::tempdir().unwrap();
        let odd = folder.path().join("a=b.safetensors").display().to_string();
        fs::write(&odd, "").unwrap();
        let cases = [
            ("a.safetensors", "a.safetensors", None),
            ("a.safetensors=<cat-toy>", "a.safetensors", Some("<cat-toy>")),
            ("a.safetensors=x=y", "a.safetensors", Some("x=y")),
            (&odd, &odd, None),
            (&format!("{odd}=x=y"), &odd, Some("x=y")),
        ];
        for (text, path, token) in cases {
            let expected = InversionFile { path: path.into(), token: token.map(str::to_string) };
            assert_eq!(text.parse::<InversionFile>(), Ok(expected), "{text}");
        }
        for text in ["a.safetensors=", "a= "] {
            assert!(text.parse::<InversionFile>().is_err(), "{text}");
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
