//! A reverse proxy that keeps which requests went by, and can hold reads back until others have come.

use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use std::{io, net::SocketAddr, sync::Arc};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

/// The proxy.
#[derive(Debug)]
pub struct Counting {
    addr: SocketAddr,
    seen: watch::Receiver<Vec<(Method, String)>>,
    server: JoinHandle<io::Result<()>>,
}

struct Shared {
    target: String,
    heads: usize,
    http: reqwest::Client,
    seen: watch::Sender<Vec<(Method, String)>>,
}

impl Counting {
    /// Starts it in front of `target`. A GET of a path waits until that path has had `heads` HEADs.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(target: &str, heads: usize) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let addr = listener.local_addr()?;
        let (sender, seen) = watch::channel(Vec::new());
        let http = reqwest::Client::builder().no_proxy().build()?;
        let shared = Arc::new(Shared { target: target.to_string(), heads, http, seen: sender });
        let app = Router::new().fallback(pass).with_state(shared);
        Ok(Self { addr, seen, server: tokio::spawn(async move { axum::serve(listener, app).await }) })
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// How many requests of this method went to paths that end so.
    pub fn count(&self, method: &Method, ending: &str) -> usize {
        self.seen.borrow().iter().filter(|(seen, path)| seen == method && path.ends_with(ending)).count()
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn pass(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path().to_string();
    shared.seen.send_modify(|seen| seen.push((method.clone(), path.clone())));
    if method == Method::GET {
        let enough = |seen: &Vec<(Method, String)>| {
            seen.iter().filter(|(method, at)| method == Method::HEAD && *at == path).count() >= shared.heads
        };
        // The sender is ours: it does not go away.
        let _ = shared.seen.subscribe().wait_for(enough).await;
    }
    let url = format!("{}{uri}", shared.target);
    match shared.http.request(method, url).headers(headers).body(body).send().await {
        Ok(answer) => {
            let (status, headers) = (answer.status(), answer.headers().clone());
            let mut passed = Response::new(Body::from(answer.bytes().await.unwrap_or_default()));
            *passed.status_mut() = status;
            *passed.headers_mut() = headers;
            passed
        }
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}
