//! A checkpoint, one file with a whole model: `--model FILE`, and `handler weights convert`.

use crate::context::{PATIENCE, case};
use anyhow::{Context, Result};
use e2e::{
    paths::{RunDir, binary},
    process::{Spec, output},
};
use std::{fs, path::Path};

async fn run(run: &RunDir, name: &str, program: &str, args: &[&str]) -> Result<(bool, String)> {
    let (status, text) = output(run, Spec::new(name, binary(program)?).args(args), PATIENCE).await?;
    assert!(!text.contains("panicked"), "{text}");
    Ok((status.success(), text))
}

#[test]
fn a_checkpoint_paints_what_the_folder_made_of_it_does() {
    case(|ctx| async move {
        let dir = &ctx.stack.run;
        let folder = dir.folder("checkpoint")?;
        let path = |name: &str| folder.join(name).display().to_string();
        let (model, file, converted) = (path("model"), path("narrow.safetensors"), path("converted"));
        let args = ["--size", "narrow", "--out", &model, "--checkpoint", &file];
        let (fine, text) = run(dir, "checkpoint-toy", "toy-model", &args).await?;
        assert!(fine, "{text}");

        let convert = ["weights", "convert", &file, &converted];
        let (fine, text) = run(dir, "checkpoint-convert", "handler", &convert).await?;
        assert!(fine && text.contains("unet/diffusion_pytorch_model.safetensors: "), "{text}");
        assert!(text.contains("not in the folder: a safety checker"), "{text}");
        let (fine, text) = run(dir, "checkpoint-convert-again", "handler", &convert).await?;
        assert!(!fine && text.contains(&converted) && text.contains("name a new folder"), "{text}");

        let mut pictures = Vec::new();
        for (name, model) in [("file", &file), ("folder", &converted)] {
            let out = path(&format!("{name}.png"));
            let args = ["generate", "--model", model, "--prompt", "red circle", "--steps", "1", "--out", &out];
            let (fine, text) = run(dir, &format!("checkpoint-{name}"), "handler", &args).await?;
            assert!(fine, "{text}");
            pictures.push(image::open(&out)?.to_rgb8());
        }
        assert!(pictures[0] == pictures[1], "file and folder paint different pictures");

        let lora = Path::new(&model).join("lora.safetensors").display().to_string();
        let inspect = ["lora", "inspect", &lora, "--model", &file];
        let (fine, text) = run(dir, "checkpoint-lora", "handler", &inspect).await?;
        assert!(fine && text.contains(&format!("yes, onto {file}")), "{text}");
        let out = path("none.png");
        let args = ["generate", "--model", &lora, "--prompt", "x", "--steps", "1", "--out", &out];
        let (fine, text) = run(dir, "checkpoint-no-model", "handler", &args).await?;
        assert!(!fine && text.contains("it is a LoRA") && text.contains("--lora"), "{text}");
        let (fine, text) = run(dir, "checkpoint-verify", "handler", &["weights", "verify", &file]).await?;
        assert!(!fine && text.contains("is a file: only a folder"), "{text}");
        assert!(!fs::exists(&out).context("out")?);
        Ok(())
    });
}
