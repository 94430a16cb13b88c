//! Settings of the picture's file. What a task may choose itself, its format above all, is no setting.

use clap::Args;

const JPEG_QUALITY: u8 = 95;
const WEBP_QUALITY: u8 = 90;

/// How the file of a picture is written.
#[derive(Debug, Clone, Copy, Args)]
pub struct PictureConfig {
    /// Quality of JPEG files, from 1 to 100.
    #[arg(long, env = "EASEL_JPEG_QUALITY", default_value_t = JPEG_QUALITY, value_name = "QUALITY",
          value_parser = clap::value_parser!(u8).range(1..=100))]
    pub jpeg_quality: u8,
    /// Quality of WebP files, from 0 to 100.
    #[arg(long, env = "EASEL_WEBP_QUALITY", default_value_t = WEBP_QUALITY, value_name = "QUALITY",
          value_parser = clap::value_parser!(u8).range(0..=100))]
    pub webp_quality: u8,
}

impl Default for PictureConfig {
    fn default() -> Self {
        Self { jpeg_quality: JPEG_QUALITY, webp_quality: WEBP_QUALITY }
    }
}
