//! The page's server: files of the page, a stream of changes, pictures, and what the page asks for. Refuses to be reached from
//! elsewhere, and to judge a task: that is the function's.

use super::{
    about,
    book::Change,
    faults::Fault,
    guard::{Names, guard},
    order::Style,
    stage::Stage,
};
use crate::paths::repo;
use anyhow::{Context, Result};
use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, Path, State},
    http::{StatusCode, header::CONTENT_TYPE},
    middleware,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use futures_util::{Stream, StreamExt, stream};
use handler::task::Format;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{net::SocketAddr, sync::Arc};
use tokio::net::TcpListener;

/// Far more than sixteen tasks have.
const MAX_BODY_BYTES: usize = 64 << 10;
/// Tasks to a request.
const MAX_ORDERS: usize = 16;
/// Files of the page by their endings; nothing else is served.
const KINDS: [(&str, &str); 4] = [
    ("html", "text/html; charset=utf-8"),
    ("css", "text/css; charset=utf-8"),
    ("js", "text/javascript; charset=utf-8"),
    ("svg", "image/svg+xml"),
];

/// What the server needs.
#[derive(Debug)]
pub struct Studio {
    /// The running parts.
    pub stage: Stage,
    /// The styles that can be chosen.
    pub styles: Vec<Style>,
}

#[derive(Debug, Deserialize)]
struct Orders {
    orders: Vec<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
struct Switch {
    fault: Fault,
    #[serde(default)]
    on: bool,
}

/// Listens on a free port of 127.0.0.1; gives the address and what serves there until it is dropped.
///
/// # Errors
/// No free port.
pub async fn open(studio: Arc<Studio>) -> Result<(SocketAddr, impl Future<Output = Result<()>>)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("the page's server")?;
    let addr = listener.local_addr()?;
    let app = Router::new()
        .route("/", get(async || file("index.html").await))
        .route("/{name}", get(async |Path(name): Path<String>| file(&name).await))
        .route("/pictures/{name}", get(picture))
        .route("/api/events", get(events))
        .route("/api/tasks", post(publish))
        .route("/api/faults", post(switch))
        .route("/api/pictures/{name}", get(read))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn_with_state(Names::of(addr), guard))
        .with_state(studio);
    Ok((addr, async move { axum::serve(listener, app).await.context("the page's server") }))
}

/// A file of the page.
async fn file(name: &str) -> Response {
    let plain = name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'.' || byte == b'-');
    let kind = name.split_once('.').and_then(|(_, ending)| KINDS.iter().find(|(known, _)| ending == *known));
    let Some((_, kind)) = kind.filter(|_| plain) else { return StatusCode::NOT_FOUND.into_response() };
    match tokio::fs::read(repo().join("tests/studio/page").join(name)).await {
        Ok(content) => ([(CONTENT_TYPE, *kind)], content).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn picture(State(studio): State<Arc<Studio>>, Path(name): Path<String>) -> Response {
    let Some(path) = studio.stage.book.shelf().picture(&name) else { return StatusCode::NOT_FOUND.into_response() };
    let kind = Format::of_path(&path).unwrap_or_default().content_type();
    match tokio::fs::read(path).await {
        Ok(content) => ([(CONTENT_TYPE, kind)], content).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Everything as it is, then each change. A page that is too slow is cut off: it comes back and gets everything again.
async fn events(State(studio): State<Arc<Studio>>) -> Sse<impl Stream<Item = Result<Event, axum::Error>>> {
    let (mut all, changes) = studio.stage.book.follow();
    all.data["styles"] = json!(studio.styles);
    let changes = stream::unfold(changes, async |mut changes| Some((changes.recv().await.ok()?, changes)));
    let event = |change: Change| Event::default().event(change.name).json_data(change.data);
    Sse::new(stream::iter([all]).chain(changes).map(event)).keep_alive(KeepAlive::default())
}

async fn publish(State(studio): State<Arc<Studio>>, Json(asked): Json<Orders>) -> Response {
    if asked.orders.len() > MAX_ORDERS {
        return (StatusCode::BAD_REQUEST, format!("at most {MAX_ORDERS} tasks at a time\n")).into_response();
    }
    let mut ids = Vec::new();
    for order in &asked.orders {
        match studio.stage.publish(order, &studio.styles).await {
            Ok(id) => ids.push(id),
            Err(error) => return (StatusCode::BAD_GATEWAY, format!("{error:#}\n")).into_response(),
        }
    }
    Json(json!({ "ids": ids })).into_response()
}

async fn switch(State(studio): State<Arc<Studio>>, Json(switch): Json<Switch>) -> StatusCode {
    studio.stage.faults.set(switch.fault, switch.on).await;
    StatusCode::NO_CONTENT
}

async fn read(State(studio): State<Arc<Studio>>, Path(name): Path<String>) -> Response {
    match about::read(&studio.stage.run, studio.stage.book.shelf(), &name).await {
        Ok(said) => Json(said).into_response(),
        Err(error) => (StatusCode::NOT_FOUND, format!("{error:#}\n")).into_response(),
    }
}
