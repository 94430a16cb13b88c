//! The size that a task asks for: an aspect ratio, or a width and a height.

use super::{
    contract::{ASPECT_RATIO, HEIGHT, WIDTH},
    rule::{Fields, Result},
    sizes::{SIZES_OF_RATIOS, size},
    warning::{Code, Warning},
};

/// The size that a task asks for.
pub(super) struct AskedSize {
    /// Pixels.
    pub(super) width: usize,
    /// Pixels.
    pub(super) height: usize,
    /// Whether it is the task's own `width` and `height`.
    pub(super) is_own: bool,
    /// What becomes of an aspect ratio that does not say the size.
    pub(super) warning: Option<Warning>,
}

impl AskedSize {
    /// # Errors
    /// A field that breaks the contract, or one side without the other.
    pub(super) fn read(fields: &Fields) -> Result<Self> {
        let ratio = ASPECT_RATIO.read(fields)?;
        let lonely = |there: &str, missing: &str| {
            Err(format!("`{missing}` is missing, must be there because `{there}` is: a size has both, or neither"))
        };
        let own = match (WIDTH.read(fields)?, HEIGHT.read(fields)?) {
            (Some(width), Some(height)) => Some((width as usize, height as usize)),
            (Some(_), None) => return lonely("width", "height"),
            (None, Some(_)) => return lonely("height", "width"),
            (None, None) => None,
        };
        let is_known = |ratio: &str| SIZES_OF_RATIOS.iter().any(|(name, _)| *name == ratio);
        // Neither shows the text: it may be anything.
        let warning = match (&ratio, own) {
            (Some(_), Some((width, height))) => Some(Warning::new(
                Code::AspectRatioIgnored,
                format!("`aspect_ratio` was not read, as `width` and `height` are there: painted {width}x{height}"),
            )),
            (Some(ratio), None) if !is_known(ratio) => Some(Warning::new(
                Code::AspectRatioUnknown,
                "`aspect_ratio` is none of 1:1, 2:2 and 1:2: painted 512x512".to_string(),
            )),
            _ => None,
        };
        let (width, height) = own.unwrap_or_else(|| size(ratio.as_deref()));
        Ok(Self { width, height, is_own: own.is_some(), warning })
    }
}
