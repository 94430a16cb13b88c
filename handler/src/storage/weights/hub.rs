//! One repository on the Hugging Face Hub: its commit, its listing and its files.
//!
//! The token is sent to the hub's own address only; the host of the large files, to which the hub redirects, gets none. Redirects are
//! followed here and not by the client, because an error has to say who answered.

mod error;
mod retries;

pub(super) use error::HubError;
pub(super) use retries::Retries;

use crate::storage::weights::options::PullConfig;
use error::{Asked, Server};
use reqwest::{
    Client, Response,
    header::{CONTENT_RANGE, CONTENT_TYPE, LINK, LOCATION, RANGE},
    redirect::Policy,
};
use serde::{Deserialize, de::DeserializeOwned};
use std::time::Duration;
use url::Url;

/// Timeout of connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of a connection without data.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Most pages of a listing. Each has up to a thousand files.
const MAX_PAGES: usize = 20;
/// Most redirects of one request. The hub needs one, and one more for a repository that was renamed.
const MAX_REDIRECTS: usize = 5;
/// Longest JSON answer, in bytes. A page of a listing has less than 1 MB.
const MAX_JSON: usize = 32 << 20;

/// One repository on a hub.
pub(super) struct Hub<'a> {
    client: Client,
    config: &'a PullConfig,
    /// Gets a line for each wait.
    report: &'a dyn Fn(&str),
}

/// A file as the hub lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HubFile {
    pub(super) path: String,
    pub(super) bytes: u64,
    /// SHA-256 of the content, for large files.
    pub(super) sha256: Option<String>,
    /// SHA-1 of the git blob, for other files.
    pub(super) git_sha1: Option<String>,
}

/// A file's content from some byte on.
pub(super) struct Content {
    response: Response,
    server: Server,
    path: String,
    /// The first byte; 0 if the server ignores ranges.
    pub(super) offset: u64,
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

impl<'a> Hub<'a> {
    pub(super) fn new(config: &'a PullConfig, report: &'a dyn Fn(&str)) -> reqwest::Result<Self> {
        let client = service::http_client()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(Policy::none())
            .user_agent(concat!("easel/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { client, config, report })
    }

    /// The tries of one request or one file.
    pub(super) fn retries(&self) -> Retries<'a> {
        Retries::new(self.report)
    }

    /// The commit that the revision refers to now.
    pub(super) async fn commit(&self) -> Result<String, HubError> {
        let url = self.url(&["api", "models"], &["revision", &self.config.revision], "")?;
        let revision: Revision = self.json(&url, "the revision").await?.0;
        let legal = revision.sha.len() >= 40 && revision.sha.bytes().all(|byte| byte.is_ascii_hexdigit());
        legal.then_some(revision.sha).ok_or_else(|| HubError::Final("the hub's answer names no commit".into()))
    }

    /// Every file of a commit.
    pub(super) async fn files(&self, commit: &str) -> Result<Vec<HubFile>, HubError> {
        let mut url = self.url(&["api", "models"], &["tree", commit], "")?;
        url.query_pairs_mut().append_pair("recursive", "true");
        let mut files = Vec::new();
        for _ in 0..MAX_PAGES {
            let (page, next): (Vec<TreeEntry>, _) = self.json(&url, "the listing").await?;
            files.extend(page.into_iter().filter(|entry| entry.r#type == "file").map(HubFile::from));
            let Some(next) = next else { return Ok(files) };
            url = next;
        }
        Err(HubError::Final(format!("the repository has more files than {MAX_PAGES} pages of its listing hold")))
    }

    /// Requests a file from `offset` on, up to the byte `last` if it is given. Tries once; with an expired signed address once more.
    pub(super) async fn open(
        &self,
        commit: &str,
        path: &str,
        offset: u64,
        last: Option<u64>,
    ) -> Result<Content, HubError> {
        let url = self.url(&[], &["resolve", commit], path)?;
        let last_byte = last.map(|last| last.to_string()).unwrap_or_default();
        let range = (offset > 0 || last.is_some()).then(|| format!("bytes={offset}-{last_byte}"));
        let (response, server) = match self.get(&url, path, range.as_deref()).await {
            Err(HubError::Signature(_)) => self.get(&url, path, range.as_deref()).await?,
            answered => answered?,
        };
        let given = response.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let is_part = given.is_some_and(|given| given.starts_with(&format!("bytes {offset}-")));
        let offset = if is_part { offset } else { 0 };
        Ok(Content { response, server, path: path.into(), offset })
    }

    /// An address in the repository. Each segment is percent-encoded, so that a revision cannot change the path.
    fn url(&self, before: &[&str], after: &[&str], path: &str) -> Result<Url, HubError> {
        let mut url = self.config.endpoint.clone();
        let repo = self.config.repo.split('/');
        let parts = before.iter().copied().chain(repo).chain(after.iter().copied());
        let path = path.split('/').filter(|part| !part.is_empty());
        let segments = url.path_segments_mut().map(|mut segments| {
            segments.pop_if_empty().extend(parts.chain(path));
        });
        segments.map_err(|()| HubError::Final("--endpoint (HF_ENDPOINT) is no http address".into()))?;
        Ok(url)
    }

    /// A JSON answer, and the address of the next page, which must be on the hub.
    async fn json<T: DeserializeOwned>(&self, url: &Url, what: &str) -> Result<(T, Option<Url>), HubError> {
        let mut retries = self.retries();
        let (kind, body, link) = loop {
            match self.body(url, what).await {
                Ok(answer) => break answer,
                Err(error) => retries.wait(error).await?,
            }
        };
        let next = link.as_deref().and_then(|link| link.split_once(">; rel=\"next\"")?.0.rsplit_once('<'));
        let next = next.and_then(|(_, next)| url.join(next).ok());
        if next.as_ref().is_some_and(|next| next.origin() != url.origin()) {
            return Err(HubError::Final("the hub's next page is on another host".into()));
        }
        // The parser's error would repeat text of the answer.
        let parsed = serde_json::from_slice(&body).map_err(|_| {
            let page = if kind.starts_with("text/html") { " but a web page" } else { "" };
            let advice = "check --endpoint (HF_ENDPOINT), and what stands between";
            HubError::Final(format!("the hub's answer for {what} is not the JSON that a hub gives{page}: {advice}"))
        })?;
        Ok((parsed, next))
    }

    /// Type, body and `Link` of an answer.
    async fn body(&self, url: &Url, what: &str) -> Result<(String, Vec<u8>, Option<String>), HubError> {
        let (mut response, server) = self.get(url, what, None).await?;
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_string);
        let (kind, link) = (text(CONTENT_TYPE).unwrap_or_default(), text(LINK));
        let mut body = Vec::new();
        let broke_off = |error| HubError::broke_off(&server, what, &error);
        while let Some(chunk) = response.chunk().await.map_err(broke_off)? {
            if body.len() + chunk.len() > MAX_JSON {
                return Err(HubError::Final(format!("the hub's answer for {what} has more than {MAX_JSON} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((kind, body, link))
    }

    /// Sends a request once, and follows redirects.
    async fn get(&self, url: &Url, what: &str, range: Option<&str>) -> Result<(Response, Server), HubError> {
        let mut url = url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let server = self.server(&url);
            let mut request = self.client.get(url.clone());
            if let (Server::Hub, Some(token)) = (&server, self.config.token()) {
                request = request.bearer_auth(token);
            }
            if let Some(range) = range {
                request = request.header(RANGE, range);
            }
            let response = request.send().await.map_err(|error| HubError::unanswered(&server, what, &error))?;
            let status = response.status();
            let to = response.headers().get(LOCATION).and_then(|to| url.join(to.to_str().ok()?).ok());
            match to.filter(|_| matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)) {
                Some(to) => url = to,
                None if status.is_success() => return Ok((response, server)),
                None => {
                    let asked = Asked { config: self.config, what };
                    return Err(HubError::answered(&asked, &server, status, response.headers()));
                }
            }
        }
        Err(HubError::Final(format!("{what}: the hub redirects more than {MAX_REDIRECTS} times")))
    }

    /// Whose address that is.
    fn server(&self, url: &Url) -> Server {
        if url.origin() == self.config.endpoint.origin() {
            return Server::Hub;
        }
        let host = url.host_str().unwrap_or_default();
        Server::Other(url.port().map_or_else(|| host.to_string(), |port| format!("{host}:{port}")))
    }
}

impl Content {
    /// The length of what comes, if the server says it.
    pub(super) fn length(&self) -> Option<u64> {
        self.response.content_length()
    }

    /// The next bytes; none at the end.
    pub(super) async fn chunk(&mut self) -> Result<Option<impl AsRef<[u8]> + use<>>, HubError> {
        let chunk = self.response.chunk().await;
        chunk.map_err(|error| HubError::broke_off(&self.server, &self.path, &error))
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
