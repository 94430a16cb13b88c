//! `handler bench file`: what it costs to make a picture's file. Needs no model: the picture is given, or made up.

use super::{BenchFileConfig, millis};
use crate::{
    picture::{self, Credential, ModelName, PictureOrigin, Provenance, options::PictureConfig, signature::sign},
    task::{self, Format, signature::Signature},
};
use anyhow::Context;
use diffusion::lora::AppliedLora;
use image::{Rgb, RgbImage, imageops::FilterType};
use serde_json::{Map, json};
use std::{
    hint::black_box,
    time::{Duration, Instant},
};

/// Measures signing, and for each format encoding, metadata and the credential, if there is a certificate. Prints the minimum and the
/// median of the repeats: on shared cores the minimum is the work itself.
///
/// # Errors
/// The picture cannot be read, the name cannot be drawn, or the credential cannot be used.
pub fn file(config: &BenchFileConfig) -> anyhow::Result<()> {
    let (width, height) = task::size(Some(&config.aspect_ratio));
    let picture = picture(config, (width as u32, height as u32))?;
    let settings = PictureConfig::default();
    let request = super::inputs("lighthouse sunset sea", (width, height), 50, 7.5);
    let origin = PictureOrigin { generation_id: Some(500), seed: 42, ..PictureOrigin::default() };
    let model = ModelName { name: "sd15".into(), revision: None };
    let loras: [AppliedLora; 0] = [];
    let provenance = Provenance {
        origin: &origin,
        artist: Some(&config.signature),
        model: &model,
        loras: &loras,
        inversions: &[],
        request: &request,
        image: (1, 1),
        checked: None,
        prompts: false,
    };
    let mut figures = vec![(
        "sign".to_string(),
        timed(
            config.repeat,
            || picture.clone(),
            |mut picture| {
                sign(&mut picture, &config.signature, &Signature::default())?;
                Ok(picture)
            },
        )?,
    )];
    let credential = Credential::of_files(&config.credential)?;
    let mut signed = picture;
    sign(&mut signed, &config.signature, &Signature::default())?;
    let mut sizes = Map::new();
    for &format in Format::ALL {
        let encode = |()| Ok(picture::encode(&signed, format, &settings)?);
        figures.push((format!("encode {format}"), timed(config.repeat, || (), encode)?));
        let file = picture::encode(&signed, format, &settings)?;
        let embed = |file| Ok(picture::embed(file, format, &provenance)?);
        figures.push((format!("metadata {format}"), timed(config.repeat, || file.clone(), embed)?));
        let whole = picture::embed(file.clone(), format, &provenance)?;
        let mut size = json!({ "bytes": whole.len(), "metadata": whole.len() - file.len() });
        if let Some(credential) = &credential {
            let sign = |file| Ok(credential.sign(file, format, &provenance)?);
            figures.push((format!("credential {format}"), timed(config.repeat, || whole.clone(), sign)?));
            let signed = credential.sign(whole.clone(), format, &provenance)?;
            size["credential"] = (signed.len() - whole.len()).into();
        }
        sizes.insert(format.to_string(), size);
    }
    if config.json {
        let times =
            figures.iter().map(|(name, (least, median))| (name.clone(), json!([millis(*least), millis(*median)])));
        let times: Map<_, _> = times.collect();
        println!("{}", serde_json::to_string_pretty(&json!({ "files": sizes, "least_and_median_ms": times }))?);
        return Ok(());
    }
    println!("{width}x{height}, least and median of {}", config.repeat);
    for (name, (least, median)) in &figures {
        println!("{name:<15}  {:>9.3} ms  {:>9.3} ms", millis(*least), millis(*median));
    }
    for (format, size) in sizes {
        let credential = size.get("credential").map(|bytes| format!(", and {bytes} more for the credential"));
        let credential = credential.unwrap_or_default();
        println!("{format:<15}  {:>9} bytes, {} of them metadata{credential}", size["bytes"], size["metadata"]);
    }
    Ok(())
}

/// Minimum and median time of `work`; `prepare` makes its input and is not measured.
fn timed<I, O>(
    repeat: u32,
    prepare: impl Fn() -> I,
    work: impl Fn(I) -> anyhow::Result<O>,
) -> anyhow::Result<(Duration, Duration)> {
    let mut times = Vec::with_capacity(repeat as usize);
    for _ in 0..repeat {
        let input = prepare();
        let clock = Instant::now();
        let output = work(black_box(input))?;
        times.push(clock.elapsed());
        black_box(output);
    }
    Ok((times.iter().min().copied().unwrap_or_default(), super::median(times)))
}

/// The given picture in that size, or soft waves.
fn picture(config: &BenchFileConfig, (width, height): (u32, u32)) -> anyhow::Result<RgbImage> {
    if let Some(path) = &config.picture {
        let picture =
            image::open(path).with_context(|| format!("--picture {} must be a JPEG or PNG file", path.display()))?;
        return Ok(picture.resize_to_fill(width, height, FilterType::Triangle).to_rgb8());
    }
    Ok(waves(width, height))
}

/// Soft waves in that size.
pub(super) fn waves(width: u32, height: u32) -> RgbImage {
    let wave = |x: u32, y: u32, length: f32| {
        let (x, y) = (x as f32 / length, y as f32 / length);
        (127.5 + 80.0 * (x + y.sin()).sin() + 40.0 * (3.0 * y - x).cos()) as u8
    };
    RgbImage::from_fn(width, height, |x, y| Rgb([wave(x, y, 40.0), wave(y, x, 25.0), wave(x, y, 15.0)]))
}
