//! The gallery on disk: pictures and records of tasks, which stay after a restart. What a picture's file says is read by exiftool and
//! by the tests' own reader of Content Credentials, which share no code with its writer.

use super::record::Record;
use crate::{
    paths::{RunDir, repo, tool},
    process::{Spec, output},
};
use anyhow::{Context, Result, ensure};
use handler::task::Format;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The year in which the certificate of a gallery expires.
#[cfg(feature = "credentials")]
const YEAR: i32 = 2100;
/// The folder of sketches.
const SKETCHES: &str = "sketches";
/// Hexadecimal digits of a sketch's name.
const SKETCH_ID: usize = 32;
const LIMIT: Duration = Duration::from_secs(60);
/// Groups of exiftool that do not come from the file's content.
const OUTSIDE: [&str; 3] = ["System", "ExifTool", "SourceFile"];
/// The reader's messages for a file without a credential.
const NONE: [&str; 3] = ["0 boxes in APP11 segments", "0 caBX chunks", "0 C2PA chunks"];

static READS: AtomicU64 = AtomicU64::new(0);

/// The folder.
#[derive(Debug, Clone)]
pub struct Gallery(PathBuf);

/// The signer of a gallery's credentials.
#[derive(Debug, Clone)]
pub struct Signer {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The certificate of its authority.
    pub authority: PathBuf,
}

impl Gallery {
    /// Opens a gallery; creates the folder if needed.
    ///
    /// # Errors
    /// The disk.
    pub fn open(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        Ok(Self(folder.to_path_buf()))
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// All records. A file that cannot be read is skipped.
    ///
    /// # Errors
    /// The disk.
    pub fn records(&self) -> Result<Vec<Record>> {
        let mut records = vec![];
        for entry in fs::read_dir(&self.0).with_context(|| self.0.display().to_string())? {
            let path = entry?.path();
            if path.extension().is_some_and(|ending| ending == "json") {
                records.extend(fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok()));
            }
        }
        Ok(records)
    }

    /// Writes a record.
    ///
    /// # Errors
    /// The disk.
    pub fn keep(&self, record: &Record) -> Result<()> {
        self.write(&format!("gen_{}.json", record.id), serde_json::to_string_pretty(record)?.as_bytes())
    }

    /// Writes a picture under the last part of its URL; gives that name.
    ///
    /// # Errors
    /// The disk, or a URL that is not of a picture of the function.
    pub fn keep_picture(&self, url: &str, content: &[u8]) -> Result<String> {
        let name = url.rsplit('/').next().filter(|name| is_picture(name)).context("no picture's address")?;
        self.write(name, content)?;
        Ok(name.to_string())
    }

    /// The path of a picture, if the name is one of a picture.
    pub fn picture(&self, name: &str) -> Option<PathBuf> {
        Some(self.0.join(name)).filter(|path| is_picture(name) && path.is_file())
    }

    /// Writes a sketch under a name that its content has alone; gives that name.
    ///
    /// # Errors
    /// The disk.
    pub fn keep_sketch(&self, content: &[u8], format: Format) -> Result<String> {
        let sum = hex::encode(&Sha256::digest(content)[..SKETCH_ID / 2]);
        let name = format!("{sum}.{}", format.extension());
        fs::create_dir_all(self.0.join(SKETCHES)).with_context(|| SKETCHES.to_string())?;
        self.write(&format!("{SKETCHES}/{name}"), content)?;
        Ok(name)
    }

    /// The path of a sketch, if the name is one of a sketch.
    pub fn sketch(&self, name: &str) -> Option<PathBuf> {
        Some(self.0.join(SKETCHES).join(name)).filter(|path| is_sketch(name) && path.is_file())
    }

    /// The signer: the same after a restart, so that old pictures can still be verified.
    ///
    /// # Errors
    /// The disk, or no key can be made.
    pub fn signer(&self) -> Result<Signer> {
        let folder = self.0.join("authority");
        let file = |name: &str| folder.join(name);
        let signer = Signer { certificate: file("signer.pem"), key: file("signer.key"), authority: file("ca.pem") };
        if !(signer.certificate.is_file() && signer.key.is_file() && signer.authority.is_file()) {
            fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
            new_signer(&folder)?;
        }
        Ok(signer)
    }

    /// Writes a file atomically.
    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let (path, partial) = (self.0.join(name), self.0.join(format!("{name}.partial")));
        fs::write(&partial, content).with_context(|| partial.display().to_string())?;
        fs::rename(&partial, &path).with_context(|| path.display().to_string())
    }
}

#[cfg(feature = "credentials")]
fn new_signer(folder: &Path) -> Result<()> {
    crate::tls::Authority::new(folder)?.sign_for_pictures("signer", YEAR).map(drop)
}

#[cfg(not(feature = "credentials"))]
fn new_signer(_: &Path) -> Result<()> {
    anyhow::bail!("this build signs nothing: it lacks the feature credentials")
}

/// Whether it is a name that a sketch was given.
fn is_sketch(name: &str) -> bool {
    let hex = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
    name.split_once('.').is_some_and(|(id, ending)| {
        id.len() == SKETCH_ID && id.bytes().all(hex) && Format::ALL.iter().any(|format| format.extension() == ending)
    })
}

/// Whether it is a picture name of the function: `gen_`, digits and `_`, and the extension of a format.
fn is_picture(name: &str) -> bool {
    let parts = name.strip_prefix("gen_").and_then(|rest| rest.split_once('.'));
    parts.is_some_and(|(number, ending)| {
        !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_')
            && Format::ALL.iter().any(|format| format.extension() == ending)
    })
}

/// Metadata and credential of a picture.
///
/// # Errors
/// There is no such picture, or a reader does not run.
pub async fn read_picture(run: &RunDir, gallery: &Gallery, picture: &str) -> Result<Value> {
    let path = gallery.picture(picture).context("no such picture")?;
    let authority = gallery.signer()?.authority;
    let (metadata, credential) = tokio::try_join!(metadata(run, &path), credential(run, &path, &authority))?;
    Ok(json!({ "metadata": metadata, "credential": credential }))
}

async fn metadata(run: &RunDir, path: &Path) -> Result<Value> {
    let spec = Spec::new(&name("metadata"), "exiftool").args(["-json", "-G1", "-a", "--"]).args([path]);
    let (status, text) = output(run, spec, LIMIT).await?;
    ensure!(status.success(), "exiftool: {text}");
    let mut read: Vec<serde_json::Map<String, Value>> = serde_json::from_str(&text).context("exiftool")?;
    let mut tags = read.pop().context("exiftool says nothing")?;
    tags.retain(|tag, _| !OUTSIDE.contains(&tag.split(':').next().unwrap_or_default()));
    Ok(tags.into())
}

async fn credential(run: &RunDir, path: &Path, authority: &Path) -> Result<Value> {
    let script = repo().join("tests/cases/credential.py");
    let spec = Spec::new(&name("credential"), tool("python")?).args([script.as_path(), path, authority]);
    let (status, text) = output(run, spec, LIMIT).await?;
    judge(status.success(), &text)
}

/// The reader's result as a state: signed, none or bad.
fn judge(success: bool, text: &str) -> Result<Value> {
    if success {
        let said: Value = serde_json::from_str(text).context("the reader of credentials")?;
        return Ok(json!({ "state": "signed", "said": said }));
    }
    if NONE.iter().any(|none| text.contains(none)) {
        return Ok(json!({ "state": "none" }));
    }
    let reason = text.split_once(": ").map_or(text, |(_, reason)| reason).trim();
    Ok(json!({ "state": "bad", "reason": reason }))
}

/// Each reader has a log of its own.
fn name(reader: &str) -> String {
    format!("{reader}-{}", READS.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_leads_out_of_the_gallery() {
        let folder = tempfile::tempdir().unwrap();
        let gallery = Gallery::open(folder.path()).unwrap();
        fs::write(folder.path().join("gen_1.json"), "{}").unwrap();
        let name = gallery.keep_picture("http://s3/bucket/generations/gen_500_2.jpg", b"x").unwrap();
        assert!(gallery.picture(&name).is_some());
        for name in ["gen_1.json", "../gen_1.jpg", "authority/ca.pem", "gen_.jpg", "gen_9.jpg", "", "."] {
            assert!(gallery.picture(name).is_none(), "{name}");
        }
        assert!(gallery.keep_picture("http://s3/..", b"x").is_err());
        assert!(gallery.records().unwrap().is_empty(), "a file that is no task");
    }

    #[test]
    fn a_sketch_is_kept_once_and_found_by_its_own_name_alone() {
        let folder = tempfile::tempdir().unwrap();
        let gallery = Gallery::open(folder.path()).unwrap();
        let name = gallery.keep_sketch(b"x", Format::Png).unwrap();
        assert_eq!(gallery.keep_sketch(b"x", Format::Png).unwrap(), name);
        assert_ne!(gallery.keep_sketch(b"y", Format::Png).unwrap(), name);
        assert_eq!(fs::read(gallery.sketch(&name).unwrap()).unwrap(), b"x");
        let id = name.trim_end_matches(".png");
        fs::write(folder.path().join("gen_1.jpg"), "x").unwrap();
        for name in
            [&format!("{id}.jpg"), &format!("{id}.json"), id, &format!("../sketches/{name}"), "../gen_1.jpg", ""]
        {
            assert!(gallery.sketch(name).is_none(), "{name}");
        }
        assert!(gallery.picture(&name).is_none() && gallery.records().unwrap().is_empty());
    }

    #[test]
    fn a_gallery_keeps_its_signer() {
        let folder = tempfile::tempdir().unwrap();
        let gallery = Gallery::open(folder.path()).unwrap();
        let read = || fs::read(gallery.signer().unwrap().certificate).unwrap();
        assert_eq!(read(), read());
    }

    #[test]
    fn a_picture_without_a_credential_is_not_one_with_a_bad_one() {
        let state = |success, text| judge(success, text).unwrap()["state"].clone();
        assert_eq!(state(true, "{}"), "signed");
        assert_eq!(state(false, "/x/gen_1.jpg: Bad('0 boxes in APP11 segments')\n"), "none");
        let bad = judge(false, "/x/gen_1.jpg: Bad('c2pa.hash.data is not what was hashed')\n").unwrap();
        assert_eq!(bad, json!({ "state": "bad", "reason": "Bad('c2pa.hash.data is not what was hashed')" }));
    }
}
