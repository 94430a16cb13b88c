//! Options of `handler weights`.

use crate::{
    secret::{Secret, hidden},
    task::buckets::{is_bucket, is_key},
};
use clap::{Args, Subcommand, ValueEnum};
use settings::web_url;
use std::{
    fmt::{self, Display},
    path::PathBuf,
    str::FromStr,
};
use url::Url;

/// What to do with a model folder.
#[derive(Debug, Subcommand)]
pub enum WeightsCommand {
    /// Download a model from the hub into a folder; what is there already, or half there, is not downloaded again.
    Pull(PullConfig),
    /// Fetch a pulled model from S3 into a folder, as function and worker do at their start with --model-url.
    Fetch(FetchConfig),
    /// Write a checkpoint, one .safetensors file with a whole model, as a model folder in the diffusers layout.
    Convert(ConvertConfig),
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
    /// Token for a repository that is gated or private; an empty one is none. It goes to the hub alone, not where the hub redirects to.
    #[arg(long, env = "HF_TOKEN", hide_env_values = true, value_name = "TOKEN", value_parser = hidden::<HubToken>())]
    pub token: Option<HubToken>,
}

impl PullConfig {
    /// The token's text, if there is one.
    pub fn token(&self) -> Option<&str> {
        self.token.as_ref()?.0.as_ref().map(Secret::expose)
    }
}

/// A token, or none if the text is empty: so the hub's own programs read `HF_TOKEN`.
#[derive(Debug, Clone)]
pub struct HubToken(Option<Secret>);

impl FromStr for HubToken {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() { Ok(Self(None)) } else { text.parse().map(|token| Self(Some(token))) }
    }
}

/// Settings of `handler weights fetch`.
#[derive(Debug, Clone, Args)]
pub struct FetchConfig {
    /// Where a folder lies that `handler weights pull` filled and `aws s3 sync` brought there: s3://BUCKET/PREFIX
    #[arg(value_name = "S3-URL")]
    pub url: ModelUrl,
    /// The model folder; made if it is not there.
    #[arg(long = "to", value_name = "DIR")]
    pub folder: PathBuf,
    /// Address buckets by path and not by host [default: true if AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_S3 or the profile names an endpoint]
    #[arg(long = "s3-path-style", env = "EASEL_S3_PATH_STYLE", value_name = "BOOL")]
    pub path_style: Option<bool>,
}

/// Settings of `handler weights convert`.
#[derive(Debug, Clone, Args)]
pub struct ConvertConfig {
    /// The checkpoint. Tensors keep their dtypes.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The model folder; it must not be there yet, or be empty.
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
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

/// A model's folder in S3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelUrl {
    /// Its bucket.
    pub bucket: String,
    /// What the keys of its files begin with, without the slash after it.
    pub prefix: String,
}

impl FromStr for ModelUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.strip_prefix("s3://").and_then(|rest| rest.trim_end_matches('/').split_once('/'));
        let is_folder = |prefix: &str| is_key(prefix) && prefix.split('/').all(|part| !part.is_empty());
        let usable = parts.filter(|(bucket, prefix)| is_bucket(bucket) && is_folder(prefix));
        let usable = usable.map(|(bucket, prefix)| Self { bucket: bucket.into(), prefix: prefix.into() });
        usable
            .ok_or_else(|| "must be s3://BUCKET/PREFIX, as in s3://my-models/sd15, with names as S3 allows them".into())
    }
}

impl Display for ModelUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}/{}", self.bucket, self.prefix)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_in_s3_has_a_bucket_and_a_prefix() {
        for (text, bucket, prefix) in [
            ("s3://my-models/sd15", "my-models", "sd15"),
            ("s3://my-models/sd15/", "my-models", "sd15"),
            ("s3://my-models/models/sd 1.5/ü", "my-models", "models/sd 1.5/ü"),
        ] {
            let url: ModelUrl = text.parse().unwrap();
            assert_eq!((url.bucket.as_str(), url.prefix.as_str()), (bucket, prefix));
            assert_eq!(url.to_string(), text.trim_end_matches('/'));
        }
        for text in [
            "",
            "my-models",
            "my-models/sd15",
            "s3://my-models",
            "s3://my-models/",
            "s3://my-models//",
            "s3:///sd15",
            "s3://My-Models/sd15",
            "s3://my-models//sd15",
            "s3://my-models/a//b",
            "s3://my-models/a/../b",
            "s3://my-models/a\nb",
            "S3://my-models/sd15",
            "https://my-models.s3.amazonaws.com/sd15",
            "arn:aws:s3:::my-models/sd15",
            &format!("s3://my-models/{}", "k".repeat(1025)),
        ] {
            assert!(text.parse::<ModelUrl>().is_err_and(|error| error.contains("s3://BUCKET/PREFIX")), "{text:?}");
        }
    }
}
