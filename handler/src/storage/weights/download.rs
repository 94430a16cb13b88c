//! Downloads one file of the hub, with resume. It grows in a partial file that has the checksum in its name, so that a later try resumes
//! only the same content, and gets its name when its checksum is the hub's.

use super::hub::{Content, Hub, HubError, HubFile};
use crate::storage::cache::hash;
use anyhow::{Context, bail};
use sha1::{Digest, Sha1};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

/// A try that brought as many bytes as this does not count against the tries of the file.
const PROGRESS: u64 = 16 << 20;

/// The SHA-256 in hex of a file in the folder, if it is there with the size and checksum that the hub lists.
pub(super) fn present(file: &HubFile, folder: &Path) -> anyhow::Result<Option<String>> {
    match File::open(folder.join(&file.path)) {
        Ok(mut found) => matching_sha256(&mut found, file),
        Err(_) => Ok(None),
    }
}

/// Downloads a file. Returns its SHA-256 in hex, and the offset from which on it was downloaded.
pub(super) async fn download(
    hub: &Hub<'_>,
    commit: &str,
    file: &HubFile,
    folder: &Path,
) -> anyhow::Result<(String, u64)> {
    let path = folder.join(&file.path);
    let parent = path.parent().unwrap_or(folder);
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    let partial = partial(&path, file);
    let mut resumed_at = length(&partial);
    let mut retries = hub.retries();
    loop {
        let before = length(&partial);
        if let Err(error) = download_rest(hub, commit, file, &partial).await {
            let temporary = error.downcast::<HubError>()?;
            if length(&partial) >= before + PROGRESS {
                retries = hub.retries();
            }
            retries.wait(temporary).await?;
            continue;
        }
        let mut whole = File::open(&partial)?;
        if let Some(sha256) = matching_sha256(&mut whole, file)? {
            whole.sync_all()?;
            fs::rename(&partial, &path)?;
            File::open(parent)?.sync_all()?;
            return Ok((sha256, resumed_at));
        }
        fs::remove_file(&partial)?;
        // The partial file of an earlier run may be corrupt. A file that was downloaded whole is wrong at the hub.
        if resumed_at == 0 {
            bail!("{}: the content that came does not have the hub's checksum: refused", file.path);
        }
        resumed_at = 0;
    }
}

/// The first bytes of a file, at most `most`.
pub(super) async fn start(hub: &Hub<'_>, commit: &str, file: &HubFile, most: u64) -> anyhow::Result<Vec<u8>> {
    let most = most.min(file.bytes);
    let mut retries = hub.retries();
    loop {
        match read_start(hub, commit, file, most).await {
            Ok(bytes) => return Ok(bytes),
            Err(error) => retries.wait(error.downcast::<HubError>()?).await?,
        }
    }
}

async fn read_start(hub: &Hub<'_>, commit: &str, file: &HubFile, most: u64) -> anyhow::Result<Vec<u8>> {
    let mut content = hub.open(commit, &file.path, 0, Some(most.saturating_sub(1))).await?;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < most {
        let Some(chunk) = content.chunk().await? else { break };
        bytes.extend_from_slice(chunk.as_ref());
    }
    if (bytes.len() as u64) < most {
        bail!(instead(file, bytes.len() as u64, &bytes));
    }
    bytes.truncate(most as usize);
    Ok(bytes)
}

/// Downloads the rest of a partial file.
async fn download_rest(hub: &Hub<'_>, commit: &str, file: &HubFile, partial: &Path) -> anyhow::Result<()> {
    let mut partial_file = OpenOptions::new().create(true).append(true).open(partial)?;
    let mut length = partial_file.metadata()?.len();
    if length > file.bytes {
        partial_file.set_len(0)?;
        length = 0;
    }
    if length == file.bytes && length > 0 {
        return Ok(());
    }
    let mut content = hub.open(commit, &file.path, length, None).await?;
    if content.offset != length {
        partial_file.set_len(0)?;
        length = 0;
    }
    if let Some(all) = content.length().map(|rest| rest + length).filter(|all| *all != file.bytes) {
        drop(partial_file);
        fs::remove_file(partial)?;
        bail!(instead(file, all, &first(&mut content).await));
    }
    while let Some(chunk) = content.chunk().await? {
        length += chunk.as_ref().len() as u64;
        if length > file.bytes {
            drop(partial_file);
            fs::remove_file(partial)?;
            bail!("{}: the hub sends more than the {} bytes that it lists: refused", file.path, file.bytes);
        }
        partial_file.write_all(chunk.as_ref())?;
    }
    if length < file.bytes {
        let (path, wanted) = (&file.path, file.bytes);
        bail!(HubError::temporary(format!("{path}: {length} of {wanted} bytes came")));
    }
    Ok(())
}

/// The first bytes that come, if any do.
async fn first(content: &mut Content) -> Vec<u8> {
    content.chunk().await.ok().flatten().map(|chunk| chunk.as_ref().to_vec()).unwrap_or_default()
}

/// The error for something else in a file's place.
fn instead(file: &HubFile, bytes: u64, start: &[u8]) -> String {
    let what = match start.trim_ascii_start() {
        start if start.starts_with(b"version https://git-lfs") => {
            "a git-lfs pointer: the hub does not have the file itself"
        }
        [b'<', ..] => "a web page: check what stands between, such as a proxy with a login",
        [b'{' | b'[', ..] if file.path.ends_with(".safetensors") => "JSON, perhaps an error: check what stands between",
        _ => "something else",
    };
    format!("{}: {bytes} bytes came in place of the {} that the hub lists, {what}: refused", file.path, file.bytes)
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |found| found.len())
}

fn partial(path: &Path, file: &HubFile) -> PathBuf {
    let sum = file.sha256.as_deref().or(file.git_sha1.as_deref()).unwrap_or_default();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let legal: String = sum.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    path.with_file_name(format!(".{name}.{legal}.partial"))
}

/// The SHA-256 of a file, if the file has the size and checksum that the hub lists.
fn matching_sha256(file: &mut File, wanted: &HubFile) -> anyhow::Result<Option<String>> {
    if file.metadata()?.len() != wanted.bytes {
        return Ok(None);
    }
    let sha256 = hex::encode(hash(file)?);
    let same = match (&wanted.sha256, &wanted.git_sha1) {
        (Some(listed), _) => *listed == sha256,
        (None, Some(listed)) => *listed == git_sha1(file, wanted.bytes)?,
        (None, None) => false,
    };
    Ok(same.then_some(sha256))
}

/// The SHA-1 of git's blob with this content.
fn git_sha1(file: &mut File, bytes: u64) -> io::Result<String> {
    let mut content = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut content)?;
    let sum = Sha1::new().chain_update(format!("blob {bytes}\0")).chain_update(content).finalize();
    Ok(hex::encode(sum))
}
