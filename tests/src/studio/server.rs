//! The page's server: its files, a stream of changes, pictures, and the requests of the page. It answers only pages that it has
//! served itself at its own address, so that neither DNS rebinding nor other sites reach it.

use super::{Cancel, StudioStack, Style, faults::FaultSwitch, gallery, settings, tasks::Change};
use crate::paths::repo;
use anyhow::{Context, Result};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, Path, Request, State, rejection::BytesRejection},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::{self, Next},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use futures_util::{Stream, StreamExt, stream};
use handler::{
    storage::{ImageLimits, read_image},
    task::Format,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::{net::SocketAddr, path::PathBuf, sync::Arc};
use tokio::net::TcpListener;

/// Far more than sixteen tasks need.
const MAX_BODY_BYTES: usize = 64 << 10;
/// What the function takes of a sketch, as it has no other options here.
const SKETCH: ImageLimits = ImageLimits::DEFAULT;
/// Tasks to a request.
const MAX_ORDERS: usize = 16;
/// How a sketch is sent.
const OCTETS: &str = "application/octet-stream";
/// Files of the page by their endings; nothing else is served.
const KINDS: [(&str, &str); 4] = [
    ("html", "text/html; charset=utf-8"),
    ("css", "text/css; charset=utf-8"),
    ("js", "text/javascript; charset=utf-8"),
    ("svg", "image/svg+xml"),
];
/// The headers of every answer: nothing is loaded from elsewhere, run inline, framed or sniffed.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// What the server needs.
#[derive(Debug)]
pub struct Studio {
    /// The running parts.
    pub stack: StudioStack,
    /// The styles that can be chosen.
    pub styles: Vec<Style>,
}

#[derive(Debug, Deserialize)]
struct Orders {
    orders: Vec<Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
struct Cancellation {
    id: i64,
}

#[derive(Debug, Deserialize)]
struct Switch {
    fault: FaultSwitch,
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
        .route("/previews/{id}/{number}", get(preview))
        .route("/sketches/{name}", get(sketch))
        .route("/api/events", get(events))
        .route("/api/tasks", post(publish))
        .route("/api/cancel", post(cancel))
        .route("/api/faults", post(switch))
        .route("/api/sketches", post(keep_sketch).layer(DefaultBodyLimit::max(SKETCH.max_image_bytes as usize)))
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
        Ok(content) => ([(header::CONTENT_TYPE, *kind)], content).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn picture(State(studio): State<Arc<Studio>>, Path(name): Path<String>) -> Response {
    image(studio.stack.tasks.gallery().picture(&name)).await
}

/// A picture that somebody chose to begin from.
async fn sketch(State(studio): State<Arc<Studio>>, Path(name): Path<String>) -> Response {
    image(studio.stack.tasks.gallery().sketch(&name)).await
}

async fn image(path: Option<PathBuf>) -> Response {
    let Some(path) = path else { return StatusCode::NOT_FOUND.into_response() };
    let kind = Format::of_path(&path).unwrap_or_default().content_type();
    match tokio::fs::read(path).await {
        Ok(content) => ([(header::CONTENT_TYPE, kind)], content).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

/// A picture of a painting that came with progress.
async fn preview(State(studio): State<Arc<Studio>>, Path((id, number)): Path<(i64, usize)>) -> Response {
    match studio.stack.tasks.preview(id, number) {
        Some(content) => ([(header::CONTENT_TYPE, Format::Jpeg.content_type())], content).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

/// The current state, then each change. A page that is too slow is cut off; it reconnects and gets everything again.
async fn events(State(studio): State<Arc<Studio>>) -> Sse<impl Stream<Item = Result<Event, axum::Error>>> {
    let (mut all, changes) = studio.stack.tasks.follow();
    all.data["styles"] = json!(studio.styles);
    all.data["schedulers"] = handler::task::schema()["properties"]["scheduler"]["enum"].clone();
    all.data["sketches"] = json!({ "max_bytes": SKETCH.max_image_bytes });
    all.data["settings"] = json!({ "relay": settings::RELAY, "function": settings::FUNCTION });
    let changes = stream::unfold(changes, async |mut changes| Some((changes.recv().await.ok()?, changes)));
    let event = |change: Change| Event::default().event(change.name).json_data(change.data);
    Sse::new(stream::iter([all]).chain(changes).map(event)).keep_alive(KeepAlive::default())
}

async fn publish(State(studio): State<Arc<Studio>>, Json(asked): Json<Orders>) -> Response {
    if asked.orders.len() > MAX_ORDERS {
        return (StatusCode::BAD_REQUEST, format!("at most {MAX_ORDERS} tasks at a time\n")).into_response();
    }
    let mut ids = Vec::new();
    for form in &asked.orders {
        match studio.stack.publish(form, &studio.styles).await {
            Ok(id) => ids.push(id),
            Err(error) => return (StatusCode::BAD_GATEWAY, format!("{error:#}\n")).into_response(),
        }
    }
    studio.stack.tasks.join(&ids);
    Json(json!({ "ids": ids })).into_response()
}

async fn cancel(State(studio): State<Arc<Studio>>, Json(asked): Json<Cancellation>) -> Response {
    let id = asked.id;
    match studio.stack.cancel(id).await {
        Ok(Cancel::Asked) => StatusCode::NO_CONTENT.into_response(),
        Ok(Cancel::Unknown) => (StatusCode::NOT_FOUND, format!("there is no task {id} in this run\n")).into_response(),
        Ok(Cancel::Ended) => (StatusCode::CONFLICT, format!("task {id} has ended already\n")).into_response(),
        Err(error) => (StatusCode::BAD_GATEWAY, format!("{error:#}\n")).into_response(),
    }
}

/// Keeps a picture to begin from, if the function will read it; gives its name. It is read as the function reads it, so that what is
/// refused is refused in the same words.
async fn keep_sketch(
    State(studio): State<Arc<Studio>>,
    headers: HeaderMap,
    content: Result<Bytes, BytesRejection>,
) -> Response {
    // A form of another page cannot send this type.
    if headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind != OCTETS) {
        return (StatusCode::UNSUPPORTED_MEDIA_TYPE, format!("a sketch comes as {OCTETS}\n")).into_response();
    }
    let content = match content {
        Ok(content) => content,
        Err(rejection) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            let most = SKETCH.max_image_bytes >> 20;
            let said = format!("the sketch has more than {most} MiB, which is the limit: save it smaller\n");
            return (rejection.status(), said).into_response();
        }
        Err(rejection) => return rejection.into_response(),
    };
    let gallery = studio.stack.tasks.gallery().clone();
    let keeping = tokio::task::spawn_blocking(move || {
        if let Err(error) = read_image(&content, SKETCH.max_image_pixels) {
            return Ok(Err(format!("the sketch {error}\n")));
        }
        let kind = image::guess_format(&content)?.to_mime_type();
        let format = Format::ALL.iter().find(|format| format.content_type() == kind).context("no format")?;
        anyhow::Ok(Ok(gallery.keep_sketch(&content, *format)?))
    });
    match keeping.await.map_err(Into::into).flatten() {
        Ok(Ok(name)) => Json(json!({ "name": name })).into_response(),
        Ok(Err(refused)) => (StatusCode::UNPROCESSABLE_ENTITY, refused).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

async fn switch(State(studio): State<Arc<Studio>>, Json(switch): Json<Switch>) -> StatusCode {
    studio.stack.faults.set(switch.fault, switch.on).await;
    StatusCode::NO_CONTENT
}

async fn read(State(studio): State<Arc<Studio>>, Path(name): Path<String>) -> Response {
    match gallery::read_picture(&studio.stack.run, studio.stack.tasks.gallery(), &name).await {
        Ok(said) => Json(said).into_response(),
        Err(error) => (StatusCode::NOT_FOUND, format!("{error:#}\n")).into_response(),
    }
}

/// The names under which the server may be reached.
#[derive(Debug, Clone)]
struct Names(Arc<[String; 2]>);

impl Names {
    fn of(addr: SocketAddr) -> Self {
        Self(Arc::new([addr.to_string(), format!("localhost:{}", addr.port())]))
    }

    /// Whether a request comes from a page of ours. Requests that change something must have an Origin header.
    fn allow(&self, method: &Method, headers: &HeaderMap) -> bool {
        let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let Some(host) = text(header::HOST).filter(|host| self.0.iter().any(|name| name == host)) else {
            return false;
        };
        match text(header::ORIGIN) {
            Some(origin) => origin.strip_prefix("http://") == Some(host),
            None => *method == Method::GET || *method == Method::HEAD,
        }
    }
}

/// Lets a request through, or answers 403.
async fn guard(State(names): State<Names>, request: Request, next: Next) -> Response {
    let mut response = if names.allow(request.method(), request.headers()) {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "this page is for 127.0.0.1 alone\n").into_response()
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_pages_at_our_own_address_are_served() {
        let names = Names::of(([127, 0, 0, 1], 80).into());
        let cases = [
            ("GET", "127.0.0.1:80", None, true),
            ("GET", "localhost:80", None, true),
            ("POST", "localhost:80", Some("http://localhost:80"), true),
            ("POST", "localhost:80", None, false),
            ("POST", "localhost:80", Some("http://127.0.0.1:80"), false),
            ("POST", "127.0.0.1:80", Some("null"), false),
            ("POST", "127.0.0.1:80", Some("https://127.0.0.1:80"), false),
            ("POST", "127.0.0.1:80", Some("http://evil.example"), false),
            ("GET", "127.0.0.1:80", Some("http://evil.example"), false),
            ("GET", "evil.example:80", None, false),
            ("GET", "127.0.0.1:81", None, false),
            ("GET", "", None, false),
        ];
        for (method, host, origin, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            let allowed = names.allow(&method.parse().unwrap(), &headers);
            assert_eq!(allowed, expected, "{method} {host} {origin:?}");
        }
        assert!(!names.allow(&Method::GET, &HeaderMap::new()));
    }
}
