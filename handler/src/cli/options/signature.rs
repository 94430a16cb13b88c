//! How `handler generate` signs. A task says the same in its field `signature`.

use crate::task::signature::{MAX_MARGIN, Position, SIZES, Signature};
use clap::Args;

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
    /// What the options say, beside the name.
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

fn share(text: &str, least: f64, most: f64) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (least..=most).contains(share));
    share.ok_or_else(|| format!("must be a number from {least} to {most}"))
}
