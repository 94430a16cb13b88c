//! `handler generate`: a picture from the shell.

use crate::context::{PATIENCE, case, lora_file, model};
use anyhow::Result;
use e2e::{
    paths::{RunDir, binary, repo},
    process::{Spec, output},
};
use image::{GenericImageView, ImageFormat};
use std::{fs, path::Path};

async fn generate(run: &RunDir, name: &str, out: &Path, more: &[&str]) -> Result<(bool, String)> {
    let (model, out) = (model().display().to_string(), out.display().to_string());
    let given = ["generate", "--model", &model, "--prompt", "red circle", "--steps", "2", "--out", &out];
    let spec = Spec::new(name, binary("handler")?).args(given.iter().chain(more));
    let (status, text) = output(run, spec, PATIENCE).await?;
    Ok((status.success(), text))
}

#[test]
fn the_same_command_writes_the_same_bytes() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let folder = run.folder("generate")?;
        let lora = format!("{}=0.5", lora_file().display());
        let mut files = Vec::new();
        for (name, seed) in [("one", "7"), ("two", "7"), ("three", "8")] {
            let out = folder.join(format!("{name}.jpg"));
            let more = ["--seed", seed, "--signature", "Ada Kowalska", "--lora", &lora];
            let (fine, text) = generate(run, &format!("generate-{name}"), &out, &more).await?;
            assert!(fine, "{text}");
            files.push(fs::read(out)?);
        }
        assert_eq!(image::guess_format(&files[0])?, ImageFormat::Jpeg);
        assert_eq!(image::load_from_memory(&files[0])?.dimensions(), (512, 512));
        assert!(files[0] == files[1], "the same seed gave two pictures");
        assert!(files[0] != files[2], "two seeds gave the same picture");
        Ok(())
    });
}

#[test]
fn a_png_of_another_shape_by_the_other_scheduler() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let out = run.folder("generate")?.join("tall.png");
        let (fine, text) =
            generate(run, "generate-tall", &out, &["--aspect-ratio", "1:2", "--scheduler", "euler"]).await?;
        assert!(fine, "{text}");
        let file = fs::read(out)?;
        assert_eq!(image::guess_format(&file)?, ImageFormat::Png);
        assert_eq!(image::load_from_memory(&file)?.dimensions(), (512, 1024));
        let out = run.folder("generate")?.join("odd.png");
        let (fine, text) = generate(run, "generate-odd", &out, &["--width", "280", "--height", "296"]).await?;
        assert!(fine, "{text}");
        assert_eq!(image::open(&out)?.dimensions(), (280, 296));
        let (fine, text) = generate(run, "generate-half", &out, &["--width", "280"]).await?;
        assert!(!fine && text.contains("--height"), "{text}");
        Ok(())
    });
}

#[test]
fn narrower_vectors_paint_the_same_picture() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let folder = run.folder("generate")?;
        let mut pictures = Vec::new();
        for vectors in ["auto", "avx512", "avx2"] {
            let out = folder.join(format!("{vectors}.png"));
            let more = ["--seed", "7", "--cpu-vectors", vectors];
            let (fine, text) = generate(run, &format!("generate-{vectors}"), &out, &more).await?;
            assert!(fine, "{text}");
            pictures.push(image::open(out)?.to_rgb8().into_raw());
        }
        for picture in &pictures[1..] {
            // Sums in another order, rounded to levels.
            assert!(apart(&pictures[0], picture) <= 1, "{} levels apart", apart(&pictures[0], picture));
        }
        Ok(())
    });
}

/// The most levels between two pictures.
fn apart(one: &[u8], other: &[u8]) -> u8 {
    one.iter().zip(other).map(|(a, b)| a.abs_diff(*b)).max().unwrap_or(u8::MAX)
}

#[test]
fn a_cpu_paints_in_bf16_or_says_what_it_lacks() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let folder = run.folder("generate")?;
        let has = fs::read_to_string("/proc/cpuinfo")?.split_whitespace().any(|flag| flag == "avx512_bf16");
        let mut pictures = Vec::new();
        for (name, more, said) in [
            ("f32", vec!["--dtype", "f32"], None),
            ("bf16", vec!["--dtype", "bf16"], (!has).then_some("AVX512-BF16")),
            ("bf16-vectors", vec!["--dtype", "bf16", "--cpu-vectors", "avx512"], (!has).then_some("AVX512-BF16")),
            (
                "bf16-narrow",
                vec!["--dtype", "bf16", "--cpu-vectors", "avx2"],
                Some("--cpu-vectors (EASEL_CPU_VECTORS) is avx2"),
            ),
            ("f16", vec!["--dtype", "f16"], Some("which only a GPU computes in")),
        ] {
            let out = folder.join(format!("dtype-{name}.png"));
            let given = [&["--device", "cpu", "--seed", "7"][..], &more].concat();
            let (fine, text) = generate(run, &format!("generate-{name}"), &out, &given).await?;
            match said {
                Some(said) => {
                    let named = text.contains("--dtype (EASEL_DTYPE)") && text.contains(said);
                    assert!(!fine && named && !out.exists(), "{name}: {text}");
                }
                None => {
                    assert!(fine, "{name}: {text}");
                    pictures.push(image::open(out)?.to_rgb8().into_raw());
                }
            }
        }
        for picture in &pictures[1..] {
            let apart = apart(&pictures[0], picture);
            assert!(apart > 0, "f32 and bf16 gave the same picture");
            let squares = pictures[0].iter().zip(picture).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2)).sum::<f64>();
            let error = squares / picture.len() as f64;
            println!("bf16: {apart} levels apart at most, {:.1} dB", 10.0 * (255.0f64.powi(2) / error).log10());
            assert!(error < 255.0f64.powi(2) / 1e3, "less than 30 dB");
        }
        assert_eq!(pictures.len(), if has { 3 } else { 1 });
        Ok(())
    });
}

#[test]
fn a_long_prompt_is_read_to_its_end_and_layers_are_skipped_if_that_is_asked_for() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let folder = run.folder("generate")?;
        // Of the last prompt that is given, only the end is new.
        let long = ["red circle", &", on".repeat(40), ", blue background"].concat();
        let mut pictures = Vec::new();
        for (name, more) in [
            ("cut", vec!["--prompt", long.as_str()]),
            ("long", vec!["--prompt", long.as_str(), "--long-prompt"]),
            ("short", vec![]),
            ("short-long", vec!["--long-prompt"]),
            ("skip", vec!["--clip-skip", "1"]),
        ] {
            let out = folder.join(format!("prompt-{name}.png"));
            let spec = ["generate", "--model"].map(String::from).into_iter();
            let mut given: Vec<String> = spec.chain([model().display().to_string()]).collect();
            if !more.contains(&"--prompt") {
                given.extend(["--prompt".into(), "red circle".into()]);
            }
            given.extend(more.iter().map(|text| text.to_string()));
            given.extend(["--steps".into(), "2".into(), "--out".into(), out.display().to_string()]);
            let spec = Spec::new(&format!("generate-prompt-{name}"), binary("handler")?).args(&given);
            let (status, text) = output(run, spec, PATIENCE).await?;
            assert!(status.success(), "{name}: {text}");
            pictures.push(image::open(out)?.to_rgb8().into_raw());
        }
        assert!(pictures[0] != pictures[1], "the end of a long prompt changes nothing");
        assert!(pictures[2] == pictures[3], "a short prompt is another one with --long-prompt");
        assert!(pictures[2] != pictures[4], "a skipped layer changes nothing");
        Ok(())
    });
}

#[test]
fn several_pictures_of_one_seed_are_several_files() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let folder = run.folder("generate")?;
        let more = ["--num-images", "2", "--scheduler", "euler_ancestral", "--noise-source", "cpu"];
        let (fine, text) = generate(run, "generate-two", &folder.join("pair.jpg"), &more).await?;
        assert!(fine, "{text}");
        let files = ["pair.jpg", "pair-2.jpg"].map(|name| fs::read(folder.join(name)));
        let [one, two] = files;
        assert!(one? != two?, "two pictures of one seed are the same");
        Ok(())
    });
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_written() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let folder = run.folder("generate")?;
        let no_lora = folder.join("none.safetensors").display().to_string();
        let endless = "blue ".repeat(700);
        let wide = repo().join("tests/goldens/inversions/sd2.safetensors").display().to_string();
        for (name, out, more, said) in [
            ("no-karras", "c.jpg", vec!["--scheduler", "ddim", "--karras-sigmas"], "`karras_sigmas` is true"),
            (
                "no-weight",
                "d.jpg",
                vec!["--prompt-weighting", "a1111", "--negative-prompt", "(a:1.2.3)"],
                "`negative_prompt`",
            ),
            ("skips-all", "g.jpg", vec!["--clip-skip", "2"], "`clip_skip` is 2, the text encoder has 2 layers"),
            ("skips-more", "h.jpg", vec!["--clip-skip", "12"], "--clip-skip"),
            (
                "too-long",
                "i.jpg",
                vec!["--long-prompt", "--negative-prompt", endless.as_str()],
                "`negative_prompt` is a text of",
            ),
            ("no-lora", "a.jpg", vec!["--lora", no_lora.as_str()], "none.safetensors"),
            ("no-inversion", "e.jpg", vec!["--textual-inversion", no_lora.as_str()], "none.safetensors"),
            ("wide-inversion", "f.jpg", vec!["--textual-inversion", wide.as_str()], "made for Stable Diffusion 2"),
            ("no-format", "a.gif", vec![], ".gif"),
            ("no-steps", "b.jpg", vec!["--steps", "0"], "--steps"),
        ] {
            let out = folder.join(out);
            let (fine, text) = generate(run, &format!("generate-{name}"), &out, &more).await?;
            assert!(!fine && text.contains(said), "{name}: {text}");
            assert!(!text.contains("panicked"), "{text}");
            assert!(!out.exists(), "{name} wrote a picture");
        }
        Ok(())
    });
}
