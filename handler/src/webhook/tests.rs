//! Retries, timeouts and addresses, with a backend on loopback.

use super::*;
use axum::{Router, http, response::IntoResponse};
use std::sync::{Arc, Mutex};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::oneshot,
    time::{Instant, timeout},
};

#[tokio::test]
async fn an_endless_answer_is_not_read() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let (dropped, was_dropped) = oneshot::channel();
    tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.read_buf(&mut Vec::with_capacity(4096)).await.unwrap();
        socket.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
        let chunk = [b"10000\r\n", [b'x'; 0x10000].as_slice(), b"\r\n"].concat();
        let mut sent = 0;
        while socket.write_all(&chunk).await.is_ok() {
            sent += chunk.len();
        }
        dropped.send(sent).unwrap();
    });
    let backend = backend();
    let started = Instant::now();
    backend.failed(&Subject::message(base, 1, "{}"), "CODE", "reason", 0, None).await.unwrap();
    assert!(started.elapsed() < WEBHOOK_TIMEOUT, "it waited for the end of the answer");
    let sent = timeout(WEBHOOK_TIMEOUT, was_dropped).await.expect("the connection is kept").unwrap();
    assert!(sent < 64 << 20, "{sent} bytes were taken");
}

#[test]
fn the_base_may_end_in_a_slash_or_have_a_path() {
    for (base, expected) in [
        ("http://b:8000", "http://b:8000/api/webhooks/inference/complete"),
        ("http://b:8000/", "http://b:8000/api/webhooks/inference/complete"),
        ("https://b/v2/", "https://b/v2/api/webhooks/inference/complete"),
    ] {
        assert_eq!(address(&Url::parse(base).unwrap(), "complete").as_str(), expected);
    }
}

/// A backend that answers with these statuses and Retry-After in turn, then with 200. Returns when it was called.
async fn receiver(answers: &'static [(u16, &'static str)]) -> (Url, Arc<Mutex<Vec<Instant>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let base = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let calls = Arc::new(Mutex::new(Vec::new()));
    let seen = calls.clone();
    let app = Router::new().fallback(move || async move {
        let mut seen = seen.lock().unwrap();
        seen.push(Instant::now());
        match answers.get(seen.len() - 1) {
            Some((status, wait)) => {
                let status = http::StatusCode::from_u16(*status).unwrap();
                (status, [(http::header::RETRY_AFTER, *wait)]).into_response()
            }
            None => ().into_response(),
        }
    });
    tokio::spawn(async move { axum::serve(listener, app).await });
    (base, calls)
}

fn backend() -> Backend {
    Backend::new("token".parse().unwrap(), WebhookSecrets::default(), Guard::new(&[], true)).unwrap()
}

#[tokio::test]
async fn a_backend_that_asks_for_time_gets_it() {
    let (base, calls) = receiver(&[(429, "1"), (503, "1")]).await;
    backend().failed(&Subject::message(base, 1, "{}"), "CODE", "reason", 0, None).await.unwrap();
    let calls = calls.lock().unwrap().clone();
    assert_eq!(calls.len(), 3);
    for pair in calls.windows(2) {
        let waited = pair[1] - pair[0];
        assert!(waited >= Duration::from_secs(1), "{waited:?}");
    }
}

#[tokio::test]
async fn longer_than_is_waited_here_and_the_error_says_how_long() {
    for (asked, deadline) in [("31", None), ("20", Some(std::time::Instant::now() + Duration::from_secs(21)))] {
        let (base, calls) = receiver(if asked == "31" { &[(429, "31")] } else { &[(429, "20")] }).await;
        let subject = Subject::message(base, 1, "{}");
        let error = backend().failed(&subject, "CODE", "reason", 0, deadline).await.unwrap_err();
        assert_eq!(error.retry_after(), asked.parse().ok().map(Duration::from_secs));
        assert_eq!(calls.lock().unwrap().len(), 1, "it was called again at once");
    }
}

#[tokio::test]
async fn no_wait_goes_on_beyond_the_deadline() {
    let (base, calls) = receiver(&[(500, ""), (500, "")]).await;
    let soon = Some(std::time::Instant::now() + Duration::from_secs(1));
    let error = backend().failed(&Subject::message(base, 1, "{}"), "CODE", "reason", 0, soon).await.unwrap_err();
    assert!(matches!(error, WebhookError::Refused { retry_after: None, .. }), "{error}");
    assert_eq!(calls.lock().unwrap().len(), 1);
}
