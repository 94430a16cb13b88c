//! Settings of `handler weights`.

use crate::secret::{Secret, hidden};
use clap::{Args, Subcommand, ValueEnum};
use settings::web_url;
use std::path::PathBuf;
use url::Url;

/// What to do with a model folder.
#[derive(Debug, Subcommand)]
pub enum WeightsCommand {
    /// Download a model from the hub into a folder; what is there already, or half there, is not downloaded again.
    Pull(PullConfig),
    /// Hash a pulled folder against its manifest. The exit code is 0 if every file is as it was pulled, else 1.
    Verify(VerifyConfig),
}

/// Settings of `handler weights pull`.
#[derive(Debug, Clone, Args)]
pub struct PullConfig {
    /// The repository on the hub.
    #[arg(long, value_name = "ORG/NAME", value_parser = repo)]
    pub repo: String,
    /// Branch, tag or commit; the manifest keeps the commit that it meant.
    #[arg(long, value_name = "REV", default_value = "main")]
    pub revision: String,
    /// The model folder; made if it is not there.
    #[arg(long = "to", value_name = "DIR")]
    pub folder: PathBuf,
    /// Which files of the weights: full ones, or those in half precision.
    #[arg(long, default_value = "full")]
    pub variant: Variant,
    /// Address of the hub.
    #[arg(long, env = "HF_ENDPOINT", default_value = "https://huggingface.co", value_name = "URL",
          value_parser = web_url)]
    pub endpoint: Url,
    /// Token for a repository that is gated or private. It goes to the hub alone, not where the hub redirects to.
    #[arg(long, env = "HF_TOKEN", hide_env_values = true, value_name = "TOKEN", value_parser = hidden::<Secret>())]
    pub token: Option<Secret>,
}

/// Settings of `handler weights verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyConfig {
    /// A folder that `handler weights pull` filled.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

/// Which files of the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Variant {
    /// Those without a variant in their name.
    Full,
    /// Those named `.fp16.`.
    Fp16,
}

fn repo(text: &str) -> Result<String, String> {
    let is_name = |part: &str| {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        part.bytes().all(legal) && part.bytes().any(|byte| byte != b'.')
    };
    let parts: Vec<&str> = text.split('/').collect();
    let is_repo = parts.len() == 2 && parts.iter().all(|part| is_name(part));
    is_repo
        .then(|| text.to_string())
        .ok_or_else(|| "must be ORG/NAME, of letters, digits, dashes, underscores and dots".into())
}
