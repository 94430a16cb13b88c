//! The hub: which commit a revision means, which files it has, and their bytes from any offset.
//!
//! The token is sent to the hub's own address. A redirect to another host, where the large files lie, goes without it.

use crate::storage::weights::options::PullConfig;
use anyhow::{Context, bail, ensure};
use reqwest::{
    Client, Response, StatusCode,
    header::{CONTENT_RANGE, LINK, RANGE},
};
use serde::{Deserialize, de::DeserializeOwned};
use std::time::Duration;
use url::Url;

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection may be silent.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Most pages of a listing, of up to a thousand files each.
const MAX_PAGES: usize = 20;

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
    /// SHA-256 of the content: of large files.
    pub(super) sha256: Option<String>,
    /// SHA-1 as git has it: of the others.
    pub(super) git: Option<String>,
}

#[derive(Deserialize)]
struct Revision {
    sha: String,
}

#[derive(Deserialize)]
struct Listed {
    r#type: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: String,
    lfs: Option<Large>,
}

#[derive(Deserialize)]
struct Large {
    oid: String,
    size: u64,
}

impl Hub {
    pub(super) fn new(config: &PullConfig) -> anyhow::Result<Self> {
        let client = Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .user_agent(concat!("easel/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { client, config: config.clone() })
    }

    /// The commit that the revision means now.
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
            let (page, link): (Vec<Listed>, _) = self.json(url).await?;
            files.extend(page.into_iter().filter(|listed| listed.r#type == "file").map(HubFile::from));
            next = link;
        }
        bail!("the repository has more files than {MAX_PAGES} pages of its listing hold")
    }

    /// The bytes of a file from `offset` on, and whether the hub heeded the offset.
    pub(super) async fn open(&self, commit: &str, path: &str, offset: u64) -> anyhow::Result<(Response, bool)> {
        let mut request = self.client.get(self.url(&[], &["resolve", commit], path)?);
        if offset > 0 {
            request = request.header(RANGE, format!("bytes={offset}-"));
        }
        let answer = self.send(request, path).await?;
        let range = answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let heeded = answer.status() == StatusCode::PARTIAL_CONTENT
            && range.is_some_and(|range| range.starts_with(&format!("bytes {offset}-")));
        Ok((answer, heeded))
    }

    /// An address in the repository. Each part is encoded, so that a revision cannot leave its place.
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

    /// A JSON answer and the address of the next page, which must be the hub's own.
    async fn json<T: DeserializeOwned>(&self, url: Url) -> anyhow::Result<(T, Option<Url>)> {
        let answer = self.send(self.client.get(url.clone()), url.path()).await?;
        let link = answer.headers().get(LINK).and_then(|value| value.to_str().ok());
        let next = link.and_then(|link| link.split_once(">; rel=\"next\"")?.0.rsplit_once('<'));
        let next = next.map(|(_, next)| Url::parse(next).context("the hub's next page")).transpose()?;
        ensure!(
            next.as_ref().is_none_or(|next| next.origin() == url.origin()),
            "the hub's next page is on another host"
        );
        // The parser's words would hold some of the hub's.
        let body = answer.bytes().await.map_err(reqwest::Error::without_url).context("the hub's answer")?;
        let parsed = serde_json::from_slice(&body).ok().context("the hub's answer is not the JSON that a hub gives")?;
        Ok((parsed, next))
    }

    async fn send(&self, request: reqwest::RequestBuilder, what: &str) -> anyhow::Result<Response> {
        let request = match &self.config.token {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        };
        let answer =
            // The address of a large file holds a signature.
            request.send().await.map_err(reqwest::Error::without_url);
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

impl From<Listed> for HubFile {
    fn from(listed: Listed) -> Self {
        let Listed { path, size, oid, lfs, .. } = listed;
        match lfs {
            Some(large) => Self { path, bytes: large.size, sha256: Some(large.oid), git: None },
            None => Self { path, bytes: size, sha256: None, git: Some(oid) },
        }
    }
}
