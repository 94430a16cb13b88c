//! The contact sheet: every script and every position on light, dark and busy backgrounds, compared with a sheet that a person has
//! approved. To change it, write it again and look at it:
//! `EASEL_WRITE_SHEET=1 cargo test --workspace --lib -- signature::tests::sheet`

use super::*;
use crate::task::signature::Position;
use image::{
    ExtendedColorType, ImageEncoder, ImageFormat,
    codecs::png::{CompressionType, FilterType, PngEncoder},
    imageops::replace,
};
use std::{fs, path::Path};

/// A name in each script that the fonts cover.
pub(super) const NAMES: [&str; 16] = [
    "Ada Kowalska",
    "Anna-Lena Müller",
    "Nguyễn Văn Ý",
    "Ирина Соколова",
    "Ελένη Παπαδοπούλου",
    "王羲之 齐白石",
    "山田 太郎 さくら",
    "김홍도",
    "محمود درويش",
    "דוד כהן",
    "Նարեկ",
    "გიორგი",
    "ศิลปิน ไทย",
    "रवीन्द्र क्षेत्री",
    "தமிழ் செல்வி",
    "김 Kim مريم 42",
];
/// Too long for one line, and for two.
const LONG: [&str; 2] = ["Wolfgang Amadeus Maria Theophilus von Mozart zu Salzburg und Wien", "محمود درويش Anna Bo"];
const CELL: (u32, u32) = (240, 62);
/// Largest difference of one level, and of all levels on average. Rounding differs between machines.
const TOLERANCE: (u8, f64) = (24, 0.05);

fn grounds(width: u32, height: u32) -> [RgbImage; 3] {
    [ground(width, height, [236, 228, 210]), ground(width, height, [28, 24, 44]), checkered(width, height)]
}

fn sheet() -> RgbImage {
    let (width, height) = CELL;
    let rows = NAMES.len() as u32;
    let mut sheet = RgbImage::new(3 * width, rows * height + 2 * width);
    for (row, name) in NAMES.iter().enumerate() {
        let options = Signature { size: Some(0.25), ..with(Position::Center, 128) };
        for (column, cell) in grounds(width, height).iter().enumerate() {
            let cell = signed(cell, name, &options);
            replace(&mut sheet, &cell, i64::from(column as u32 * width), i64::from(row as u32 * height));
        }
    }
    for (column, cell) in grounds(width, width).iter().enumerate() {
        let positions = Position::ALL.into_iter().fold(cell.clone(), |cell, position| {
            let options = Signature { size: Some(0.06), ..with(position, 128) };
            signed(&cell, "Ada Ko", &options)
        });
        let cases = [(Position::Top, LONG[0].to_string()), (Position::BottomRight, LONG[1].repeat(8))];
        let long = cases.iter().fold(cell.clone(), |cell, (position, name)| {
            let options = Signature { size: Some(0.08), ..with(*position, 200) };
            signed(&cell, name, &options)
        });
        for (row, cell) in [positions, long].iter().enumerate() {
            let top = rows * height + row as u32 * width;
            replace(&mut sheet, cell, i64::from(column as u32 * width), i64::from(top));
        }
    }
    sheet
}

#[test]
fn names_look_as_they_did_when_somebody_looked() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/picture/signature/tests/sheet.png");
    let drawn = sheet();
    if std::env::var_os("EASEL_WRITE_SHEET").is_some() {
        let mut file = Vec::new();
        let encoder = PngEncoder::new_with_quality(&mut file, CompressionType::Best, FilterType::NoFilter);
        encoder.write_image(&drawn, drawn.width(), drawn.height(), ExtendedColorType::Rgb8).unwrap();
        fs::write(&path, file).unwrap();
    }
    let seen = image::load_from_memory_with_format(&fs::read(&path).unwrap(), ImageFormat::Png).unwrap().to_rgb8();
    assert_eq!(drawn.dimensions(), seen.dimensions());
    let off: Vec<u8> = drawn.iter().zip(seen.iter()).map(|(drawn, seen)| drawn.abs_diff(*seen)).collect();
    let mean = off.iter().map(|level| f64::from(*level)).sum::<f64>() / off.len() as f64;
    let most = off.iter().copied().max().unwrap_or_default();
    assert!(most <= TOLERANCE.0 && mean <= TOLERANCE.1, "off by {most} levels at most and by {mean:.3} on average");
}
