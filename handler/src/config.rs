//! The command line and the environment of the handler. Tests build these structs; nothing else reads the environment.

mod cache;
mod picture;
mod signature;
mod weights;

pub use cache::CacheConfig;
pub use picture::PictureConfig;
pub use signature::SignatureConfig;
pub use weights::{PullConfig, Variant, VerifyConfig, WeightsCommand};

use crate::{
    lora::Dora,
    pipeline::{Offload, noise, prompt, scheduler},
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::{fmt, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};
use url::Url;

mod safety;
mod secrets;
mod work;
pub use safety::SafetyConfig;
pub use secrets::{SecretsConfig, SigningConfig, TokenConfig};
pub use work::{ErrorCodes, WorkConfig};

/// Paints generation tasks with Stable Diffusion 1.5 and an artist's LoRA.
///
/// Without a subcommand it is the AWS Lambda function, configured by the environment alone.
#[derive(Debug, Parser)]
#[command(name = "handler", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve SQS events through the Lambda Runtime API (what `handler` alone does).
    Function(ServiceConfig),
    /// Poll an SQS queue: for GPU hosts that are not Lambda.
    Worker(WorkerConfig),
    /// Paint one picture from the shell.
    Generate(GenerateConfig),
    /// Fill a model folder from the hub, and check one.
    #[command(subcommand)]
    Weights(WeightsCommand),
    /// Look at LoRA files.
    #[command(subcommand)]
    Lora(LoraCommand),
    /// Measure what something costs here.
    #[command(subcommand)]
    Bench(BenchCommand),
}

/// What to do with LoRA files.
#[derive(Debug, Subcommand)]
pub enum LoraCommand {
    /// Say what a LoRA file is, and whether it would load. The exit code is 0 if it would, else 1.
    Inspect(InspectConfig),
}

/// What to measure.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// What reading a LoRA and swapping it in and out costs.
    Lora(BenchLoraConfig),
    /// What a picture costs, stage by stage.
    Picture(BenchPictureConfig),
    /// What it costs to sign a picture, to encode it and to write its metadata. Needs no model.
    File(BenchFileConfig),
    /// Whether many tasks in a row cost the same and leave nothing behind.
    Soak(BenchSoakConfig),
}

/// What function and worker share.
#[derive(Debug, Clone, Args)]
pub struct ServiceConfig {
    /// The model.
    #[command(flatten)]
    pub model: ModelConfig,
    /// The storage.
    #[command(flatten)]
    pub store: StoreConfig,
    /// The pictures' files.
    #[command(flatten)]
    pub picture: PictureConfig,
    /// The secrets.
    #[command(flatten)]
    pub secrets: SecretsConfig,
    /// What a task may reach.
    #[command(flatten)]
    pub safety: SafetyConfig,
    /// How tasks are worked on.
    #[command(flatten)]
    pub work: WorkConfig,
    /// How log lines look.
    #[arg(long, env = "EASEL_LOG_FORMAT", default_value = "json")]
    pub log_format: LogFormat,
}

/// Which model, and on what it runs.
#[derive(Debug, Clone, Args)]
pub struct ModelConfig {
    /// Model folder in the diffusers layout.
    #[arg(long = "model", env = "EASEL_MODEL_DIR", value_name = "DIR")]
    pub dir: PathBuf,
    /// Where to compute.
    #[arg(long, env = "EASEL_DEVICE", default_value = "auto")]
    pub device: DeviceKind,
    /// Floating-point type of weights and activations.
    #[arg(long, env = "EASEL_DTYPE", default_value = "auto")]
    pub dtype: Precision,
    /// Whether text encoder and VAE leave the GPU while the UNet works: auto does so if memory is short.
    #[arg(long, env = "EASEL_OFFLOAD", default_value = "auto")]
    pub offload: Offload,
    /// Threads at a time of the GPU whose noise is drawn: multiprocessors times threads of each, a multiple of 256. H100 SXM
    /// and H200 270336, A100 221184, L40S 218112, A10G 122880, L4 89088, T4 40960. Only several large pictures at once depend on it.
    #[arg(long, env = "EASEL_NOISE_THREADS", default_value_t = noise::DEFAULT_THREADS, value_name = "COUNT", value_parser = noise_threads)]
    pub noise_threads: u32,
    /// What becomes of the lengths a DoRA file has: ignore drops `dora_scale`, as diffusers does.
    #[arg(long, env = "EASEL_DORA", default_value = "apply")]
    pub dora: Dora,
}

fn noise_threads(text: &str) -> Result<u32, String> {
    let count = text.parse().ok().filter(|count: &u32| *count > 0 && count.is_multiple_of(256));
    count.ok_or_else(|| "must be a multiple of 256 and not 0".into())
}

/// Where pictures go and LoRAs come from.
#[derive(Debug, Clone, Args)]
pub struct StoreConfig {
    /// Bucket for the pictures.
    #[arg(long = "s3-bucket", env = "S3_BUCKET", default_value = "stylelicense-images", value_name = "BUCKET")]
    pub bucket: String,
    /// Canned ACL of a picture; `none` for buckets that have ACLs disabled.
    #[arg(long = "result-acl", env = "EASEL_RESULT_ACL", default_value = "public-read")]
    pub acl: ResultAcl,
    /// Base of `result_url` [default: https://BUCKET.s3.amazonaws.com]
    #[arg(long = "result-base-url", env = "EASEL_RESULT_BASE_URL", value_name = "URL")]
    pub base_url: Option<Url>,
    /// Address buckets by path and not by host [default: true if AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3 is set]
    #[arg(long = "s3-path-style", env = "EASEL_S3_PATH_STYLE", value_name = "BOOL")]
    pub path_style: Option<bool>,
    /// Folder in which LoRAs are kept between tasks.
    #[arg(long, env = "EASEL_CACHE_DIR", default_value = "/tmp/easel", value_name = "DIR")]
    pub cache_dir: PathBuf,
    /// Bucket in which the relay leaves messages over SQS' limit; without it, a message that points into S3 is refused.
    #[arg(long, env = "EASEL_PAYLOAD_BUCKET", value_name = "BUCKET")]
    pub payload_bucket: Option<String>,
    /// Largest LoRA file accepted, in bytes.
    #[arg(long, env = "EASEL_MAX_LORA_BYTES", default_value_t = 1 << 30, value_name = "BYTES")]
    pub max_lora_bytes: u64,
    /// How they are fetched and kept.
    #[command(flatten)]
    pub cache: CacheConfig,
}

/// Settings of `handler worker`.
#[derive(Debug, Clone, Args)]
pub struct WorkerConfig {
    /// What it shares with the function.
    #[command(flatten)]
    pub service: ServiceConfig,
    /// The queue to poll.
    #[arg(long, env = "SQS_QUEUE_URL", value_name = "URL")]
    pub sqs_queue_url: String,
    /// Visibility timeout of a message in work, in seconds; it is extended for as long as the work goes on.
    #[arg(long, env = "EASEL_VISIBILITY_TIMEOUT", default_value_t = 120, value_name = "SECONDS",
          value_parser = clap::value_parser!(i32).range(3..=43_200))]
    pub visibility_timeout: i32,
    /// Tasks in work at a time. With more than one, those that wait for the GPU are fetched, and those that were painted are encoded and
    /// uploaded, while it paints; tasks of one LoRA, size and number of steps are painted as one batch.
    #[arg(long, env = "EASEL_CONCURRENCY", default_value_t = 1, value_name = "COUNT",
          value_parser = clap::value_parser!(u16).range(1..=100))]
    pub concurrency: u16,
    /// Seconds without a task after which the worker ends with exit code 0, for hosts that scale to zero; 0 for never.
    #[arg(long, env = "EASEL_IDLE_EXIT", default_value_t = 0, value_name = "SECONDS")]
    pub idle_exit: u32,
    /// Where to answer /healthz, /readyz and /metrics [default: nowhere]
    #[arg(long, env = "EASEL_HEALTH_ADDR", value_name = "IP:PORT")]
    pub health_addr: Option<SocketAddr>,
}

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
    #[arg(long, default_value_t = 42, allow_negative_numbers = true)]
    pub seed: i128,
    /// Denoising steps.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub steps: u16,
    /// Classifier-free guidance; none at 1 and below.
    #[arg(long, default_value_t = 7.5)]
    pub guidance_scale: f64,
    /// 1:1 is 512x512, 2:2 is 768x768, 1:2 is 512x1024.
    #[arg(long, default_value = "1:1", value_parser = ["1:1", "2:2", "1:2"])]
    pub aspect_ratio: String,
    /// dpmsolver++, euler, euler_ancestral, ddim, unipc or lcm.
    #[arg(long, default_value_t)]
    pub scheduler: scheduler::Kind,
    /// Use the noise levels of Karras et al., or not, whatever the model's file says; dpmsolver++, euler and unipc have them.
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
    /// The picture, .jpg, .png or .webp.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
}

/// Settings of `handler lora inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectConfig {
    /// The LoRA.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Check it against this model folder; only the headers of its files are read.
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Settings of `handler bench lora`.
#[derive(Debug, Clone, Args)]
pub struct BenchLoraConfig {
    /// The model.
    #[command(flatten)]
    pub model: ModelConfig,
    /// The LoRA.
    #[arg(long, value_name = "FILE")]
    pub lora: PathBuf,
    /// How often each part is measured.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Settings of `handler bench picture`.
#[derive(Debug, Clone, Args)]
pub struct BenchPictureConfig {
    /// The model.
    #[command(flatten)]
    pub model: ModelConfig,
    /// What the picture shows.
    #[arg(long, default_value = "lighthouse sunset sea")]
    pub prompt: String,
    /// 1:1 is 512x512, 2:2 is 768x768, 1:2 is 512x1024.
    #[arg(long, default_value = "1:1", value_parser = ["1:1", "2:2", "1:2"])]
    pub aspect_ratio: String,
    /// Denoising steps.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub steps: u16,
    /// Classifier-free guidance; none at 1 and below.
    #[arg(long, default_value_t = 7.5)]
    pub guidance_scale: f64,
    /// How many pictures at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub num_images: u8,
    /// How often, after a first time that is told apart.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Settings of `handler bench file`.
#[derive(Debug, Clone, Args)]
pub struct BenchFileConfig {
    /// A picture, JPEG or PNG, cropped to the size [default: soft waves]
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
    /// The name to sign with.
    #[arg(long, value_name = "NAME", default_value = "Ada Kowalska")]
    pub signature: String,
    /// 1:1 is 512x512, 2:2 is 768x768, 1:2 is 512x1024.
    #[arg(long, default_value = "1:1", value_parser = ["1:1", "2:2", "1:2"])]
    pub aspect_ratio: String,
    /// How often each part is measured.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub repeat: u32,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Settings of `handler bench soak`.
#[derive(Debug, Clone, Args)]
pub struct BenchSoakConfig {
    /// The model.
    #[command(flatten)]
    pub model: ModelConfig,
    /// LoRA files; tasks take them in turns, and none every now and then.
    #[arg(long = "lora", value_name = "FILE")]
    pub loras: Vec<PathBuf>,
    /// How many tasks. Their sizes take turns, too.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(12..=100_000))]
    pub tasks: u32,
    /// Denoising steps of each.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub steps: u16,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// A text that no log and no Debug shows.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usable = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        usable.then(|| Self(text.to_string())).ok_or_else(|| "must be visible ASCII characters, at least one".into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
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

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// The GPU if this build and machine have one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA GPU.
    Cuda,
}

/// Floating-point type of weights and activations. Sums, norms, softmax and the scheduler are f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// f16 on a GPU, f32 on the CPU.
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, of which 5 exponent. On a GPU only.
    F16,
    /// 16 bits, of which 8 exponent. On a GPU only.
    Bf16,
}

/// Canned ACL of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ResultAcl {
    /// Everybody may read.
    PublicRead,
    /// No ACL header: the bucket's policy decides.
    None,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Longest time for one webhook call, as in the Python worker.
pub const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_secret_does_not_show() {
        let secret: Secret = "hunter2".parse().unwrap();
        assert_eq!(format!("{secret:?}"), "<redacted>");
        assert!("two words".parse::<Secret>().is_err());
    }

    #[test]
    fn missing_settings_are_named() {
        let error = Cli::try_parse_from(["handler", "generate", "--prompt", "x", "--out", "x.jpg"]).unwrap_err();
        assert!(error.to_string().contains("--model"), "{error}");
    }
}
