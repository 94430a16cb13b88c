//! What a signature promises: where it stands, that it can be read, and which names it takes.

use super::*;
use image::Rgb;

fn ground(width: u32, height: u32, colour: [u8; 3]) -> RgbImage {
    RgbImage::from_pixel(width, height, Rgb(colour))
}

fn checkered(width: u32, height: u32) -> RgbImage {
    let colours = [[220, 60, 40], [250, 240, 200], [20, 40, 90]];
    RgbImage::from_fn(width, height, |x, y| Rgb(colours[((x / 9 + y / 9) % 3) as usize]))
}

fn with(position: Position, opacity: u8) -> Signature {
    Signature { position, opacity }
}

fn signed(before: &RgbImage, name: &str, options: &Signature) -> RgbImage {
    let mut after = before.clone();
    sign(&mut after, name, options).unwrap();
    assert_eq!(after.dimensions(), before.dimensions());
    after
}

/// Left, top, right, bottom of what differs.
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
    ink::contrast(mean(&ink), mean(&around))
}

#[test]
fn only_the_chosen_corner_changes() {
    for (width, height) in [(512, 512), (768, 768), (512, 1024)] {
        let before = checkered(width, height);
        for position in [Position::BottomRight, Position::BottomLeft] {
            let after = signed(&before, "TestArtist", &with(position, 128));
            let (left, top, right, bottom) = changed(&before, &after).unwrap();
            assert!(top > height * 9 / 10 && bottom < height - 4, "{width}x{height}: {top} to {bottom}");
            match position {
                Position::BottomRight => assert!(left > width / 2 && (width - 24..width - 8).contains(&right)),
                Position::BottomLeft => assert!(right < width / 2 && (8..24).contains(&left)),
            }
        }
    }
}

#[test]
fn a_name_reads_on_any_ground() {
    let grounds: [(&str, RgbImage, f32); 8] = [
        ("white", ground(512, 512, [255; 3]), 2.5),
        ("light", ground(512, 512, [240, 230, 200]), 2.5),
        ("black", ground(512, 512, [0; 3]), 3.0),
        ("dark", ground(512, 512, [25, 20, 45]), 3.0),
        ("grey", ground(512, 512, [128; 3]), 2.0),
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
fn every_covered_script_is_drawn_whole() {
    let names = [
        "Anna-Lena Müller",
        "Nguyễn Văn Ý",
        "Ирина Соколова",
        "Ελένη Παπαδοπούλου",
        "王羲之",
        "山田 太郎 さくら",
        "김홍도",
        "محمود درويش",
        "דוד כהן",
        "Նարեկ",
        "გიორგი",
        "ศิลปิน",
        "रवीन्द्र वर्मा",
        "தமிழ் செல்வி",
        "김 Kim مريم 42",
    ];
    let before = ground(512, 512, [240; 3]);
    for name in names {
        let line = layout::Name::read(name, faces::bundled().unwrap()).unwrap().line(None).unwrap();
        assert!(line.glyphs.iter().all(|placed| placed.glyph.0 != 0), "{name} has a box for a letter");
        let after = signed(&before, name, &Signature::default());
        let pixels = before.pixels().zip(after.pixels()).filter(|(old, new)| old != new).count();
        assert!(pixels > 150, "{name} left {pixels} pixels");
    }
}

#[test]
fn arabic_is_joined_and_runs_from_the_right() {
    let faces = faces::bundled().unwrap();
    let line = |text: &str| layout::Name::read(text, faces).unwrap().line(None).unwrap();
    let (word, letter) = (line("ببب"), line("ب"));
    assert!(word.width() < 3.0 * letter.width(), "letters stand apart");
    let mixed = line("بب Kim");
    let latin = mixed.glyphs.iter().filter(|placed| placed.face == 0 && placed.x < 0.1).count();
    assert_eq!(latin, 1, "the Latin part of an Arabic line stands at its left");
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
            for position in [Position::BottomRight, Position::BottomLeft] {
                let after = signed(&before, name, &with(position, 255));
                let (left, top, right, bottom) = changed(&before, &after).unwrap();
                let inside = left > 0 && right < width - 1 && bottom < height - 1 && top > height * 3 / 4;
                assert!(inside, "{width}x{height}: {left},{top} to {right},{bottom}");
                assert!(right - left > width / 2, "a long name uses the room it has");
            }
        }
    }
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
    for name in ["\u{7}An\u{0}na Bo", "Anna 🦀 Bo", "  Anna\t\n Bo ", "Anna\u{200b} \u{202e}Bo", "Anna\u{2029}Bo"] {
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
fn signing_twice_gives_the_same_picture() {
    let before = checkered(768, 768);
    for name in ["TestArtist", "김홍도 Kim", "محمود"] {
        assert!(signed(&before, name, &Signature::default()) == signed(&before, name, &Signature::default()));
    }
}

#[test]
fn options_read_from_a_task() {
    let cases = [
        ("{}", Some(with(Position::BottomRight, 128))),
        (r#"{"position":"bottom-left"}"#, Some(with(Position::BottomLeft, 128))),
        (r#"{"position":"bottom-right","opacity":0,"new":1}"#, Some(with(Position::BottomRight, 0))),
        (r#"{"opacity":256}"#, None),
        (r#"{"opacity":-1}"#, None),
        (r#"{"position":"top"}"#, None),
    ];
    for (json, expected) in cases {
        assert_eq!(serde_json::from_str::<Signature>(json).ok(), expected, "{json}");
    }
}
