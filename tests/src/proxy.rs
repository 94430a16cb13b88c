//! A reverse proxy on loopback. What becomes of a request is up to whoever starts it.
//!
//! Refuses to change what passes: address, host and signature stay as they came.

use crate::connection::{Connection, Connections};
use anyhow::{Context, Result};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, DefaultBodyLimit},
    http::{
        HeaderMap, Method, StatusCode, Uri,
        header::{CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING},
    },
    response::{IntoResponse, Response},
};
use reqwest::redirect::Policy;
use std::{
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
};
use tokio::{net::TcpListener, task::JoinHandle};

/// A picture or a LoRA of the toy model, several times over.
const LONGEST_BODY: usize = 256 << 20;

/// The proxy. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    addr: SocketAddr,
    server: JoinHandle<io::Result<()>>,
}

/// A request, read to its end.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// What it came on.
    pub(crate) connection: Connection,
}

/// Where requests go.
#[derive(Debug)]
pub(crate) struct Target {
    url: String,
    http: reqwest::Client,
}

impl Proxy {
    /// Starts it. `answer` is called with each request; its errors are told as 502.
    ///
    /// # Errors
    /// No free port.
    pub(crate) async fn start<A, F>(answer: A) -> Result<Self>
    where
        A: Fn(Request) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Response>> + Send,
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("a proxy")?;
        let addr = listener.local_addr()?;
        let pass = async move |ConnectInfo(connection): ConnectInfo<Connection>,
                               method: Method,
                               uri: Uri,
                               headers: HeaderMap,
                               body: Bytes| {
            let answered = answer(Request { method, uri, headers, body, connection }).await;
            answered.unwrap_or_else(|error| (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response())
        };
        let app = Router::new().fallback(pass).layer(DefaultBodyLimit::max(LONGEST_BODY));
        let app = app.into_make_service_with_connect_info::<Connection>();
        Ok(Self { addr, server: tokio::spawn(async move { axum::serve(Connections::new(listener), app).await }) })
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Target {
    /// Nothing is sent yet.
    ///
    /// # Errors
    /// No HTTP client.
    pub(crate) fn new(url: &str) -> Result<Self> {
        Ok(Self { url: url.to_string(), http: reqwest::Client::builder().no_proxy().redirect(Policy::none()).build()? })
    }

    /// Its answer to a request.
    ///
    /// # Errors
    /// No answer.
    pub(crate) async fn pass(&self, request: Request) -> Result<Response> {
        let Request { method, uri, mut headers, body, connection: _ } = request;
        // The client says these for itself.
        for header in [CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING] {
            headers.remove(header);
        }
        // A client that takes us for its proxy names the host, too.
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let sent = self.http.request(method, format!("{}{path}", self.url)).headers(headers).body(body);
        let answer = sent.send().await?;
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
