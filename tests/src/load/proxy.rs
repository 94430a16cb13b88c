//! An HTTP proxy in front of S3 by which a share of the requests is answered 503, whether taken or not, or late.
//!
//! Refuses to change what passes: address, host and signature stay as they came.

use crate::mishap::{Mishap, Mishaps};
use anyhow::{Context, Result};
use axum::{
    Router,
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{
        StatusCode,
        header::{CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING},
    },
    response::{IntoResponse, Response},
};
use std::sync::Arc;
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

const SLOW_DOWN: &str = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
/// A picture or a LoRA of the toy model, several times over.
const LONGEST_BODY: usize = 256 << 20;

/// The proxy. It ends when this is dropped.
#[derive(Debug)]
pub(super) struct Proxy {
    url: String,
    task: JoinHandle<std::io::Result<()>>,
}

#[derive(Debug, Clone)]
struct Shared {
    client: reqwest::Client,
    target: String,
    mishaps: Arc<Mishaps>,
}

impl Proxy {
    /// Starts one in front of `target`, the address of an S3.
    pub(super) async fn start(target: &str, mishaps: Arc<Mishaps>) -> Result<Self> {
        let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
        let listener = TcpListener::bind("127.0.0.1:0").await.context("proxy of S3")?;
        let url = format!("http://{}", listener.local_addr()?);
        let app = Router::new().fallback(pass).with_state(Shared { client, target: target.to_string(), mishaps });
        let serve = axum::serve(listener, app);
        Ok(Self { url, task: tokio::spawn(async move { serve.await }) })
    }

    /// Its address.
    pub(super) fn url(&self) -> &str {
        &self.url
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(State(shared): State<Shared>, request: Request) -> Response {
    let slow_down = || (StatusCode::SERVICE_UNAVAILABLE, SLOW_DOWN).into_response();
    let mishap = shared.mishaps.next();
    match mishap {
        Some(Mishap::Refusal) => return slow_down(),
        Some(Mishap::Stall(time)) => sleep(time).await,
        Some(Mishap::LostAnswer) | None => {}
    }
    // An S3 that cannot be reached is S3's answer too: the handler has to live with it.
    let answer = shared.forward(request).await;
    match mishap {
        Some(Mishap::LostAnswer) => slow_down(),
        _ => answer.unwrap_or_else(|error| (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response()),
    }
}

impl Shared {
    async fn forward(&self, request: Request) -> Result<Response> {
        let (mut head, body) = request.into_parts();
        let body = to_bytes(body, LONGEST_BODY).await?;
        // The client says these for itself.
        for header in [CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING] {
            head.headers.remove(header);
        }
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let url = format!("{}{path}", self.target);
        let answer = self.client.request(head.method, url).headers(head.headers).body(body).send().await?;
        let mut passed = Response::new(Body::empty());
        *passed.status_mut() = answer.status();
        *passed.headers_mut() = answer.headers().clone();
        for header in [CONNECTION, TRANSFER_ENCODING] {
            passed.headers_mut().remove(header);
        }
        // The answer to HEAD keeps the length of what it does not have.
        *passed.body_mut() = answer.bytes().await?.into();
        Ok(passed)
    }
}
