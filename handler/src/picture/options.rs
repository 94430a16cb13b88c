//! Settings of the picture's file. What a task may choose itself, its format above all, is no setting.

mod credential;

pub use credential::{CredentialConfig, CredentialFiles, Pem};

use clap::{ArgAction, Args};

const JPEG_QUALITY: u8 = 95;
const WEBP_QUALITY: u8 = 90;

/// How the file of a picture is written.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Files of pictures")]
pub struct PictureConfig {
    /// Quality of JPEG files, from 1 to 100.
    #[arg(long, env = "EASEL_JPEG_QUALITY", default_value_t = JPEG_QUALITY, value_name = "QUALITY",
          value_parser = clap::value_parser!(u8).range(1..=100))]
    pub jpeg_quality: u8,
    /// Quality of WebP files, from 0 to 100.
    #[arg(long, env = "EASEL_WEBP_QUALITY", default_value_t = WEBP_QUALITY, value_name = "QUALITY",
          value_parser = clap::value_parser!(u8).range(0..=100))]
    pub webp_quality: u8,
    /// Whether files say what was asked for: prompt and negative prompt in EXIF and XMP.
    #[arg(long, env = "EASEL_METADATA_PROMPT", default_value_t = false, value_name = "BOOL", num_args = 0..=1,
          require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub metadata_prompt: bool,
}

impl Default for PictureConfig {
    fn default() -> Self {
        Self { jpeg_quality: JPEG_QUALITY, webp_quality: WEBP_QUALITY, metadata_prompt: false }
    }
}
