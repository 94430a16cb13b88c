//! Sizes of Stable Diffusion 1.5 in f16, as a GPU has them.

use super::*;

/// The UNet's arrays: the widest has 59 MB.
pub(in crate::pipeline) fn sd15() -> Needs {
    let spans = (0..195).map(|page| (page, page)).chain([(100, 107), (120, 127)]);
    Needs {
        page: 8 * MIB,
        text: 30,
        ahead: 12,
        unet: 195,
        vae: 12,
        checker: 0,
        spans: spans.collect(),
        fixed: 200 * MIB,
        step: 112 * MIB,
        whole: 340 * MIB,
        bands: Some(200 * MIB),
    }
}

/// What a fit takes in each phase, summed up anew.
fn phases(needs: &Needs, fit: &Fit) -> [usize; 3] {
    let [text, ahead, vae] = fit.kept;
    let kept = [(text, needs.text), (ahead, needs.ahead), (vae, needs.vae)];
    let stays: usize = kept.iter().filter(|(kept, _)| *kept).map(|(_, pages)| pages).sum();
    let unet = needs.unet - fit.streamed;
    let comes =
        |parts: &[(bool, usize)]| parts.iter().filter(|(kept, _)| !kept).map(|(_, pages)| *pages).max().unwrap_or(0);
    let decode = if fit.in_bands { needs.bands.unwrap() } else { needs.whole };
    [
        (unet - fit.lent, comes(&kept[..2]), needs.step),
        (unet, 0, needs.step),
        (unet - fit.lent, comes(&kept[2..]), decode),
    ]
    .map(|(unet, comes, scratch)| needs.fixed + (stays + unet + comes + fit.places) * needs.page + scratch)
}

#[test]
fn the_fastest_way_that_fits_is_taken() {
    use Offload::*;
    let needs = sd15();
    // Free MiB, and what is chosen, with the most of the UNet that may be streamed in each step, in MiB.
    let cases = [
        (8000, Never, 0),
        (2600, Never, 0),
        (2400, Model, 0),
        (2300, Model, 0),
        (1900, Model, 0),
        (1880, Model, 0),
        (1860, Sequential, 250),
        (1500, Sequential, 620),
        (1000, Sequential, 1120),
        (700, Sequential, 1420),
    ];
    for (free, way, most) in cases {
        let fit = Fit::choose(&needs, free * MIB, Auto).unwrap_or_else(|error| panic!("{free}: {error}"));
        assert_eq!(fit.offload(), way, "{free} MiB: {fit:?}");
        assert!(fit.streamed * 8 <= most, "{free} MiB: {fit:?}");
        assert_eq!(fit.needed, phases(&needs, &fit).into_iter().max().unwrap(), "{free} MiB: {fit:?}");
        assert!(fit.needed <= free * MIB, "{free} MiB: {fit:?}");
        println!("{free}: {way:?} {fit:?}");
    }
}

#[test]
fn more_memory_is_never_slower() {
    let needs = sd15();
    let mut before = (true, usize::MAX);
    for free in (500..2600).step_by(10) {
        let Some(fit) = needs.best(free * MIB, Streams::May) else {
            assert_eq!(before.1, usize::MAX, "{free} MiB are not enough, but less was");
            continue;
        };
        let (_, cost) = needs.with(free * MIB, Streams::May, fit.kept, fit.in_bands).unwrap();
        // A window whose turns are whole may cost some pages more. In bands only where nothing else fits.
        assert!(before.0 || !fit.in_bands, "{free} MiB: {fit:?}");
        assert!(
            before.0 != fit.in_bands || cost <= before.1.saturating_add(before.1 / 20),
            "{free} MiB: {cost} after {before:?}, {fit:?}"
        );
        before = (fit.in_bands, cost);
        let stays = fit.stays(&needs);
        let count = |which| stays.iter().filter(|stay| **stay == which).count();
        assert_eq!((count(Stay::Streamed), count(Stay::Lent)), (fit.streamed, fit.lent));
        for &(first, last) in &needs.spans {
            let streamed = stays[first..=last].iter().filter(|stay| **stay == Stay::Streamed).count();
            assert!(streamed == 0 || streamed < fit.places, "{free} MiB: pages {first} to {last} in {}", fit.places);
        }
    }
}

#[test]
fn what_is_asked_for_takes_the_least_memory_of_its_kind() {
    use Offload::*;
    let needs = sd15();
    for (way, most) in [(Never, 2532), (Model, 1880), (Sequential, 740)] {
        let fit = Fit::choose(&needs, 64 << 30, way).unwrap();
        assert_eq!(fit.offload(), way);
        assert!(fit.needed <= most * MIB, "{way:?}: {} MiB, {fit:?}", fit.needed / MIB);
        let least = [needs.least_never(), needs.least_model(), needs.least_sequential()];
        let least = least[[Never, Model, Sequential].iter().position(|each| *each == way).unwrap()];
        assert!(Fit::choose(&needs, least, way).is_ok(), "{way:?} in its own least");
        // A window with fewer streamed pages may be a little smaller.
        let less = if way == Sequential { least - 24 * MIB } else { least - 1 };
        assert!(Fit::choose(&needs, less, way).is_err(), "{way:?} in less");
    }
}

#[test]
fn what_does_not_fit_says_what_would() {
    let needs = sd15();
    let text = |free: usize, way| Fit::choose(&needs, free * MIB, way).unwrap_err().to_string();
    assert_eq!(
        text(1950, Offload::Never),
        "--offload never needs 2392 MiB of the GPU's memory, and 1950 MiB are free: --offload model (EASEL_OFFLOAD) needs 1872 MiB and fits"
    );
    let small = text(1000, Offload::Model);
    assert!(small.contains("--offload sequential (EASEL_OFFLOAD) needs") && small.contains("and fits"), "{small}");
    let none = text(300, Offload::Auto);
    assert!(none.starts_with("even --offload sequential needs"), "{none}");
    assert!(none.contains("300 MiB are free") && none.contains("a larger one"), "{none}");
}

#[test]
fn small_networks_stream_through_a_small_window() {
    let needs = Needs {
        page: 2 * MIB,
        text: 4,
        ahead: 1,
        unet: 8,
        vae: 4,
        spans: (0..7).map(|page| (page, page + 1)).collect(),
        ..sd15()
    };
    let fit = Fit::choose(&needs, 64 << 30, Offload::Sequential).unwrap();
    assert!(fit.streamed > 0 && fit.places >= 2 && fit.places < needs.unet, "{fit:?}");
}

/// The checker of SD 1.5 in f16 has 580 MiB.
#[test]
fn the_safety_checker_is_the_first_to_leave() {
    let needs = Needs { checker: 74, ..sd15() };
    let cases = [
        (8000, Offload::Never, CheckerPlace::Stays),
        (3200, Offload::Never, CheckerPlace::Stays),
        // Beside all networks there is no room for it: a part of the UNet leaves for each look.
        (2800, Offload::Model, CheckerPlace::Comes),
        (1900, Offload::Model, CheckerPlace::Comes),
        (1200, Offload::Sequential, CheckerPlace::Comes),
        (700, Offload::Sequential, CheckerPlace::Cpu),
    ];
    for (free, way, checker) in cases {
        let fit = Fit::choose(&needs, free * MIB, Offload::Auto).unwrap_or_else(|error| panic!("{free}: {error}"));
        assert_eq!((fit.offload(), fit.checker), (way, checker), "{free} MiB: {fit:?}");
        assert!(fit.needed <= free * MIB, "{free} MiB: {fit:?}");
        let looking = needs.fixed + needs.step + (needs.checker + fit.places) * needs.page;
        let kept = [needs.text, needs.ahead, needs.vae].into_iter().zip(fit.kept);
        let kept: usize = kept.map(|(pages, stays)| if stays { pages } else { 0 }).sum();
        let looking = looking + (kept + needs.unet - fit.streamed - fit.lent) * needs.page;
        assert!(checker == CheckerPlace::Cpu || looking <= free * MIB, "{free} MiB: {looking}");
    }
    // What does not fit without it does not fit with it, either, and is told in the same figures.
    let error = |needs: &Needs| Fit::choose(needs, 300 * MIB, Offload::Auto).unwrap_err();
    assert_eq!(error(&needs), error(&sd15()));
}
