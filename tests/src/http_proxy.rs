//! A reverse proxy on loopback, whose user decides what becomes of each request. Forwarded requests keep host and signature.

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
use serde_json::{Value, json};
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
pub(crate) struct HttpProxy {
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
    /// The connection that it came on.
    pub(crate) connection: Connection,
}

/// Where requests go.
#[derive(Debug)]
pub(crate) struct Target {
    url: String,
    http: reqwest::Client,
}

impl HttpProxy {
    /// Starts it. `answer` is called with each request; its errors become 502.
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

impl Drop for HttpProxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Target {
    /// A client for this address; nothing is sent yet.
    ///
    /// # Errors
    /// No HTTP client.
    pub(crate) fn new(url: &str) -> Result<Self> {
        Ok(Self { url: url.to_string(), http: service::http_client().no_proxy().redirect(Policy::none()).build()? })
    }

    /// Forwards a request and gives the answer.
    ///
    /// # Errors
    /// No answer.
    pub(crate) async fn pass(&self, request: Request) -> Result<Response> {
        let Request { method, uri, mut headers, body, connection: _ } = request;
        // The client sets these itself.
        for header in [CONNECTION, CONTENT_LENGTH, EXPECT, TRANSFER_ENCODING] {
            headers.remove(header);
        }
        // A client that uses us as its HTTP proxy sends the host in the address, too.
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let sent = self.http.request(method, format!("{}{path}", self.url)).headers(headers).body(body);
        let answer = sent.send().await?;
        let mut passed = Response::new(Body::empty());
        *passed.status_mut() = answer.status();
        *passed.headers_mut() = answer.headers().clone();
        for header in [CONNECTION, TRANSFER_ENCODING] {
            passed.headers_mut().remove(header);
        }
        // The answer to HEAD keeps its content-length although it has no body.
        *passed.body_mut() = answer.bytes().await?.into();
        Ok(passed)
    }
}

/// The error of a batch entry.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RefusedEntry {
    pub(crate) code: &'static str,
    pub(crate) sender_fault: bool,
}

/// Forwards a batch without the entries whose index `fails` picks. The answer reports those as failed.
///
/// # Errors
/// It is no batch, or the target does not answer.
pub(crate) async fn withhold(
    target: &Target,
    mut request: Request,
    refused: RefusedEntry,
    fails: impl Fn(usize) -> bool,
) -> Result<Response> {
    let mut batch: Value = serde_json::from_slice(&request.body)?;
    let entries = batch["Entries"].as_array_mut().context("no Entries")?;
    let RefusedEntry { code, sender_fault } = refused;
    let (mut failed, mut passing) = (Vec::new(), Vec::new());
    for (index, entry) in entries.drain(..).enumerate() {
        if fails(index) {
            failed.push(json!({ "Id": entry["Id"], "Code": code, "Message": code, "SenderFault": sender_fault }));
        } else {
            passing.push(entry);
        }
    }
    if passing.is_empty() {
        return Ok(axum::Json(json!({ "Successful": [], "Failed": failed })).into_response());
    }
    *entries = passing;
    request.body = batch.to_string().into();
    let passed = target.pass(request).await?;
    if !passed.status().is_success() {
        return Ok(passed);
    }
    let answer = axum::body::to_bytes(passed.into_body(), usize::MAX).await?;
    let mut answer: Value = serde_json::from_slice(&answer)?;
    match answer["Failed"].as_array_mut() {
        Some(others) => others.extend(failed),
        None => answer["Failed"] = failed.into(),
    }
    Ok(axum::Json(answer).into_response())
}
