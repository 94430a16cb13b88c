//! Sizes of pictures: those of aspect ratios, and the operator's limits for a task's own width and height.

use clap::Args;

/// The smallest `width` and `height` that a task may have, in pixels, whatever the operator allows.
pub const MIN_SIDE: usize = 64;
/// The largest `width` and `height` that a task may have, in pixels, whatever the operator allows.
pub const MAX_SIDE: usize = 2048;
/// What `width` and `height` are multiples of: pixels of a side of one place of the latents.
pub const SIDE_STEP: usize = 8;
/// Aspect ratios with their width and height. The first size is also that of unknown ratios.
pub const SIZES_OF_RATIOS: [(&str, (usize, usize)); 3] =
    [("1:1", (512, 512)), ("2:2", (768, 768)), ("1:2", (512, 1024))];
/// The smallest and the largest side by default; as many pixels as the square of the largest has are the most.
const USUAL: (usize, usize) = (256, 1024);

/// Which `width` and `height` a task may have.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sizes of pictures")]
pub struct SizeLimits {
    /// The smallest `width` and `height` of a task, in pixels. The sizes of an aspect ratio are always painted.
    #[arg(long, env = "EASEL_MIN_SIDE", value_name = "PIXELS", default_value_t = USUAL.0, value_parser = side)]
    pub min_side: usize,
    /// The largest `width` and `height` of a task, in pixels.
    #[arg(long, env = "EASEL_MAX_SIDE", value_name = "PIXELS", default_value_t = USUAL.1, value_parser = side)]
    pub max_side: usize,
    /// The most pixels of a picture: `width` times `height`.
    #[arg(long, env = "EASEL_MAX_PIXELS", value_name = "PIXELS", default_value_t = USUAL.1 * USUAL.1, value_parser = pixels)]
    pub max_pixels: usize,
}

impl Default for SizeLimits {
    fn default() -> Self {
        Self { min_side: USUAL.0, max_side: USUAL.1, max_pixels: USUAL.1 * USUAL.1 }
    }
}

/// A side that a picture may have, for an option.
///
/// # Errors
/// What it must be.
pub fn side(text: &str) -> Result<usize, String> {
    let fits = |side: &usize| (MIN_SIDE..=MAX_SIDE).contains(side) && side.is_multiple_of(SIDE_STEP);
    let side = text.parse().ok().filter(fits);
    side.ok_or_else(|| format!("must be a multiple of {SIDE_STEP} from {MIN_SIDE} to {MAX_SIDE}"))
}

fn pixels(text: &str) -> Result<usize, String> {
    let (min, max) = (MIN_SIDE * MIN_SIDE, MAX_SIDE * MAX_SIDE);
    let pixels = text.parse().ok().filter(|pixels| (min..=max).contains(pixels));
    pixels.ok_or_else(|| format!("must be a whole number from {min} to {max}"))
}

impl SizeLimits {
    /// Whether the limits leave any size at all.
    ///
    /// # Errors
    /// Which two contradict each other.
    pub fn check(&self) -> Result<(), String> {
        let Self { min_side, max_side, max_pixels } = *self;
        if min_side > max_side {
            return Err(format!(
                "--min-side (EASEL_MIN_SIDE) is {min_side}, more than --max-side (EASEL_MAX_SIDE), which is {max_side}: no `width` would be \
                 allowed"
            ));
        }
        if min_side * min_side > max_pixels {
            return Err(format!(
                "--max-pixels (EASEL_MAX_PIXELS) is {max_pixels}, less than the square of --min-side (EASEL_MIN_SIDE), {min_side}: no size \
                 would be allowed"
            ));
        }
        Ok(())
    }

    /// Whether a picture may have that width and height.
    ///
    /// # Errors
    /// The field, its value and its limit.
    pub fn admit(&self, (width, height): (usize, usize)) -> Result<(), String> {
        let Self { min_side, max_side, max_pixels } = *self;
        for (field, pixels) in [("width", width), ("height", height)] {
            if !(min_side..=max_side).contains(&pixels) {
                return Err(format!(
                    "`{field}` is {pixels}, must be from {min_side} to {max_side}, the limits of --min-side (EASEL_MIN_SIDE) and --max-side \
                     (EASEL_MAX_SIDE)"
                ));
            }
        }
        let all = width * height;
        if all > max_pixels {
            return Err(format!(
                "`width` times `height` is {all} pixels, must be at most {max_pixels}, the limit of --max-pixels (EASEL_MAX_PIXELS)"
            ));
        }
        Ok(())
    }

    /// Width and height of the largest picture that a task may ask for, as square as can be. Those of aspect ratios count as well.
    pub fn largest(&self) -> (usize, usize) {
        let height = self.max_side.min(self.max_pixels.isqrt() / SIDE_STEP * SIDE_STEP).max(SIDE_STEP);
        let width = self.max_side.min(self.max_pixels / height / SIDE_STEP * SIDE_STEP);
        let of_ratios = SIZES_OF_RATIOS.into_iter().map(|(_, size)| size);
        of_ratios.fold((width, height), |most, size| if size.0 * size.1 > most.0 * most.1 { size } else { most })
    }
}

/// Width and height of an aspect ratio. 512x512 for none and, as in the Python worker, for an unknown one.
pub fn size(aspect_ratio: Option<&str>) -> (usize, usize) {
    let [(_, usual), ..] = SIZES_OF_RATIOS;
    let Some(wish) = aspect_ratio else { return usual };
    let known = SIZES_OF_RATIOS.iter().find(|(name, _)| *name == wish);
    known.map_or_else(
        || {
            tracing::warn!(known = "1:1, 2:2, 1:2", "unknown aspect_ratio, painting 512x512");
            usual
        },
        |(_, size)| *size,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(min_side: usize, max_side: usize, max_pixels: usize) -> SizeLimits {
        SizeLimits { min_side, max_side, max_pixels }
    }

    #[test]
    fn sizes_outside_of_the_limits_are_refused_by_name() {
        let usual = SizeLimits::default();
        let (large, small) = (limits(256, 2048, 1024 * 1024), limits(64, 256, 64 * 128));
        for (limits, size, fault) in [
            (&usual, (256, 1024), None),
            (&usual, (1024, 1024), None),
            (&usual, (264, 328), None),
            (
                &usual,
                (248, 512),
                Some("`width` is 248, must be from 256 to 1024, the limits of --min-side (EASEL_MIN_SIDE)"),
            ),
            (&usual, (512, 1032), Some("`height` is 1032, must be from 256 to 1024")),
            (&large, (2048, 512), None),
            (
                &large,
                (1032, 1024),
                Some("`width` times `height` is 1056768 pixels, must be at most 1048576, the limit of --max-pixels"),
            ),
            (&small, (64, 128), None),
            (&small, (72, 128), Some("`width` times `height` is 9216 pixels, must be at most 8192")),
        ] {
            match (limits.admit(size), fault) {
                (admitted, None) => assert_eq!(admitted, Ok(()), "{size:?}"),
                (admitted, Some(fault)) => {
                    let reason = admitted.unwrap_err();
                    assert!(reason.starts_with(fault) && reason.contains("EASEL_MAX_"), "{reason}");
                }
            }
        }
    }

    #[test]
    fn limits_that_no_size_can_meet_are_refused() {
        for bad in ["", "-8", "56", "100", "2056", "1e3"] {
            assert!(side(bad).is_err_and(|error| error.contains("multiple of 8 from 64 to 2048")), "{bad}");
        }
        assert_eq!((side("64"), pixels("4096")), (Ok(64), Ok(4096)));
        assert!(["4095", "4194305", "x"].iter().all(|bad| pixels(bad).is_err()));
        assert_eq!(SizeLimits::default().check(), Ok(()));
        assert_eq!(limits(512, 512, 512 * 512).check(), Ok(()));
        for (bad, named) in
            [(limits(520, 512, 1 << 20), "EASEL_MAX_SIDE"), (limits(512, 1024, 512 * 511), "EASEL_MAX_PIXELS")]
        {
            let reason = bad.check().unwrap_err();
            assert!(reason.contains("EASEL_MIN_SIDE") && reason.contains(named), "{reason}");
        }
    }

    #[test]
    fn the_largest_picture_is_within_the_limits_or_of_an_aspect_ratio() {
        for (limits, largest) in [
            (SizeLimits::default(), (1024, 1024)),
            (limits(256, 2048, 1024 * 1024), (1024, 1024)),
            (limits(256, 2048, 1000 * 1024), (1008, 1008)),
            (limits(64, 256, 4096), (768, 768)),
            (limits(64, 2048, 2048 * 2048), (2048, 2048)),
        ] {
            let (width, height) = limits.largest();
            assert_eq!((width, height), largest, "{limits:?}");
            assert!(width * height <= limits.max_pixels.max(768 * 768));
        }
    }
}
