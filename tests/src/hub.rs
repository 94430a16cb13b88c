//! A model hub on loopback that answers as the Hugging Face Hub does: listings in pages, small files by a relative redirect, large ones by
//! a signed address on another host, `X-Error-…` and `RateLimit` headers. Its behavior can be changed to faults that the real one has.

mod behavior;

pub use behavior::{Access, Behavior, Fault};

use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header, response::Builder},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{net::TcpListener, task::JoinHandle};

/// The repository that it has.
pub const REPO: &str = "easel/tiny";
/// The commit that its revisions mean.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// A pull request's revision, which it has beside `main`.
pub const PULL_REQUEST: &str = "refs/pr/1";
/// What opens a file on the other host, in the query of its address. No program may show it.
pub const SIGNATURE: &str = "the-signature-of-a-signed-address";

/// The hub.
#[derive(Debug)]
pub struct Hub {
    addr: SocketAddr,
    shared: Arc<Shared>,
    servers: [JoinHandle<io::Result<()>>; 2],
}

/// A request for a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// The file.
    pub path: String,
    /// Its `Range` header.
    pub range: Option<String>,
    /// Whether it went to the host for large files.
    pub is_cdn: bool,
    /// Whether it carried a token.
    pub has_token: bool,
}

#[derive(Debug)]
struct Shared {
    files: BTreeMap<String, Bytes>,
    cdn: SocketAddr,
    behavior: Mutex<Behavior>,
    fetches: Mutex<Vec<Fetch>>,
}

impl Hub {
    /// Starts a hub that has these files in [`REPO`].
    ///
    /// # Errors
    /// No free port.
    pub async fn start(files: BTreeMap<String, Vec<u8>>) -> Result<Self> {
        let (own, cdn) = (TcpListener::bind(("127.0.0.1", 0)).await?, TcpListener::bind(("127.0.0.1", 0)).await?);
        let files = files.into_iter().map(|(path, content)| (path, content.into())).collect();
        let (behavior, fetches) = (Mutex::default(), Mutex::default());
        let shared = Arc::new(Shared { files, cdn: cdn.local_addr()?, behavior, fetches });
        let addr = own.local_addr()?;
        let hub = Router::new().fallback(answer).with_state(shared.clone());
        let large = Router::new().fallback(answer_large).with_state(shared.clone());
        let servers = [
            tokio::spawn(async move { axum::serve(own, hub).await }),
            tokio::spawn(async move { axum::serve(cdn, large).await }),
        ];
        Ok(Self { addr, shared, servers })
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The host and port of its large files.
    pub fn cdn(&self) -> String {
        self.shared.cdn.to_string().replace("127.0.0.1", "localhost")
    }

    /// Changes its behavior from now on.
    pub fn set_behavior(&self, behavior: Behavior) {
        *self.shared.behavior() = behavior;
    }

    /// The requests for files since the last call.
    pub fn fetches(&self) -> Vec<Fetch> {
        std::mem::take(&mut *self.shared.fetches.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.servers.iter().for_each(JoinHandle::abort);
    }
}

impl Shared {
    fn behavior(&self) -> MutexGuard<'_, Behavior> {
        self.behavior.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listing(&self) -> Vec<Value> {
        let file = |(path, content): (&String, &Bytes)| {
            let git = Sha1::new().chain_update(format!("blob {}\0", content.len())).chain_update(content).finalize();
            let mut listed = json!({ "type": "file", "path": path, "size": content.len(), "oid": hex::encode(git) });
            if is_large(path) {
                listed["lfs"] = json!({ "oid": sha256(content), "size": content.len(), "pointerSize": 134 });
            }
            listed
        };
        let more = self.behavior().listed.clone();
        let more = more.into_iter().map(|path| json!({ "type": "file", "path": path, "size": 1, "oid": "00" }));
        let folder = json!({ "type": "directory", "path": "unet", "size": 0, "oid": "00" });
        self.files.iter().map(file).chain(more).chain([folder]).collect()
    }

    /// One page of the listing; the address of the next one is in `Link`.
    fn page(&self, uri: &Uri, host: &str) -> Response {
        let (listing, size) = (self.listing(), self.behavior().page_size.unwrap_or(1000));
        let cursor = uri.query().unwrap_or_default().split('&').find_map(|pair| pair.strip_prefix("cursor="));
        let first = cursor.and_then(|text| text.parse().ok()).unwrap_or(0).min(listing.len());
        let next = first + size;
        let body = Value::from(&listing[first..next.min(listing.len())]).to_string();
        let mut response = Response::builder().header(header::CONTENT_TYPE, "application/json; charset=utf-8");
        if next < listing.len() {
            let link = format!("<http://{host}{}?recursive=true&limit={size}&cursor={next}>; rel=\"next\"", uri.path());
            response = response.header(header::LINK, link);
        }
        built(response, Body::from(body))
    }

    /// A file's bytes from the start of the range on, with the faults set for it.
    fn serve(&self, path: &str, headers: &HeaderMap, is_cdn: bool) -> Response {
        let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).map(str::to_string);
        let has_token = headers.contains_key(header::AUTHORIZATION);
        let fetch = Fetch { path: path.to_string(), range: range.clone(), is_cdn, has_token };
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner).push(fetch);
        let mut behavior = self.behavior();
        let replaced = behavior.replaced.get(path).map(|text| Bytes::from(text.clone()));
        let Some(content) = replaced.or_else(|| self.files.get(path).cloned()) else {
            return StatusCode::NOT_FOUND.into_response();
        };
        let etag = if is_large(path) { sha256(&content) } else { hex::encode(Sha1::digest(&content)) };
        let mut content = content.to_vec();
        if let Some(last) = content.last_mut().filter(|_| behavior.corrupted.iter().any(|corrupted| corrupted == path))
        {
            *last ^= 1;
        }
        let bounds = range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let first = bounds.and_then(|(first, _)| first.parse().ok()).unwrap_or(0).min(content.len());
        let end = bounds.and_then(|(_, last)| last.parse::<usize>().ok()).map_or(content.len(), |last| last + 1);
        let end = end.clamp(first, content.len());
        // A request for a file's start alone is not what is to break off.
        let is_whole = bounds.is_none_or(|(_, last)| last.is_empty());
        let cut = if is_whole { behavior.cuts.remove(path) } else { None };
        let body = match cut {
            Some(end) => behavior::cut(Bytes::from(content[first..end.max(first)].to_vec())),
            None => Body::from(content[first..end].to_vec()),
        };
        let mut answer = Response::builder()
            .header(header::CONTENT_LENGTH, end - first)
            .header(header::ETAG, format!("\"{etag}\""))
            .header(header::ACCEPT_RANGES, "bytes");
        if bounds.is_some() {
            answer = answer
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, format!("bytes {first}-{}/{}", end.saturating_sub(1), content.len()));
        }
        built(answer, body)
    }

    /// The redirect of `/resolve/`: a signed address on the other host for a large file, else a relative one.
    fn resolve(&self, path: &str, commit: &str) -> Response {
        let Some(content) = self.files.get(path) else {
            return refused(404, "EntryNotFound", "Entry not found");
        };
        let sum = if is_large(path) { sha256(content) } else { hex::encode(Sha1::digest(content)) };
        let (status, to) = if is_large(path) {
            let query = format!("X-Amz-Expires=3600&X-Amz-Signature={SIGNATURE}&x-id=GetObject");
            (StatusCode::FOUND, format!("http://localhost:{}/{path}?{query}", self.cdn.port()))
        } else {
            let query = format!("%2F{}%2Fresolve%2F{commit}=&etag=%22{sum}%22", REPO.replace('/', "%2F"));
            (StatusCode::TEMPORARY_REDIRECT, format!("/api/resolve-cache/models/{REPO}/{commit}/{path}?{query}"))
        };
        let redirect = Response::builder()
            .status(status)
            .header(header::LOCATION, to)
            .header("X-Repo-Commit", commit)
            .header("X-Linked-Size", content.len())
            .header("X-Linked-ETag", format!("\"{sum}\""));
        built(redirect, Body::from("Redirecting"))
    }
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap) -> Response {
    let mut response = respond(&shared, &uri, &headers);
    let class = if uri.path().contains("/resolve/") { "resolvers" } else { "api" };
    let limits = [("ratelimit", format!("\"{class}\";r=498;t=211")), ("x-powered-by", "huggingface-moon".into())];
    for (name, value) in limits {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().entry(HeaderName::from_static(name)).or_insert(value);
        }
    }
    response
}

fn respond(shared: &Shared, uri: &Uri, headers: &HeaderMap) -> Response {
    let path = uri.path();
    let resolved = path.strip_prefix(&format!("/{REPO}/resolve/"));
    let cached = path.strip_prefix(&format!("/api/resolve-cache/models/{REPO}/"));
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut behavior = shared.behavior();
    if let Some((status, body)) = behavior.answer.clone() {
        return (StatusCode::from_u16(status).unwrap_or_default(), body).into_response();
    }
    if let Some(fault) = behavior.fault(path) {
        return fault.into_response();
    }
    let refusal = behavior.access.refusal(token, resolved.is_some() || cached.is_some());
    drop(behavior);
    if let Some((status, code, said)) = refusal {
        return refused(status, code, &said);
    }
    if let Some((commit, path)) = resolved.and_then(|rest| rest.split_once('/')) {
        return shared.resolve(path, commit);
    }
    if let Some((_, path)) = cached.and_then(|rest| rest.split_once('/')) {
        return shared.serve(path, headers, false);
    }
    let Some(asked) = path.strip_prefix(&format!("/api/models/{REPO}/")) else {
        // Without a token, the hub does not say whether there is such a repository.
        return refused(401, "RepoNotFound", "Invalid username or password.");
    };
    match asked.split_once('/') {
        Some(("revision", "main" | COMMIT | "refs%2Fpr%2F1")) => {
            axum::Json(json!({ "id": REPO, "sha": COMMIT })).into_response()
        }
        Some(("tree", COMMIT)) => shared.page(uri, host),
        Some(("revision" | "tree", revision)) => {
            refused(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"))
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

/// The other host: it takes no token, and wants the signature.
async fn answer_large(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap) -> Response {
    if headers.contains_key(header::AUTHORIZATION) {
        return (StatusCode::BAD_REQUEST, "<Error><Code>InvalidArgument</Code></Error>").into_response();
    }
    let mut behavior = shared.behavior();
    let expired = behavior.expired > 0;
    behavior.expired = behavior.expired.saturating_sub(1);
    drop(behavior);
    if expired || !uri.query().unwrap_or_default().contains(SIGNATURE) {
        return (StatusCode::FORBIDDEN, "<Error><Code>AccessDenied</Code></Error>").into_response();
    }
    shared.serve(uri.path().trim_start_matches('/'), &headers, true)
}

fn refused(status: u16, code: &str, said: &str) -> Response {
    let answer = Response::builder().status(status).header("X-Error-Code", code).header("X-Error-Message", said);
    built(answer, Body::from(json!({ "error": said }).to_string()))
}

fn built(answer: Builder, body: Body) -> Response {
    answer.body(body).unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

fn sha256(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

fn is_large(path: &str) -> bool {
    path.ends_with(".safetensors")
}
