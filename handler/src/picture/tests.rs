//! Which metadata files hold and do not hold, and that the pixels stay the same.

use super::{
    metadata::{XMP_SEGMENT, exif_block, xmp_packet},
    *,
};
use crate::{picture::options::PictureConfig, task::Format};
use diffusion::{
    lora::{AppliedLora, Lora},
    noise,
    pipeline::Request,
    prompt,
    prompt::inversion::{AppliedInversion, TextualInversion},
    schedulers,
};
use image::{Rgb, RgbImage};
use std::sync::Arc;

pub(super) fn request() -> Request {
    Request {
        prompt: "a \"secret\" <lake> & more".into(),
        negative_prompt: String::new(),
        prompt_weighting: prompt::Weighting::None,
        long_prompt: false,
        clip_skip: 0,
        width: 512,
        height: 512,
        seed: 7,
        steps: 20,
        guidance_scale: 7.5,
        scheduler: schedulers::Kind::Euler,
        karras_sigmas: None,
        noise_source: noise::Source::Cuda,
        start: None,
    }
}

fn holds(file: &[u8], text: &str) -> bool {
    file.windows(text.len()).any(|window| window == text.as_bytes())
}

/// A file of each format with provenance, and the same file without.
fn files(change: impl Fn(&mut Provenance)) -> Vec<(Format, Vec<u8>, Vec<u8>)> {
    let picture = RgbImage::from_fn(33, 20, |x, y| Rgb([x as u8 * 7, y as u8 * 12, 90]));
    let (origin, request) = (PictureOrigin { generation_id: Some(500), created_at: None, seed: -1 }, request());
    let model = ModelName { name: "sd15".into(), revision: Some("451f4fe1".into()) };
    let mut provenance = Provenance {
        origin: &origin,
        artist: Some("Ada\u{0} Ł <&>"),
        model: &model,
        loras: &[],
        inversions: &[],
        request: &request,
        image: (2, 3),
        checked: None,
        prompts: false,
    };
    change(&mut provenance);
    let write = |format| {
        let plain = encode(&picture, format, &PictureConfig::default()).unwrap();
        (format, embed(plain.clone(), format, &provenance).unwrap(), plain)
    };
    Format::ALL.iter().copied().map(write).collect()
}

#[test]
fn the_pixels_are_those_of_the_file_without() {
    for (format, file, plain) in files(|_| ()) {
        let pixels = |file: &[u8]| image::load_from_memory(file).unwrap().to_rgb8();
        assert!(pixels(&file) == pixels(&plain), "{format}");
        assert!(file.len() > plain.len() + 1000, "{format}");
    }
}

#[test]
fn the_facts_are_in_every_format() {
    for (format, file, _) in files(|_| ()) {
        for text in [
            "<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia<",
            "<easel:GenerationId>500<",
            "<easel:Seed>-1<",
            "<easel:Scheduler>euler<",
            "<easel:Image>2 of 3<",
            "<Iptc4xmpExt:AISystemVersionUsed>451f4fe1<",
            "<rdf:li>Ada Ł &lt;&amp;&gt;</rdf:li>",
            "Task: 500, Model: sd15, Model revision: 451f4fe1, Seed: -1, Steps: 20, CFG scale: 7.5, Sampler: euler",
        ] {
            assert!(holds(&file, text), "{format} lacks {text}");
        }
        assert!(!holds(&file, "CreateDate") && !holds(&file, "Loras"), "{format}");
    }
}

#[test]
fn a_checked_picture_says_so() {
    use crate::task::{Checked, SafetyMode};
    for checked in [None, Some(false), Some(true)] {
        let checked = checked.map(|nsfw| Checked { mode: SafetyMode::Black, nsfw });
        for (format, file, _) in files(|provenance| provenance.checked = checked) {
            assert_eq!(holds(&file, "<easel:Safety>black<"), checked.is_some(), "{format}");
            for nsfw in [false, true] {
                let said = checked.is_some_and(|checked| checked.nsfw == nsfw);
                assert_eq!(holds(&file, &format!("<easel:NsfwContentDetected>{nsfw}<")), said, "{format}");
                assert_eq!(holds(&file, &format!("Safety: black, NSFW: {nsfw}, Version")), said, "{format}");
            }
        }
    }
}

#[test]
fn each_lora_is_named_by_the_digest_of_its_file() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/model/styles/halftone.safetensors");
    let lora = Arc::new(Lora::read(path.as_ref()).unwrap());
    let in_memory = Lora::from_bytes(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!((lora.sha256().len(), lora.sha256()), (64, in_memory.sha256()));
    let expected = format!(
        "<easel:Sha256>{}</easel:Sha256><easel:Scale>-0.5</easel:Scale><easel:Weights>unet: 0.5<",
        lora.sha256()
    );
    let weights = crate::task::block_weights(r#"{"unet": 0.5}"#).unwrap();
    let weighted = format!("Lora weights: \"{}: unet: 0.5\"", lora.sha256());
    let applied = [AppliedLora { lora, scale: -0.5, weights }];
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens/inversions/learned_embeds.safetensors");
    let inversion = Arc::new(TextualInversion::read(path.as_ref()).unwrap());
    let inversions = [AppliedInversion { inversion, token: Some("a secret word".into()) }];
    let request = request();
    let (origin, model) = (PictureOrigin::default(), ModelName { name: "sd15".into(), revision: None });
    let provenance = Provenance {
        origin: &origin,
        artist: None,
        model: &model,
        loras: &applied,
        inversions: &inversions,
        request: &request,
        image: (1, 1),
        checked: None,
        prompts: false,
    };
    let packet = xmp_packet(&provenance);
    assert!(packet.contains(&expected));
    let hash = inversions[0].inversion.sha256();
    assert!(
        packet.contains(&format!("<easel:Sha256>{hash}</easel:Sha256></rdf:li></rdf:Seq></easel:TextualInversions>")),
        "{packet}"
    );
    let exif = exif_block(&provenance, Format::Jpeg).unwrap();
    assert!(holds(&exif, &weighted));
    assert!(holds(&exif, &format!("TI hashes: \"{hash}\"")) && !holds(&exif, "a secret word"));
}

#[test]
fn prompts_are_written_only_if_wanted() {
    for wanted in [false, true] {
        for (format, file, _) in files(|provenance| provenance.prompts = wanted) {
            assert_eq!(holds(&file, "secret"), wanted, "{format}");
            let expected = "<Iptc4xmpExt:AIPromptInformation>a &quot;secret&quot; &lt;lake&gt; &amp; more<";
            assert_eq!(holds(&file, expected), wanted, "{format}");
        }
    }
}

#[test]
fn how_far_a_picture_is_from_the_one_it_began_from_is_written_and_nothing_else_of_that() {
    for (_, file, _) in files(|_| {}) {
        assert!(!holds(&file, "Denoising"));
    }
    let picture = Arc::new(RgbImage::from_pixel(3, 2, Rgb([1, 2, 3])));
    let start = Some(diffusion::pipeline::StartImage { picture, strength: 0.75 });
    let request: &'static Request = Box::leak(Box::new(Request { start, ..request() }));
    for (format, file, _) in files(|provenance| provenance.request = request) {
        assert!(holds(&file, "Denoising strength: 0.75"), "{format}");
        assert!(holds(&file, "<easel:DenoisingStrength>0.75"), "{format}");
    }
}

#[test]
fn the_longest_prompts_fit_a_jpeg() {
    let long = Request { prompt: "\"".repeat(10_000), negative_prompt: "🦀".repeat(10_000), ..request() };
    let (origin, model) = (PictureOrigin::default(), ModelName { name: "sd15".into(), revision: None });
    let loras = [];
    let provenance = Provenance {
        origin: &origin,
        artist: Some(&"&".repeat(200)),
        model: &model,
        loras: &loras,
        inversions: &[],
        request: &long,
        image: (1, 1),
        checked: None,
        prompts: true,
    };
    assert!(xmp_packet(&provenance).len() + XMP_SEGMENT.len() < 65_533);
    assert!(exif_block(&provenance, Format::Jpeg).unwrap().len() + 6 < 65_533);
}
