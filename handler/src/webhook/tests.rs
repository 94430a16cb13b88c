//! Answers and addresses.

use super::*;
use crate::config::SafetyConfig;
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
    let guard = Guard::new(&SafetyConfig { allow_private_webhooks: true, ..SafetyConfig::default() });
    let secrets = Secrets { token: "token".parse().unwrap(), signing: WebhookSecrets::default(), credential: None };
    let backend = Backend::new(secrets, guard).unwrap();
    let told = Instant::now();
    backend.failed(&Subject::message(base, 1, "{}"), "CODE", "reason", 0).await.unwrap();
    assert!(told.elapsed() < WEBHOOK_TIMEOUT, "it waited for the end of the answer");
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
