//! One file of a model: whole and right under its name, or not there at all.
//!
//! It grows in a partial file named by its checksum, so that a later try goes on only with bytes of the same content, and gets its name
//! when its checksum is the hub's.

use super::hub::{Hub, HubFile};
use crate::storage::cache::hash;
use anyhow::{Context, bail};
use backon::{BackoffBuilder, ExponentialBuilder};
use sha1::{Digest, Sha1};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    time::Duration,
};

/// How often a download that broke off is gone on with.
const RETRIES: usize = 6;
/// Wait before the first of them.
const FIRST_DELAY: Duration = Duration::from_millis(500);

/// How a file came.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// It was there, with the right checksum.
    There,
    /// It was downloaded from this offset on.
    Downloaded { resumed_at: u64 },
}

/// Brings a file; gives its SHA-256 in hex.
pub(super) async fn bring(
    hub: &Hub,
    commit: &str,
    file: &HubFile,
    folder: &Path,
) -> anyhow::Result<(String, Progress)> {
    let path = folder.join(&file.path);
    let parent = path.parent().unwrap_or(folder);
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    if let Ok(mut there) = File::open(&path)
        && let Some(sha256) = right(&mut there, file)?
    {
        return Ok((sha256, Progress::There));
    }
    let partial = partial(&path, file);
    let mut delays = ExponentialBuilder::default().with_min_delay(FIRST_DELAY).with_max_times(RETRIES).build();
    let begun = fs::metadata(&partial).map_or(0, |found| found.len());
    let mut resumed_at = begun;
    loop {
        let broke_off = match grow(hub, commit, file, &partial).await {
            Ok(()) => None,
            Err(error) if is_passing(&error) => Some(error),
            Err(error) => return Err(error),
        };
        let Some(error) = broke_off else {
            let mut whole = File::open(&partial)?;
            if let Some(sha256) = right(&mut whole, file)? {
                whole.sync_all()?;
                fs::rename(&partial, &path)?;
                File::open(parent)?.sync_all()?;
                return Ok((sha256, Progress::Downloaded { resumed_at }));
            }
            fs::remove_file(&partial)?;
            // What an earlier run left may have been spoilt; what came just now is the hub's fault.
            if resumed_at == 0 {
                bail!("{}: the content that came does not have the hub's checksum: refused", file.path);
            }
            resumed_at = 0;
            continue;
        };
        let Some(delay) = delays.next() else { return Err(error.context(format!("{} broke off", file.path))) };
        tracing::warn!(error = format!("{error:#}"), path = file.path, "the download broke off: it goes on");
        tokio::time::sleep(delay).await;
    }
}

fn partial(path: &Path, file: &HubFile) -> PathBuf {
    let sum = file.sha256.as_deref().or(file.git.as_deref()).unwrap_or_default();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let legal: String = sum.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    path.with_file_name(format!(".{name}.{legal}.partial"))
}

/// Adds to the partial file what it lacks.
async fn grow(hub: &Hub, commit: &str, file: &HubFile, partial: &Path) -> anyhow::Result<()> {
    let mut held = OpenOptions::new().create(true).append(true).open(partial)?;
    let mut length = held.metadata()?.len();
    if length > file.bytes {
        held.set_len(0)?;
        length = 0;
    }
    if length == file.bytes && length > 0 {
        return Ok(());
    }
    let (mut answer, heeded) = hub.open(commit, &file.path, length).await?;
    if !heeded {
        held.set_len(0)?;
        length = 0;
    }
    while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
        length += chunk.len() as u64;
        if length > file.bytes {
            drop(held);
            fs::remove_file(partial)?;
            bail!("{}: the hub sends more than the {} bytes that it lists: refused", file.path, file.bytes);
        }
        held.write_all(&chunk)?;
    }
    if length < file.bytes {
        let (there, wanted) = (length, file.bytes);
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{there} of {wanted} bytes came")).into());
    }
    Ok(())
}

/// Whether going on may help: the way broke, or the hub is overloaded.
fn is_passing(error: &anyhow::Error) -> bool {
    let cut = error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof);
    let http = error.downcast_ref::<reqwest::Error>();
    cut || http.is_some_and(|error| error.status().is_none_or(|status| status.is_server_error() || status == 429))
}

/// The SHA-256 of a file if it is the one that the hub lists.
fn right(file: &mut File, wanted: &HubFile) -> anyhow::Result<Option<String>> {
    if file.metadata()?.len() != wanted.bytes {
        return Ok(None);
    }
    let sha256 = hex::encode(hash(file)?);
    let same = match (&wanted.sha256, &wanted.git) {
        (Some(listed), _) => *listed == sha256,
        (None, Some(listed)) => *listed == git(file, wanted.bytes)?,
        (None, None) => false,
    };
    Ok(same.then_some(sha256))
}

/// What git calls a file of this content.
fn git(file: &mut File, bytes: u64) -> io::Result<String> {
    let mut content = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut content)?;
    let sum = Sha1::new().chain_update(format!("blob {bytes}\0")).chain_update(content).finalize();
    Ok(hex::encode(sum))
}
