//! Where a signature is placed, that it is legible, and which names can be drawn.

mod sheet;

use super::*;
use crate::task::signature::Position;
use image::Rgb;

fn ground(width: u32, height: u32, colour: [u8; 3]) -> RgbImage {
    RgbImage::from_pixel(width, height, Rgb(colour))
}

fn checkered(width: u32, height: u32) -> RgbImage {
    let colours = [[220, 60, 40], [250, 240, 200], [20, 40, 90]];
    RgbImage::from_fn(width, height, |x, y| Rgb(colours[((x / 9 + y / 9) % 3) as usize]))
}

fn with(position: Position, opacity: u8) -> Signature {
    Signature { position, opacity, ..Signature::default() }
}

fn signed(before: &RgbImage, name: &str, options: &Signature) -> RgbImage {
    let mut after = before.clone();
    sign(&mut after, name, options).unwrap();
    assert_eq!(after.dimensions(), before.dimensions());
    after
}

/// Left, top, right and bottom of the pixels that differ.
fn changed(before: &RgbImage, after: &RgbImage) -> Option<(u32, u32, u32, u32)> {
    let pixels = before.enumerate_pixels().zip(after.pixels()).filter(|((_, _, old), new)| old != new);
    pixels.map(|((x, y, _), _)| (x, y, x, y)).reduce(|a, b| (a.0.min(b.0), a.1.min(b.1), a.2.max(b.2), a.3.max(b.3)))
}

/// Contrast of the ink with the pixels around it.
fn contrast_of_ink(before: &RgbImage, name: &str, opacity: u8) -> f32 {
    let (width, height) = before.dimensions();
    let stencil = signed(&ground(width, height, [255; 3]), name, &with(Position::BottomRight, 255));
    let after = signed(before, name, &with(Position::BottomRight, opacity));
    let is_ink = |x: u32, y: u32| stencil.get_pixel(x, y).0[0] < 60;
    let (mut ink, mut around) = (Vec::new(), Vec::new());
    for (x, y, pixel) in after.enumerate_pixels() {
        let near = (x.saturating_sub(2)..(x + 3).min(width)).any(|x| is_ink(x, y));
        match (is_ink(x, y), near) {
            (true, _) => ink.push(pixel.0),
            (false, true) => around.push(pixel.0),
            (false, false) => {}
        }
    }
    let mean = |pixels: &[[u8; 3]]| -> [f32; 3] {
        std::array::from_fn(|c| pixels.iter().map(|pixel| f32::from(pixel[c])).sum::<f32>() / pixels.len() as f32)
    };
    ratio(mean(&ink), mean(&around))
}

/// Contrast ratio of two colours (WCAG 2), independent of the code under test.
fn ratio(one: [f32; 3], other: [f32; 3]) -> f32 {
    let luminance = |colour: [f32; 3]| {
        let linear = colour.map(|level| f64::from(level) / 255.0).map(|level| match level <= 0.04045 {
            true => level / 12.92,
            false => ((level + 0.055) / 1.055).powf(2.4),
        });
        0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    };
    let (one, other) = (luminance(one), luminance(other));
    ((one.max(other) + 0.05) / (one.min(other) + 0.05)) as f32
}

#[test]
fn only_the_chosen_part_of_the_picture_changes() {
    for (width, height) in [(512, 512), (768, 768), (512, 1024)] {
        let before = checkered(width, height);
        for position in Position::ALL {
            let after = signed(&before, "TestArtist", &with(position, 128));
            let (left, top, right, bottom) = changed(&before, &after).unwrap();
            let (across, down) = position.anchor();
            let near = |low: u32, high: u32, size: u32, share: f32| match share {
                0.0 => (8..36).contains(&low) && high < size / 2,
                1.0 => (size - 36..size - 8).contains(&high) && low > size / 2,
                _ => (low + high).abs_diff(size) < 8,
            };
            assert!(near(left, right, width, across), "{width}x{height} {position}: {left} to {right}");
            assert!(near(top, bottom, height, down), "{width}x{height} {position}: {top} to {bottom}");
            assert!(bottom - top < height / 10 && right - left < width / 2);
        }
    }
}

#[test]
fn size_and_margin_are_shares_of_the_shorter_side() {
    let spread = |size: Option<f64>, margin: f64, (width, height): (u32, u32)| {
        let before = ground(width, height, [255; 3]);
        let options = Signature { position: Position::BottomRight, opacity: 255, size, margin };
        changed(&before, &signed(&before, "TestArtist", &options)).unwrap()
    };
    let (small, large) = (spread(Some(0.05), 0.035, (512, 512)), spread(Some(0.1), 0.035, (512, 512)));
    assert!(((large.2 - large.0) as f32 / (small.2 - small.0) as f32 - 2.0).abs() < 0.1, "{small:?} {large:?}");
    let double = spread(Some(0.05), 0.035, (1024, 1024));
    assert!((double.2 - double.0).abs_diff(2 * (small.2 - small.0)) < 4, "{small:?} {double:?}");
    for margin in [0.0, 0.1, 0.25] {
        let (_, _, right, _) = spread(None, margin, (512, 1024));
        let wanted = 512.0 * (1.0 - margin);
        assert!((f64::from(right) - wanted).abs() < 7.0, "{margin}: {right}");
    }
}

#[test]
fn a_name_reads_on_any_ground() {
    let grounds: [(&str, RgbImage, f32); 8] = [
        ("white", ground(512, 512, [255; 3]), 2.5),
        ("light", ground(512, 512, [240, 230, 200]), 2.5),
        ("black", ground(512, 512, [0; 3]), 3.0),
        ("dark", ground(512, 512, [25, 20, 45]), 3.0),
        ("grey", ground(512, 512, [128; 3]), 1.8),
        ("red", ground(512, 512, [200, 30, 30]), 1.8),
        ("blue", ground(512, 512, [40, 60, 210]), 2.0),
        ("busy", checkered(512, 512), 2.5),
    ];
    for (name, before, least) in grounds {
        let faint = contrast_of_ink(&before, "TestArtist", 128);
        let solid = contrast_of_ink(&before, "TestArtist", 255);
        assert!(faint > least && solid > faint, "{name}: {faint} at opacity 128, {solid} at 255");
    }
}

#[test]
fn the_ink_is_the_one_with_the_higher_contrast() {
    for opacity in [64, 128, 255] {
        for colour in (0..=255).step_by(15).flat_map(|level| [[level; 3], [level, 40, 255 - level], [30, level, 90]]) {
            let before = ground(300, 300, colour);
            let after =
                signed(&before, "TestArtist", &Signature { size: Some(0.2), ..with(Position::Center, opacity) });
            // The pixel that changed most is solid ink.
            let far =
                |pixel: &&Rgb<u8>| pixel.0.iter().zip(colour).map(|(new, old)| new.abs_diff(old) as u32).sum::<u32>();
            let used = after.pixels().max_by_key(far).unwrap().0.map(f32::from);
            let (old, share) = (colour.map(f32::from), f32::from(opacity) / 255.0);
            let inked = |ink: [f32; 3]| std::array::from_fn(|c| old[c] + (ink[c] - old[c]) * share);
            let best = ratio(inked(rendering::LIGHT), old).max(ratio(inked(rendering::DARK), old));
            assert!(ratio(used, old) > 0.97 * best, "{colour:?} at {opacity}: {} of {best}", ratio(used, old));
        }
    }
}

#[test]
fn only_a_busy_ground_gets_a_halo() {
    let brighter = |before: &RgbImage| {
        let after = signed(before, "TestArtist", &with(Position::BottomRight, 128));
        before.pixels().zip(after.pixels()).filter(|(old, new)| (0..3).any(|c| new.0[c] > old.0[c])).count()
    };
    assert_eq!(brighter(&ground(512, 512, [200; 3])), 0, "dark ink on an even ground brightens nothing");
    let gradient = RgbImage::from_fn(512, 512, |x, _| Rgb([180 + (x / 16) as u8; 3]));
    assert_eq!(brighter(&gradient), 0, "a gentle gradient is even");
    assert!(brighter(&checkered(512, 512)) > 200);
}

#[test]
fn every_covered_script_is_drawn_whole() {
    let before = ground(512, 512, [240; 3]);
    for name in sheet::NAMES {
        let line = line(name);
        assert!(line.glyphs.iter().all(|glyph| glyph.glyph.0 != 0), "{name} has a box for a letter");
        let after = signed(&before, name, &Signature::default());
        let pixels = before.pixels().zip(after.pixels()).filter(|(old, new)| old != new).count();
        assert!(pixels > 150, "{name} left {pixels} pixels");
    }
}

fn line(text: &str) -> shaping::ShapedLine {
    let name = shaping::DrawableName::parse(text, fonts::bundled().unwrap()).unwrap();
    name.line(0..name.length(), false).unwrap()
}

#[test]
fn arabic_is_joined_and_runs_from_the_right() {
    let (word, letter) = (line("ببب"), line("ب"));
    assert!(word.width() < 3.0 * letter.width(), "letters stand apart");
    let mixed = line("بب Kim");
    let latin = mixed.glyphs.iter().filter(|glyph| glyph.face == 0 && glyph.x < 0.1).count();
    assert_eq!(latin, 1, "the Latin part of an Arabic line stands at its left");
}

#[test]
fn devanagari_forms_conjuncts_and_moves_vowel_signs() {
    // KA, VIRAMA and SSA form one conjunct, and the vowel sign I stands before its consonant.
    assert_eq!(line("क्ष").glyphs.len(), 1);
    let (alone, signed) = (line("क"), line("कि"));
    assert_eq!(signed.glyphs.len(), 2);
    assert_eq!(signed.glyphs[1].glyph, alone.glyphs[0].glyph, "the sign is not in front");
    // RA before a consonant becomes a hook above it.
    assert!(line("र्म").ascent >= line("म").ascent && line("र्म").width() < line("रम").width());
}

#[test]
fn opacity_nought_changes_nothing_and_more_changes_more() {
    let before = ground(512, 512, [250; 3]);
    assert_eq!(signed(&before, "TestArtist", &with(Position::BottomLeft, 0)), before);
    let sums = [1, 64, 128, 192, 255].map(|opacity| {
        let after = signed(&before, "TestArtist", &with(Position::BottomLeft, opacity));
        before.iter().zip(after.iter()).map(|(old, new)| u64::from(old.abs_diff(*new))).sum::<u64>()
    });
    assert!(sums.is_sorted() && sums[1] > 0 && sums[4] > 3 * sums[1], "{sums:?}");
}

#[test]
fn long_names_stay_within_the_margins() {
    let names = ["W".repeat(40), "Anna ".repeat(60), "金".repeat(300), "محمود ".repeat(80), "a\u{301}".repeat(10_000)];
    for (width, height) in [(512, 512), (512, 1024), (96, 96)] {
        let before = ground(width, height, [20; 3]);
        for name in &names {
            for position in Position::ALL {
                let after = signed(&before, name, &with(position, 255));
                let (left, top, right, bottom) = changed(&before, &after).unwrap();
                let inside = left > 0 && top > 0 && right < width - 1 && bottom < height - 1;
                assert!(inside && bottom - top < height / 3, "{width}x{height}: {left},{top} to {right},{bottom}");
                assert!(right - left > width / 2, "a long name uses the room it has");
            }
        }
    }
}

#[test]
fn a_name_shrinks_then_breaks_then_is_cut() {
    let lines = |name: &str| {
        let name = shaping::DrawableName::parse(name, fonts::bundled().unwrap()).unwrap();
        let text = placement::place(&name, (512, 512), &Signature::default()).unwrap();
        (text.lines.len(), text.size)
    };
    assert_eq!(lines("Ada Kowalska"), (1, 25.6));
    let (count, size) = lines("Wolfgang Amadeus Maria Theophilus von Mozart");
    assert!(count == 1 && (19.2..25.6).contains(&size), "{count} lines of {size}");
    assert_eq!(lines(&"Anna Bo ".repeat(8)), (2, 25.6));
    assert_eq!(lines(&"金".repeat(30)), (2, 25.6), "a name without spaces breaks anywhere");
    let (count, size) = lines(&"Anna Bo ".repeat(60));
    assert!(count == 2 && (size - 0.6 * 25.6).abs() < 0.01, "{count} lines of {size}");
}

#[test]
fn a_broken_name_keeps_its_words() {
    let name = shaping::DrawableName::parse("Maximiliana Wolkenstein", fonts::bundled().unwrap()).unwrap();
    let text = placement::place(&name, (160, 400), &Signature { size: Some(0.15), ..Signature::default() }).unwrap();
    let glyphs: Vec<usize> = text.lines.iter().map(|(line, _)| line.glyphs.len()).collect();
    assert_eq!(glyphs, [11, 11]);
    assert!(text.lines[1].1.1 > text.lines[0].1.1 + text.size, "the lines stand in each other");
}

#[test]
fn no_size_and_no_name_panics() {
    let names =
        ["A".to_string(), "x".repeat(10_000), "\u{202e}\u{200d}\u{300}".repeat(500), "Z\u{300}\u{301}".repeat(900)];
    for (width, height) in [(0, 0), (1, 1), (1, 900), (900, 1), (7, 13), (16, 16), (33, 20), (3000, 40)] {
        for name in &names {
            let mut picture = ground(width, height, [90; 3]);
            if sign(&mut picture, name, &Signature::default()).is_err() {
                assert_eq!(picture, ground(width, height, [90; 3]));
            }
        }
    }
    let small = sign(&mut ground(1, 1, [0; 3]), "A", &Signature::default());
    assert_eq!(small, Err(SignatureError::TooSmall { width: 1, height: 1 }));
}

#[test]
fn marks_that_pile_up_do_not_climb_the_picture() {
    let before = ground(512, 512, [255; 3]);
    let after = signed(&before, &format!("Z{}algo", "\u{30d}".repeat(900)), &with(Position::BottomRight, 255));
    assert!(changed(&before, &after).unwrap().1 > 512 * 9 / 10);
}

#[test]
fn what_cannot_be_drawn_is_left_out() {
    let before = ground(512, 512, [255; 3]);
    let plain = signed(&before, "Anna Bo", &Signature::default());
    for name in [
        "\u{7}An\u{0}na Bo",
        "Anna 🦀 Bo",
        "Anna ⭐❤\u{fe0f} Bo👩\u{200d}🎨",
        "Anna Bo 1\u{fe0f}\u{20e3} 🇵🇱",
        "  Anna\t\n Bo ",
        "Anna\u{200b} \u{202e}Bo",
        "Anna\u{2029}Bo",
    ] {
        assert!(signed(&before, name, &Signature::default()) == plain, "{name:?}");
    }
}

#[test]
fn a_name_with_nothing_to_draw_names_the_field() {
    let cases = [
        ("", SignatureError::Empty),
        (" \t\u{3000}\n", SignatureError::Empty),
        ("🦀🎨", SignatureError::NothingDrawable),
        ("\u{0}\u{1b}", SignatureError::NothingDrawable),
        ("\u{202e}", SignatureError::NothingDrawable),
        ("\u{200d}", SignatureError::NothingDrawable),
    ];
    for (name, expected) in cases {
        for opacity in [0, 128] {
            let mut picture = ground(512, 512, [255; 3]);
            let error = sign(&mut picture, name, &with(Position::BottomRight, opacity)).unwrap_err();
            assert_eq!(error, expected, "{name:?}");
            assert!(error.to_string().contains("`artist_name`"));
            assert_eq!(picture, ground(512, 512, [255; 3]));
        }
    }
}

#[test]
fn a_decomposed_name_is_drawn_as_the_composed_one() {
    for (decomposed, composed) in [
        ("\u{1100}\u{1175}\u{11b7}\u{1112}\u{1169}\u{11bc}\u{1103}\u{1169}", "김홍도"),
        ("\u{110b}\u{1175} Kim", "이 Kim"),
        ("e\u{301}a\u{30a} N\u{303}", "éå Ñ"),
        ("Nguye\u{302}\u{303}n Hu\u{31b}\u{301}", "Nguyễn Hứ"),
        ("\u{304b}\u{3099}\u{30cf}\u{309a}", "がパ"),
        ("\u{627}\u{653}\u{645}\u{646}\u{647}", "آمنه"),
    ] {
        let (one, other) = (line(decomposed), line(composed));
        assert_eq!(one.glyphs.len(), other.glyphs.len(), "{composed}");
        let before = ground(512, 512, [255; 3]);
        let options = Signature::default();
        assert!(signed(&before, decomposed, &options) == signed(&before, composed, &options), "{composed}");
    }
}

#[test]
fn a_letter_is_drawn_or_counted_as_left_out() {
    let faces = fonts::bundled().unwrap();
    // Chinese characters and Hangul by samples: there are tens of thousands.
    let sampled =
        |code: &u32| !matches!(code, 0x3400..=0x9fff | 0xac00..=0xd7a3 | 0x20000..) || code.is_multiple_of(101);
    let mut silent = Vec::new();
    for character in (0x21..0x30000).filter(sampled).filter_map(char::from_u32) {
        let joins = matches!(character, '\u{200c}' | '\u{200d}');
        let Ok(name) = shaping::DrawableName::parse(&character.to_string(), faces) else { continue };
        if !joins && name.dropped() == 0 && name.line(0..name.length(), false).is_err() {
            silent.push(format!("U+{:04X}", u32::from(character)));
        }
    }
    assert!(silent.is_empty(), "left out without a word: {silent:?}");
}

#[test]
fn signing_twice_gives_the_same_picture() {
    let before = checkered(768, 768);
    for name in ["TestArtist", "김홍도 Kim", "محمود"] {
        assert!(signed(&before, name, &Signature::default()) == signed(&before, name, &Signature::default()));
    }
}

#[test]
fn a_check_says_what_signing_says() {
    for (name, size) in [("Ada", (512, 512)), ("", (512, 512)), ("🦀", (512, 512)), ("Ada", (1, 1))] {
        let options = Signature::default();
        let signed = sign(&mut ground(size.0, size.1, [0; 3]), name, &options);
        assert_eq!(check(size, name, &options), signed, "{name:?}");
    }
}
