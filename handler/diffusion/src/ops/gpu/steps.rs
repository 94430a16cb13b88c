//! The two ends of a denoising step, and the way from the decoder's output to bytes. Latents are f32 `[images, channels, height,
//! width]` with at most 8 channels; maps have 8, padded with zeros.

use super::{LANES, addresses, check_alike, check_f32, refused};
use crate::gpu::{Arg, Array, Gpu, Launch};
use candle_core::Result;

/// The sizes of latents and the network's map for them, checked.
struct Sizes {
    gpu: Gpu,
    /// Images, channels, places of an image, and how often the map has each image.
    numbers: [usize; 4],
}

impl Sizes {
    /// Checks both. The map has each image once, or twice for guidance.
    fn of(latents: &Array, map: &Array) -> Result<Self> {
        check_alike("a step's map", &[map])?;
        check_f32("latents", map.gpu(), latents)?;
        match (latents.dims(), map.dims()) {
            (&[images, channels, height, width], &[all, map_height, map_width, LANES])
                if channels <= LANES
                    && (height, width) == (map_height, map_width)
                    && (all == images || all == 2 * images)
                    // Their numbers are counted in `int`.
                    && map.count() <= i32::MAX as usize =>
            {
                Ok(Self { gpu: map.gpu().clone(), numbers: [images, channels, height * width, all / images] })
            }
            dims => refused(format!("latents and map of {dims:?}")),
        }
    }

    fn args(&self) -> [Arg; 4] {
        self.numbers.map(Arg::Int)
    }

    /// A launch with a thread for each place of each image.
    fn launch(&self, kernel: &str, map: &Array) -> Launch {
        let [images, _, places, _] = self.numbers;
        let name = format!("{kernel}_{}", map.dtype().name());
        Launch { name, grid: [(images * places).div_ceil(256), 1, 1], block: 256, shared: 0 }
    }
}

/// Latents times `scale` as a map.
pub(crate) fn enter(latents: &Array, map: &Array, scale: f64) -> Result<()> {
    let sizes = Sizes::of(latents, map)?;
    let args = [&addresses([latents, map])[..], &sizes.args(), &[Arg::Float(scale as f32)]].concat();
    // SAFETY: `Sizes::of` has compared both arrays.
    unsafe { sizes.gpu.launch(sizes.launch("enter", map), &args)? };
    Ok(())
}

/// Latents as a map; and the step's number, an `int`, grows by one.
pub(crate) fn begin_step(latents: &Array, map: &Array, step: &Array) -> Result<()> {
    let sizes = Sizes::of(latents, map)?;
    check_f32("the step's number", &sizes.gpu, step)?;
    let args = [&addresses([latents, map])[..], &sizes.args(), &[Arg::At(step.address())]].concat();
    // SAFETY: `Sizes::of` has compared both arrays; the number has room for one.
    unsafe { sizes.gpu.launch(sizes.launch("begin_step", map), &args)? };
    Ok(())
}

/// The network's output as noise `[images, channels, height, width]`, after guidance by `guidance`, which is one number.
pub(crate) fn leave_noise(output: &Array, noise: &Array, guidance: &Array) -> Result<()> {
    let sizes = Sizes::of(noise, output)?;
    check_f32("guidance", &sizes.gpu, guidance)?;
    let args = [&addresses([output, noise, guidance])[..], &sizes.args()].concat();
    // SAFETY: `Sizes::of` has compared both arrays; guidance has a number.
    unsafe { sizes.gpu.launch(sizes.launch("leave_noise", output), &args)? };
    Ok(())
}

/// The network's output, after guidance, as the next latents, by the row of `sums` (`[steps, 5]`) that `step` names. `before` is the
/// clean picture of the step before, and then of this one.
pub(crate) fn advance(
    output: &Array,
    latents: &Array,
    before: &Array,
    sums: &Array,
    guidance: &Array,
    step: &Array,
) -> Result<()> {
    let sizes = Sizes::of(latents, output)?;
    for (what, array) in [("a clean picture", before), ("sums", sums), ("guidance", guidance), ("a step", step)] {
        check_f32(what, &sizes.gpu, array)?;
    }
    if before.dims() != latents.dims() || sums.columns() != 5 {
        return refused(format!("{:?} and {:?} for latents of {:?}", before.dims(), sums.dims(), latents.dims()));
    }
    let arrays = addresses([output, latents, before, sums, guidance, step]);
    let args = [&arrays[..], &[Arg::Int(sums.rows())], &sizes.args()].concat();
    // SAFETY: the checks above; the kernel takes no row past the last of `sums`.
    unsafe { sizes.gpu.launch(sizes.launch("advance", output), &args)? };
    Ok(())
}

/// The bytes `[height, width, 3]` of a map `[1, height, width, 8]` of numbers from -1 to 1.
pub(crate) fn leave_pixels(map: &Array) -> Result<Vec<u8>> {
    check_alike("pixels", &[map])?;
    let &[1, height, width, LANES] = map.dims() else { return refused(format!("{:?} is no picture", map.dims())) };
    let places = height * width;
    let out = map.gpu().scratch(&[(3 * places).div_ceil(4)], crate::gpu::Dtype::F32)?;
    let args = [&addresses([map, &out])[..], &[Arg::Long(places)]].concat();
    let name = format!("leave_pixels_{}", map.dtype().name());
    // SAFETY: the map has 8 numbers at each place, and `out` has room for three bytes of each.
    unsafe { map.gpu().launch(Launch { name, grid: [places.div_ceil(256), 1, 1], block: 256, shared: 0 }, &args)? };
    let mut bytes = out.read()?;
    bytes.truncate(3 * places);
    Ok(bytes)
}
