//! What the steps of a run begin from: noise, or the noised latents of a picture, as in diffusers' `StableDiffusionImg2ImgPipeline`.

use super::{
    Pipeline, Request,
    request::StartImage,
    resize::{Filter, part},
};
use crate::{
    error::{PipelineError, Result},
    noise::Noise,
    schedulers,
};
use candle_core::{Device, Tensor};
use image::RgbImage;

/// Between these are the logarithms of variances, as in diffusers.
const LOG_VARIANCES: (f32, f32) = (-30.0, 20.0);

impl Pipeline {
    /// What [`Pipeline::denoise`] takes for so many images of the request, `[images, channels, height / 8, width / 8]`, f32: unit noise, or
    /// latents of its picture with noise. From a picture, `noise` draws a sample of the picture's latents first, one for all images, and
    /// then the noise that is added, as in diffusers.
    ///
    /// # Errors
    /// As [`Pipeline::first_noise`]; with a picture also: the model has no VAE encoder that can be used, no step is left, the scheduler
    /// cannot begin later than at its first step, or the device fails or has too little memory.
    pub fn begin(&mut self, request: &Request, images: usize, noise: &mut Noise) -> Result<Tensor> {
        let Some(start) = &request.start else { return self.first_noise(request, images, noise) };
        self.check_start(request)?;
        let first = request.first_step()?;
        let (kind, karras) = (request.scheduler, request.karras_sigmas);
        let mut scheduler = schedulers::build(kind, karras, &self.scheduler_config, request.steps)?;
        scheduler.begin_at(first)?;
        let moments = self.encode(request, start)?;
        let channels = moments.dim(1)? / 2;
        let (mean, log_variance) = (moments.narrow(1, 0, channels)?, moments.narrow(1, channels, channels)?);
        let deviation = (log_variance.clamp(LOG_VARIANCES.0, LOG_VARIANCES.1)? * 0.5)?.exp()?;
        let sample = (mean + (deviation * noise.draw(log_variance.shape(), &Device::Cpu)?)?)?;
        let sample = (sample * self.networks.model().vae_config.scaling_factor)?;
        let unit = self.first_noise(request, images, noise)?;
        if sample.dims()[1..] != unit.dims()[1..] {
            let (ours, theirs) = (sample.dims(), unit.dims());
            return Err(candle_core::Error::msg(format!("latents of {ours:?} for noise of {theirs:?}")).into());
        }
        Ok(scheduler.add_noise(&Tensor::cat(&vec![&sample; images], 0)?, &unit, first)?)
    }

    /// The VAE encoder alone: the distribution of the latents of a request's picture. Means and logarithms of variances,
    /// `[1, 2 x channels, height / 8, width / 8]`, f32, not multiplied by the scaling factor.
    ///
    /// # Errors
    /// As [`Pipeline::begin`].
    pub fn encode(&mut self, request: &Request, start: &StartImage) -> Result<Tensor> {
        self.networks.encode(&pixels(&start.picture, request.width, request.height)?)
    }

    /// Checks that the model can begin from a picture. Reads no weights.
    ///
    /// # Errors
    /// It has no VAE encoder that can be used.
    pub fn check_start(&self, request: &Request) -> Result<()> {
        let checked = request.start.as_ref().map_or(Ok(()), |_| self.networks.model().check_encoder());
        checked.map_err(|error| {
            let limit = format!(
                "but the model has no VAE encoder to read it with ({error}): paint without it, or with another model"
            );
            PipelineError::Request { field: "image_url", value: "given".into(), limit }
        })
    }
}

/// A picture as the encoder takes it, `[1, 3, height, width]`, -1 to 1.
fn pixels(picture: &RgbImage, width: usize, height: usize) -> Result<Tensor> {
    let filling = filling(picture, width, height)?;
    // In f32 as numpy and torch do it: a level is divided by 255 first.
    let table: Vec<f32> = (0..=255u8).map(|level| 2.0 * (f32::from(level) / 255.0) - 1.0).collect();
    let plane = |colour: usize| filling.pixels().map(move |pixel| usize::from(pixel.0[colour]));
    let numbers: Vec<f32> = (0..3).flat_map(plane).map(|level| table[level]).collect();
    Ok(Tensor::from_vec(numbers, (1, 3, height, width), &Device::Cpu)?)
}

/// The picture scaled until it fills that width and height, its middle: as diffusers' `VaeImageProcessor` with `resize_mode="crop"`.
///
/// # Errors
/// The picture has no pixels.
pub fn filling(picture: &RgbImage, width: usize, height: usize) -> Result<RgbImage> {
    let (from_width, from_height) = (picture.width() as usize, picture.height() as usize);
    if from_width == 0 || from_height == 0 || width == 0 || height == 0 {
        let sizes = format!("a picture of {from_width}x{from_height} pixels for one of {width}x{height}");
        return Err(candle_core::Error::msg(sizes).into());
    }
    let is_wider = width as f64 / height as f64 > from_width as f64 / from_height as f64;
    let (across, down) = match is_wider {
        true => (width, from_height * width / from_width),
        false => (from_width * height / from_height, height),
    };
    // Not less than what is cut out: the proportions are rounded down, and the sides are whole.
    let (left, top) = (across / 2 - width / 2, down / 2 - height / 2);
    Ok(part(picture, Filter::Lanczos, (across, left..left + width), (down, top..top + height)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn the_middle_of_the_picture_fills_the_size() {
        // Red, green and blue thirds, beside each other.
        let wide = RgbImage::from_fn(30, 10, |x, _| Rgb([0, 1, 2].map(|third| if x / 10 == third { 255 } else { 0 })));
        let square = filling(&wide, 10, 10).unwrap();
        assert!(square.pixels().all(|pixel| pixel.0 == [0, 255, 0]));
        let tall = RgbImage::from_fn(10, 30, |_, y| Rgb([0, 1, 2].map(|third| if y / 10 == third { 255 } else { 0 })));
        assert!(filling(&tall, 10, 10).unwrap().pixels().all(|pixel| pixel.0 == [0, 255, 0]));
        assert_eq!(filling(&wide, 30, 10).unwrap(), wide, "of its own size it stays as it is");
        assert!(filling(&RgbImage::new(0, 5), 8, 8).is_err());
    }

    #[test]
    fn the_most_elongated_pictures_take_no_more_than_the_size() {
        for (width, height) in [(1, 1), (8000, 1), (1, 8000), (3, 2), (7919, 3)] {
            for (to_width, to_height) in [(512, 512), (512, 1024), (1000, 264), (8, 8)] {
                let filled =
                    filling(&RgbImage::from_pixel(width, height, Rgb([9, 99, 199])), to_width, to_height).unwrap();
                assert_eq!(filled.dimensions(), (to_width as u32, to_height as u32));
                assert!(filled.pixels().all(|pixel| pixel.0 == [9, 99, 199]), "{width}x{height}");
            }
        }
    }

    #[test]
    fn levels_become_numbers_from_minus_one_to_one() {
        let picture = RgbImage::from_pixel(8, 8, Rgb([0, 255, 51]));
        let numbers = pixels(&picture, 8, 8).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!([numbers[0], numbers[64], numbers[191]], [-1.0, 1.0, 2.0 * (51.0 / 255.0) - 1.0]);
    }
}
