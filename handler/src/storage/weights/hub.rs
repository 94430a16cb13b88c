//! Downloads a model's files from the Hugging Face Hub, with resume.
//!
//! The token is sent to the hub's own address only; redirects to another host, where the large files are, go without it. A download grows
//! in a partial file that has the checksum in its name, so that a later try resumes only the same content. The file gets its name when its
//! checksum is the hub's.

use crate::storage::{cache::hash, weights::options::PullConfig};
use anyhow::{Context, bail, ensure};
use backon::{BackoffBuilder, ExponentialBuilder};
use reqwest::{
    Client, Response, StatusCode,
    header::{CONTENT_RANGE, LINK, RANGE},
};
use serde::{Deserialize, de::DeserializeOwned};
use sha1::{Digest, Sha1};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    time::Duration,
};
use url::Url;

/// Timeout of connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a connection without data.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Most pages of a listing. Each has up to a thousand files.
const MAX_PAGES: usize = 20;
/// Retries of a download that broke off.
const RETRIES: usize = 6;
/// Wait before the first retry.
const FIRST_DELAY: Duration = Duration::from_millis(500);

/// One repository on a hub.
pub(super) struct Hub {
    client: Client,
    config: PullConfig,
}

/// A file as the hub lists it.
#[derive(Debug, Clone)]
pub(super) struct HubFile {
    pub(super) path: String,
    pub(super) bytes: u64,
    /// SHA-256 of the content, for large files.
    pub(super) sha256: Option<String>,
    /// SHA-1 of the git blob, for other files.
    pub(super) git_sha1: Option<String>,
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Deserialize)]
struct TreeEntry {
    r#type: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: String,
    lfs: Option<LfsPointer>,
}

#[derive(Deserialize)]
struct LfsPointer {
    oid: String,
    size: u64,
}

impl Hub {
    pub(super) fn new(config: &PullConfig) -> anyhow::Result<Self> {
        let client = service::http_client()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("easel/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { client, config: config.clone() })
    }

    /// The commit that the revision refers to now.
    pub(super) async fn commit(&self) -> anyhow::Result<String> {
        let url = self.url(&["api", "models"], &["revision", &self.config.revision], "")?;
        let revision: Revision = self.json(url).await?.0;
        let legal = revision.sha.len() >= 40 && revision.sha.bytes().all(|byte| byte.is_ascii_hexdigit());
        ensure!(legal, "the hub's answer names no commit");
        Ok(revision.sha)
    }

    /// Every file of a commit.
    pub(super) async fn files(&self, commit: &str) -> anyhow::Result<Vec<HubFile>> {
        let mut next = Some(self.url(&["api", "models"], &["tree", commit], "")?);
        if let Some(url) = &mut next {
            url.query_pairs_mut().append_pair("recursive", "true");
        }
        let mut files = Vec::new();
        for _ in 0..MAX_PAGES {
            let Some(url) = next.take() else { return Ok(files) };
            let (page, link): (Vec<TreeEntry>, _) = self.json(url).await?;
            files.extend(page.into_iter().filter(|entry| entry.r#type == "file").map(HubFile::from));
            next = link;
        }
        bail!("the repository has more files than {MAX_PAGES} pages of its listing hold")
    }

    /// Requests a file from `offset` on. Returns the answer, and whether it starts at the offset.
    pub(super) async fn open(&self, commit: &str, path: &str, offset: u64) -> anyhow::Result<(Response, bool)> {
        let mut request = self.client.get(self.url(&[], &["resolve", commit], path)?);
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        let answer = self.send(request, path).await?;
        let range = answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let is_resumed = answer.status() == StatusCode::PARTIAL_CONTENT
            && range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-")));
        Ok((answer, is_resumed))
    }

    /// An address in the repository. Each segment is percent-encoded, so that a revision cannot change the path.
    fn url(&self, before: &[&str], after: &[&str], path: &str) -> anyhow::Result<Url> {
        let mut url = self.config.endpoint.clone();
        let repo = self.config.repo.split('/');
        let parts = before.iter().copied().chain(repo).chain(after.iter().copied());
        let path = path.split('/').filter(|part| !part.is_empty());
        let mut segments = url.path_segments_mut().map_err(|()| anyhow::anyhow!("--endpoint is no http address"))?;
        segments.pop_if_empty().extend(parts.chain(path));
        drop(segments);
        Ok(url)
    }

    /// A JSON answer, and the address of the next page, which must be on the same host.
    async fn json<T: DeserializeOwned>(&self, url: Url) -> anyhow::Result<(T, Option<Url>)> {
        let answer = self.send(self.client.get(url.clone()), url.path()).await?;
        let link = answer.headers().get(LINK).and_then(|value| value.to_str().ok());
        let next = link.and_then(|link| link.split_once(">; rel=\"next\"")?.0.rsplit_once('<'));
        let next = next.map(|(_, next)| Url::parse(next).context("the hub's next page")).transpose()?;
        ensure!(
            next.as_ref().is_none_or(|next| next.origin() == url.origin()),
            "the hub's next page is on another host"
        );
        // The parser's error would repeat text of the answer.
        let body = answer.bytes().await.map_err(reqwest::Error::without_url).context("the hub's answer")?;
        let parsed = serde_json::from_slice(&body).ok().context("the hub's answer is not the JSON that a hub gives")?;
        Ok((parsed, next))
    }

    async fn send(&self, request: reqwest::RequestBuilder, what: &str) -> anyhow::Result<Response> {
        let request = match &self.config.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        };
        // Without the URL, because that of a large file contains a signature.
        let answer = request.send().await.map_err(reqwest::Error::without_url);
        let answer = answer.context("the hub does not answer: check the network and --endpoint (HF_ENDPOINT)")?;
        let PullConfig { repo, revision, token, .. } = &self.config;
        match answer.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let needed = if token.is_some() {
                    "the token (--token, HF_TOKEN) does not open it: its owner must have accepted the repository's conditions"
                } else {
                    "set a token (--token, HF_TOKEN) whose owner has accepted the repository's conditions"
                };
                bail!("{repo} is gated, private or not there (the hub answered {}): {needed}", answer.status().as_u16())
            }
            StatusCode::NOT_FOUND => bail!("{repo} at revision {revision}: the hub has no {what}"),
            _ => {
                let answer = answer.error_for_status().map_err(reqwest::Error::without_url);
                answer.with_context(|| format!("the hub does not give {what}"))
            }
        }
    }
}

impl From<TreeEntry> for HubFile {
    fn from(entry: TreeEntry) -> Self {
        let TreeEntry { path, size, oid, lfs, .. } = entry;
        match lfs {
            Some(large) => Self { path, bytes: large.size, sha256: Some(large.oid), git_sha1: None },
            None => Self { path, bytes: size, sha256: None, git_sha1: Some(oid) },
        }
    }
}

/// How a file was obtained.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum FileOutcome {
    /// It was in the folder, with the right checksum.
    AlreadyPresent,
    /// It was downloaded from this offset on.
    Downloaded { resumed_at: u64 },
}

/// Downloads a file. Returns its SHA-256 in hex.
pub(super) async fn download(
    hub: &Hub,
    commit: &str,
    file: &HubFile,
    folder: &Path,
) -> anyhow::Result<(String, FileOutcome)> {
    let path = folder.join(&file.path);
    let parent = path.parent().unwrap_or(folder);
    fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    if let Ok(mut there) = File::open(&path)
        && let Some(sha256) = matching_sha256(&mut there, file)?
    {
        return Ok((sha256, FileOutcome::AlreadyPresent));
    }
    let partial = partial(&path, file);
    let mut delays = ExponentialBuilder::default().with_min_delay(FIRST_DELAY).with_max_times(RETRIES).build();
    let begun = fs::metadata(&partial).map_or(0, |found| found.len());
    let mut resumed_at = begun;
    loop {
        let broke_off = match download_rest(hub, commit, file, &partial).await {
            Ok(()) => None,
            Err(error) if is_temporary(&error) => Some(error),
            Err(error) => return Err(error),
        };
        let Some(error) = broke_off else {
            let mut whole = File::open(&partial)?;
            if let Some(sha256) = matching_sha256(&mut whole, file)? {
                whole.sync_all()?;
                fs::rename(&partial, &path)?;
                File::open(parent)?.sync_all()?;
                return Ok((sha256, FileOutcome::Downloaded { resumed_at }));
            }
            fs::remove_file(&partial)?;
            // The partial file of an earlier run may be corrupt. A file that was downloaded whole is wrong at the hub.
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
    let sum = file.sha256.as_deref().or(file.git_sha1.as_deref()).unwrap_or_default();
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let legal: String = sum.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    path.with_file_name(format!(".{name}.{legal}.partial"))
}

/// Downloads the rest of a partial file.
async fn download_rest(hub: &Hub, commit: &str, file: &HubFile, partial: &Path) -> anyhow::Result<()> {
    let mut partial_file = OpenOptions::new().create(true).append(true).open(partial)?;
    let mut length = partial_file.metadata()?.len();
    if length > file.bytes {
        partial_file.set_len(0)?;
        length = 0;
    }
    if length == file.bytes && length > 0 {
        return Ok(());
    }
    let (mut answer, is_resumed) = hub.open(commit, &file.path, length).await?;
    if !is_resumed {
        partial_file.set_len(0)?;
        length = 0;
    }
    while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
        length += chunk.len() as u64;
        if length > file.bytes {
            drop(partial_file);
            fs::remove_file(partial)?;
            bail!("{}: the hub sends more than the {} bytes that it lists: refused", file.path, file.bytes);
        }
        partial_file.write_all(&chunk)?;
    }
    if length < file.bytes {
        let (there, wanted) = (length, file.bytes);
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{there} of {wanted} bytes came")).into());
    }
    Ok(())
}

/// Whether a retry may help: the connection broke, or the hub is overloaded.
fn is_temporary(error: &anyhow::Error) -> bool {
    let cut = error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof);
    let http = error.downcast_ref::<reqwest::Error>();
    cut || http.is_some_and(|error| error.status().is_none_or(|status| status.is_server_error() || status == 429))
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
