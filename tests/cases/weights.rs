//! `handler weights pull` and `verify` against a hub on loopback.

use crate::context::{PATIENCE, case, model};
use anyhow::Result;
use e2e::{
    hub::{Access, Behavior, COMMIT, Hub, REPO, SIGNATURE},
    paths::{RunDir, binary},
    process::{Spec, output},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

pub(crate) const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
pub(crate) const VAE: &str = "vae/diffusion_pytorch_model.safetensors";
pub(crate) const TOKEN: &str = "hub-token-of-this-run-only";

/// The files of the toy model, and other files that a real repository has.
pub(crate) fn files() -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(model().join(&folder))? {
            let entry = entry?;
            let path = folder.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else {
                files.insert(path.display().to_string(), fs::read(entry.path())?);
            }
        }
    }
    for name in ["README.md", "v1-5-pruned.ckpt", "unet/diffusion_pytorch_model.bin", "vae/model.pt"] {
        files.insert(name.to_string(), b"not to be fetched".to_vec());
    }
    Ok(files)
}

async fn weights(run: &RunDir, name: &str, args: &[&str], token: bool) -> Result<(bool, String)> {
    // An empty variable is no token.
    let token = if token { TOKEN } else { "" };
    let spec = Spec::new(name, binary("handler")?).args(["weights"]).args(args).env("HF_TOKEN", token);
    let (status, text) = output(run, spec, PATIENCE).await?;
    assert!(!text.contains("panicked") && !text.contains(TOKEN) && !text.contains(SIGNATURE), "{text}");
    Ok((status.success(), text))
}

pub(crate) async fn pull(run: &RunDir, name: &str, hub: &Hub, to: &Path, token: bool) -> Result<(bool, String)> {
    let (endpoint, to) = (hub.url(), to.display().to_string());
    let args = ["pull", "--repo", REPO, "--revision", "main", "--to", &to, "--endpoint", &endpoint];
    weights(run, name, &args, token).await
}

/// Pulls another repository or revision.
pub(crate) async fn pull_from(
    run: &RunDir,
    name: &str,
    hub: &Hub,
    (repo, revision): (&str, &str),
    to: &Path,
) -> Result<(bool, String)> {
    let (endpoint, to) = (hub.url(), to.display().to_string());
    let args = ["pull", "--repo", repo, "--revision", revision, "--to", &to, "--endpoint", &endpoint];
    weights(run, name, &args, false).await
}

/// Pulls another variant.
pub(crate) async fn pull_variant(
    run: &RunDir,
    name: &str,
    hub: &Hub,
    to: &Path,
    variant: &str,
) -> Result<(bool, String)> {
    let (endpoint, to) = (hub.url(), to.display().to_string());
    let args = ["pull", "--repo", REPO, "--variant", variant, "--to", &to, "--endpoint", &endpoint];
    weights(run, name, &args, false).await
}

pub(crate) async fn verify(run: &RunDir, name: &str, folder: &Path) -> Result<(bool, String)> {
    weights(run, name, &["verify", &folder.display().to_string()], false).await
}

#[test]
fn a_model_is_pulled_whole_without_pickles_and_verified() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let (hub, folder) = (Hub::start(files()?).await?, run.folder("pulled")?);
        hub.set_behavior(Behavior { access: Access::Private(TOKEN.into()), ..Behavior::default() });
        let (fine, text) = pull(run, "pull", &hub, &folder, true).await?;
        assert!(fine && text.contains(COMMIT), "{text}");
        let fetches = hub.fetches();
        for fetch in &fetches {
            assert!(
                fetch.path.ends_with(".safetensors")
                    || fetch.path.ends_with(".json")
                    || fetch.path.ends_with("merges.txt")
            );
            assert_eq!(fs::read(folder.join(&fetch.path))?, fs::read(model().join(&fetch.path))?, "{}", fetch.path);
            assert!(fetch.is_cdn != fetch.has_token, "the token goes to the hub and nowhere else: {fetch:?}");
        }
        assert!(fetches.iter().any(|fetch| fetch.is_cdn) && fetches.len() >= 11);
        let (fine, text) = verify(run, "verify", &folder).await?;
        assert!(fine, "{text}");
        // A second pull fetches nothing.
        assert!(pull(run, "pull-again", &hub, &folder, true).await?.0);
        assert_eq!(hub.fetches(), []);
        let out = run.folder("generate")?.join("pulled.png").display().to_string();
        let args = [
            "generate",
            "--model",
            &folder.display().to_string(),
            "--prompt",
            "red circle",
            "--steps",
            "1",
            "--out",
            &out,
        ];
        let (status, text) = output(run, Spec::new("pulled-generate", binary("handler")?).args(args), PATIENCE).await?;
        assert!(status.success(), "{text}");
        Ok(())
    });
}

#[test]
fn verify_names_what_differs_or_is_missing() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let (hub, folder) = (Hub::start(files()?).await?, run.folder("pulled-corrupted")?);
        assert!(pull(run, "pull-corrupted", &hub, &folder, false).await?.0);
        let mut corrupted = fs::read(folder.join(UNET))?;
        corrupted[1000] ^= 1;
        fs::write(folder.join(UNET), corrupted)?;
        fs::remove_file(folder.join("tokenizer/merges.txt"))?;
        hub.fetches();
        let (fine, text) = verify(run, "verify-corrupted", &folder).await?;
        assert!(!fine && text.contains(&format!("{UNET}: has SHA-256")), "{text}");
        assert!(text.contains("tokenizer/merges.txt: missing") && !text.contains(VAE), "{text}");
        // Only the differing files are fetched again.
        assert!(pull(run, "pull-repaired", &hub, &folder, false).await?.0);
        let again: BTreeSet<_> = hub.fetches().into_iter().map(|fetch| fetch.path).collect();
        assert_eq!(again, BTreeSet::from([UNET.to_string(), "tokenizer/merges.txt".into()]));
        assert!(verify(run, "verify-repaired", &folder).await?.0);
        let (fine, text) = verify(run, "verify-nothing", &run.folder("not-pulled")?).await?;
        assert!(!fine && text.contains("easel-weights.json"), "{text}");
        Ok(())
    });
}

#[test]
fn a_download_that_is_cut_goes_on_where_it_was() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let (hub, folder) = (Hub::start(files()?).await?, run.folder("pulled-cut")?);
        hub.set_behavior(Behavior { cuts: [(UNET.to_string(), 5000)].into(), ..Behavior::default() });
        let (fine, text) = pull(run, "pull-cut", &hub, &folder, false).await?;
        assert!(fine, "{text}");
        let ranges: Vec<_> =
            hub.fetches().into_iter().filter(|fetch| fetch.path == UNET).map(|fetch| fetch.range).collect();
        assert_eq!(ranges[ranges.len() - 2..], [None, Some("bytes=5000-".to_string())]);
        assert!(text.contains(&format!("{UNET}: the connection to ")) && text.contains("; again in 0.5 s"), "{text}");
        assert!(verify(run, "verify-cut", &folder).await?.0);
        Ok(())
    });
}

#[test]
fn a_content_without_the_listed_hash_is_refused_and_not_kept() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let hub = Hub::start(files()?).await?;
        for (name, corrupted) in [("large", VAE), ("small", "tokenizer/vocab.json")] {
            let folder = run.folder(&format!("pulled-wrong-{name}"))?;
            hub.set_behavior(Behavior { corrupted: vec![corrupted.into()], ..Behavior::default() });
            let (fine, text) = pull(run, &format!("pull-wrong-{name}"), &hub, &folder, false).await?;
            assert!(!fine && text.contains(corrupted) && text.contains("checksum"), "{text}");
            assert!(!folder.join(corrupted).exists() && !folder.join("easel-weights.json").exists());
        }
        Ok(())
    });
}

#[test]
fn names_outside_the_folder_are_refused() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let (hub, folder) = (Hub::start(files()?).await?, run.folder("pulled-refused")?);
        hub.set_behavior(Behavior { listed: vec!["../../outside.safetensors".into()], ..Behavior::default() });
        let (fine, text) = pull(run, "pull-outside", &hub, &folder, false).await?;
        assert!(!fine && text.contains("outside the repository"), "{text}");
        assert_eq!(hub.fetches(), []);
        Ok(())
    });
}
