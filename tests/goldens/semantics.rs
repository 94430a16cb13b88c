//! A picture shows what its prompt says: the colours of subject and background, and the style.
//!
//! The limits come from diffusers' own pictures of the same prompts, which `parts/semantics.py` measures in the same way.

use super::pictures;
use anyhow::{Context, Result, ensure};
use diffusion::{
    noise::Source,
    pipeline::{Compute, Pipeline, Request},
    prompt::Weighting,
    schedulers::Kind,
};
use image::RgbImage;
use serde::Deserialize;
use std::{collections::BTreeMap, f64::consts::TAU, fs, path::Path};

/// How far a share of pixels, or an amplitude, may be from diffusers' own.
const TOLERANCE: f64 = 0.01;
/// The least share of the prompts' colours in diffusers' pictures: below, the model proves nothing about the pipeline.
const LEAST_RIGHT: f64 = 0.9;
/// How much more of a style's feature a styled picture has than the plain one of the same prompt.
const MARKED: f64 = 2.0;

/// `semantics.json`.
#[derive(Deserialize)]
struct About {
    steps: usize,
    seed: u64,
    noise_source: Source,
    frame: u32,
    apart: f64,
    dark: f64,
    period: f64,
    palette: BTreeMap<String, [f64; 3]>,
    cases: Vec<PromptCase>,
}

#[derive(Deserialize)]
struct PromptCase {
    prompt: String,
    subject: String,
    ground: String,
    style: Option<String>,
    measures: Measures,
}

#[derive(Debug, Deserialize)]
struct Measures {
    ground: Commonest,
    subject: Commonest,
    /// Share of pixels that are far from the background's colour.
    subject_share: f64,
    /// Amplitude of the halftone's two diagonal waves.
    dots: f64,
    /// Share of dark pixels.
    leading: f64,
}

/// The named colour that most pixels are nearest to, and their share.
#[derive(Debug, Deserialize)]
struct Commonest {
    colour: String,
    share: f64,
}

impl About {
    fn paint(&self, pipeline: &mut Pipeline, case: &PromptCase, styles: &Path) -> Result<RgbImage> {
        let request = Request {
            prompt: case.prompt.clone(),
            negative_prompt: String::new(),
            prompt_weighting: Weighting::None,
            long_prompt: false,
            clip_skip: 0,
            width: 512,
            height: 512,
            seed: self.seed,
            steps: self.steps,
            guidance_scale: 7.5,
            scheduler: Kind::default(),
            karras_sigmas: None,
            noise_source: self.noise_source,
            start: None,
        };
        let lora = case.style.as_ref().map(|style| (styles.join(format!("{style}.safetensors")), 1.0));
        pictures::paint(pipeline, &request, 1, lora)?.pop().context("no picture")
    }

    fn measure(&self, picture: &RgbImage) -> Result<Measures> {
        let (width, height) = picture.dimensions();
        let inside =
            |x, y| (self.frame..width - self.frame).contains(&x) && (self.frame..height - self.frame).contains(&y);
        let colours = || picture.enumerate_pixels().map(|(x, y, pixel)| (x, y, pixel.0.map(f64::from)));
        let frame: Vec<[f64; 3]> = colours().filter(|&(x, y, _)| !inside(x, y)).map(|(_, _, rgb)| rgb).collect();
        let median = [0, 1, 2].map(|channel| {
            let mut values: Vec<f64> = frame.iter().map(|rgb| rgb[channel]).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        });
        let apart = self.apart.powi(2);
        let away: Vec<[f64; 3]> =
            colours().map(|(_, _, rgb)| rgb).filter(|rgb| distance(rgb, &median) > apart).collect();
        let count = f64::from(width * height);
        let luminance = |rgb: [f64; 3]| (0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]) / 255.0;
        let leading = colours().filter(|&(_, _, rgb)| luminance(rgb) < self.dark).count() as f64 / count;
        let waves = [1.0, -1.0].map(|sign| {
            let (mut real, mut imaginary) = (0.0, 0.0);
            for (x, y, rgb) in colours() {
                let (sin, cos) = (TAU * (f64::from(y) + sign * f64::from(x)) / self.period).sin_cos();
                real += luminance(rgb) * cos;
                imaginary += luminance(rgb) * sin;
            }
            f64::hypot(real, imaginary) / count
        });
        Ok(Measures {
            ground: self.commonest(&frame)?,
            subject_share: away.len() as f64 / count,
            subject: self.commonest(&away)?,
            dots: (waves[0] + waves[1]) / 2.0,
            leading,
        })
    }

    fn commonest(&self, pixels: &[[f64; 3]]) -> Result<Commonest> {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for rgb in pixels {
            let nearest = self.palette.iter().min_by(|a, b| distance(rgb, a.1).total_cmp(&distance(rgb, b.1)));
            *counts.entry(nearest.context("no palette")?.0).or_default() += 1;
        }
        let (colour, count) = counts.into_iter().max_by_key(|&(_, count)| count).context("no pixels")?;
        Ok(Commonest { colour: colour.into(), share: count as f64 / pixels.len() as f64 })
    }
}

/// The squared distance.
fn distance(a: &[f64; 3], b: &[f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum()
}

impl Measures {
    /// How many of the prompt's two colours it shows.
    fn right(&self, case: &PromptCase) -> usize {
        usize::from(self.subject.colour == case.subject) + usize::from(self.ground.colour == case.ground)
    }

    /// The largest difference of any share or amplitude.
    fn difference(&self, other: &Self) -> f64 {
        let numbers = |m: &Self| [m.ground.share, m.subject.share, m.subject_share, m.dots, m.leading];
        numbers(self).iter().zip(numbers(other)).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }
}

#[test]
fn pictures_show_what_was_asked_for() -> Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let about: About = serde_json::from_slice(&fs::read(here.join("goldens/semantics.json"))?)?;
    let mut pipeline = Pipeline::load(&here.join("model/easel-tiny"), &Compute::Cpu, (512, 512))?;
    let mut ours = Vec::new();
    for case in &about.cases {
        let measures = about.measure(&about.paint(&mut pipeline, case, &here.join("model/styles"))?)?;
        println!("{} ({}): {measures:?}", case.prompt, case.style.as_deref().unwrap_or("plain"));
        ours.push(measures);
    }
    let cases = || about.cases.iter().zip(&ours);
    // Each picture is close to diffusers' one.
    for (case, measures) in cases() {
        let theirs = &case.measures;
        ensure!(measures.right(case) >= theirs.right(case), "{}: {measures:?}, diffusers {theirs:?}", case.prompt);
        let off = measures.difference(theirs);
        ensure!(off <= TOLERANCE, "{}: off by {off:.3}: {measures:?}, diffusers {theirs:?}", case.prompt);
    }
    // The colours are those of the prompt.
    let plain: Vec<_> = cases().filter(|(case, _)| case.style.is_none()).collect();
    let right: usize = plain.iter().map(|(case, measures)| measures.right(case)).sum();
    let share = right as f64 / (2 * plain.len()) as f64;
    ensure!(share >= LEAST_RIGHT, "only {right} of {} colours are the asked ones", 2 * plain.len());
    // Each style shows its own feature, and not the other's.
    for (case, measures) in cases().filter(|(case, _)| case.style.is_some()) {
        let (_, base) = plain.iter().find(|(other, _)| other.prompt == case.prompt).context("no plain picture")?;
        let (dotted, leaded) =
            (measures.dots > MARKED * base.dots + 0.005, measures.leading > MARKED * base.leading + 0.05);
        let expected = case.style.as_deref() == Some("halftone");
        ensure!(
            (dotted, leaded) == (expected, !expected),
            "{}, {:?}: {measures:?}, plain {base:?}",
            case.prompt,
            case.style
        );
    }
    Ok(())
}
