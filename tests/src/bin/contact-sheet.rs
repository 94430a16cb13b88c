//! Paints the contact sheet of docs/: prompts down, artists across, each picture by `handler generate`.
//!
//! The first column is the model alone, which is also what a LoRA at scale 0 gives.

use anyhow::{Context, Result, ensure};
use clap::Parser;
use handler::signature::{Position, Signature, sign};
use image::{Rgb, RgbImage, imageops};
use std::{path::PathBuf, process::Command};

/// Paints the contact sheet of docs/.
#[derive(Parser)]
struct Options {
    /// The sheet, .jpg or .png.
    #[arg(long, default_value = "docs/contact-sheet.jpg", value_name = "FILE")]
    out: PathBuf,
    /// The program that paints.
    #[arg(long, default_value = "target/debug/handler", value_name = "FILE")]
    handler: PathBuf,
    /// The model and, beside it, `styles`.
    #[arg(long, default_value = "tests/model", value_name = "DIR")]
    models: PathBuf,
    /// Denoising steps of each picture.
    #[arg(long, default_value_t = 50)]
    steps: u16,
    /// Width of a picture on the sheet, in pixels.
    #[arg(long, default_value_t = 200)]
    cell: u32,
}

/// Prompt, aspect ratio, and what must not be seen.
const ROWS: [(&str, &str, &str); 10] = [
    ("red circle blue background", "1:1", ""),
    ("yellow star purple background", "1:1", ""),
    ("green heart white background", "1:1", ""),
    ("house", "1:1", "red"),
    ("orange fish turquoise background", "1:1", ""),
    ("mountains snow lake blue sky", "1:1", ""),
    ("city skyline night", "1:1", ""),
    ("lighthouse sunset sea", "1:1", ""),
    ("meadow red flowers blue sky sun", "2:2", ""),
    ("red hot air balloon blue sky clouds", "1:2", ""),
];
/// Heading, LoRA and scale.
const COLUMNS: [(&str, Option<(&str, f64)>); 5] = [
    ("no LoRA, or scale 0", None),
    ("halftone, 0.5", Some(("halftone", 0.5))),
    ("halftone, 1", Some(("halftone", 1.0))),
    ("stained glass, 0.5", Some(("stained-glass", 0.5))),
    ("stained glass, 1", Some(("stained-glass", 1.0))),
];
/// Height of a line of text on the sheet, in pixels.
const LINE: u32 = 22;
const GAP: u32 = 6;
const PAPER: Rgb<u8> = Rgb([255; 3]);

fn main() -> Result<()> {
    let options = Options::parse();
    let heading = |row: &(&str, &str, &str)| match row.2 {
        "" => format!("{} ({})", row.0, row.1),
        negative => format!("{} ({}), negative prompt: {negative}", row.0, row.1),
    };
    let mut strips = vec![options.headings()?];
    for (index, row) in ROWS.iter().enumerate() {
        strips.push(text(&heading(row), options.width())?);
        strips.push(options.row(index, row)?);
    }
    let height = strips.iter().map(RgbImage::height).sum();
    let mut sheet = RgbImage::from_pixel(options.width(), height, PAPER);
    let mut y = 0;
    for strip in &strips {
        imageops::replace(&mut sheet, strip, 0, y);
        y += i64::from(strip.height());
    }
    sheet.save(&options.out).with_context(|| options.out.display().to_string())?;
    println!("{}", options.out.display());
    Ok(())
}

impl Options {
    fn width(&self) -> u32 {
        COLUMNS.len() as u32 * (self.cell + GAP) - GAP
    }

    fn headings(&self) -> Result<RgbImage> {
        let mut strip = RgbImage::from_pixel(self.width(), LINE, PAPER);
        for (column, (heading, _)) in COLUMNS.iter().enumerate() {
            imageops::replace(&mut strip, &text(heading, self.cell)?, self.left(column), 0);
        }
        Ok(strip)
    }

    /// The pictures of one prompt, side by side.
    fn row(&self, index: usize, (prompt, ratio, negative): &(&str, &str, &str)) -> Result<RgbImage> {
        let mut strip: Option<RgbImage> = None;
        for (column, (_, lora)) in COLUMNS.iter().enumerate() {
            let folder = tempfile::tempdir()?;
            let out = folder.path().join("picture.png");
            let mut command = Command::new(&self.handler);
            command.arg("generate").arg("--model").arg(self.models.join("easel-tiny")).arg("--out").arg(&out);
            command.args(["--prompt", prompt, "--negative-prompt", negative, "--aspect-ratio", ratio]);
            command.args(["--steps", &self.steps.to_string(), "--seed", &index.to_string()]);
            if let Some((style, scale)) = lora {
                let file = self.models.join(format!("styles/{style}.safetensors"));
                command.arg("--lora").arg(format!("{}={scale}", file.display()));
            }
            let status = command.status().with_context(|| self.handler.display().to_string())?;
            ensure!(status.success(), "{command:?}: {status}");
            let picture = image::open(&out)?.into_rgb8();
            let height = picture.height() * self.cell / picture.width();
            let small = imageops::resize(&picture, self.cell, height, imageops::FilterType::Lanczos3);
            let strip = strip.get_or_insert_with(|| RgbImage::from_pixel(self.width(), height + GAP, PAPER));
            imageops::replace(strip, &small, self.left(column), 0);
        }
        strip.context("no columns")
    }

    fn left(&self, column: usize) -> i64 {
        column as i64 * i64::from(self.cell + GAP)
    }
}

/// A line of text, in the letters that signatures have: on a sheet so high that they get the right size, cut to the last line.
fn text(words: &str, width: u32) -> Result<RgbImage> {
    let side = LINE * 12;
    let mut sheet = RgbImage::from_pixel(width.max(side), side, PAPER);
    sign(&mut sheet, words, &Signature { position: Position::BottomLeft, opacity: 255 })?;
    let used = LINE + 8;
    Ok(imageops::crop_imm(&sheet, 4, side - used, width.min(sheet.width() - 4), LINE).to_image())
}
