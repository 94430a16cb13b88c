//! A model hub on loopback as `handler weights pull` sees one: revisions, listings and files, the large ones on another host. It can
//! require a token, cut a file in the middle, corrupt one, and list wrong paths.

use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::{IntoResponse, Redirect, Response},
};
use futures_util::{StreamExt, stream};
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
/// The commit that every revision means.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// The hub.
#[derive(Debug)]
pub struct Hub {
    addr: SocketAddr,
    shared: Arc<Shared>,
    servers: [JoinHandle<io::Result<()>>; 2],
}

/// What it requires and does wrong.
#[derive(Debug, Default, Clone)]
pub struct Behavior {
    /// The token that every request must have.
    pub token: Option<String>,
    /// Files that break off after this many bytes, once each.
    pub cuts: BTreeMap<String, usize>,
    /// Files whose content does not match the listing.
    pub corrupted: Vec<String>,
    /// Listed paths that do not exist.
    pub listed: Vec<String>,
    /// Status and body of every answer.
    pub answer: Option<(u16, String)>,
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

    fn listing(&self) -> Value {
        let file = |(path, content): (&String, &Bytes)| {
            let git = Sha1::new().chain_update(format!("blob {}\0", content.len())).chain_update(content).finalize();
            let mut listed = json!({ "type": "file", "path": path, "size": content.len(), "oid": hex::encode(git) });
            if is_large(path) {
                listed["lfs"] = json!({ "oid": hex::encode(Sha256::digest(content)), "size": content.len() });
            }
            listed
        };
        let more = self.behavior().listed.clone();
        let more = more.into_iter().map(|path| json!({ "type": "file", "path": path, "size": 1, "oid": "00" }));
        self.files
            .iter()
            .map(file)
            .chain(more)
            .chain([json!({ "type": "directory", "path": "unet", "oid": "00" })])
            .collect()
    }

    /// A file's bytes from the start of the range on, with the faults set for it.
    fn serve(&self, path: &str, headers: &HeaderMap, is_cdn: bool) -> Response {
        let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).map(str::to_string);
        let has_token = headers.contains_key(header::AUTHORIZATION);
        let fetch = Fetch { path: path.to_string(), range: range.clone(), is_cdn, has_token };
        self.fetches.lock().unwrap_or_else(PoisonError::into_inner).push(fetch);
        let Some(content) = self.files.get(path) else { return StatusCode::NOT_FOUND.into_response() };
        let mut content = content.to_vec();
        let mut behavior = self.behavior();
        if behavior.corrupted.iter().any(|corrupted| corrupted == path) {
            content[0] ^= 1;
        }
        let start = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let first = start.unwrap_or(0).min(content.len());
        let wanted = content.len() - first;
        let body = match behavior.cuts.remove(path) {
            Some(end) => {
                let part = Bytes::from(content[first..end.max(first)].to_vec());
                // The first part is sent before the error.
                let cut = stream::once(async {
                    tokio::task::yield_now().await;
                    Err(io::Error::from(io::ErrorKind::ConnectionReset))
                });
                Body::from_stream(stream::iter([Ok(part)]).chain(cut))
            }
            None => Body::from(content[first..].to_vec()),
        };
        let answer = Response::builder().header(header::CONTENT_LENGTH, wanted);
        let answer = match start {
            Some(_) => answer
                .status(StatusCode::PARTIAL_CONTENT)
                .header(header::CONTENT_RANGE, format!("bytes {first}-{}/{}", content.len() - 1, content.len())),
            None => answer,
        };
        answer.body(body).unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
    }
}

async fn answer(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap) -> Response {
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if let Some((status, body)) = shared.behavior().answer.clone() {
        return (StatusCode::from_u16(status).unwrap_or_default(), body).into_response();
    }
    let wanted = shared.behavior().token.clone();
    match wanted {
        Some(_) if token.is_empty() => return StatusCode::UNAUTHORIZED.into_response(),
        Some(wanted) if token != format!("Bearer {wanted}") => return StatusCode::FORBIDDEN.into_response(),
        _ => {}
    }
    let path = uri.path();
    if path == format!("/api/models/{REPO}/revision/main") {
        return axum::Json(json!({ "sha": COMMIT })).into_response();
    }
    if path == format!("/api/models/{REPO}/tree/{COMMIT}") {
        return axum::Json(shared.listing()).into_response();
    }
    match path.strip_prefix(&format!("/{REPO}/resolve/{COMMIT}/")) {
        Some(path) if is_large(path) => Redirect::temporary(&format!("http://{}/{path}", shared.cdn)).into_response(),
        Some(path) => shared.serve(path, &headers, false),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn answer_large(State(shared): State<Arc<Shared>>, uri: Uri, headers: HeaderMap) -> Response {
    shared.serve(uri.path().trim_start_matches('/'), &headers, true)
}

fn is_large(path: &str) -> bool {
    path.ends_with(".safetensors")
}
