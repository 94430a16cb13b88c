use super::*;
use aws_sdk_s3::config::{BehaviorVersion, Config, Region, retry::RetryConfig};
use std::sync::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// A bucket that answers with these in turn, and then with the last one for ever; and the requests it got.
async fn bucket(answers: &'static [&'static str]) -> (Claims, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let requests = Arc::new(Mutex::new(vec![]));
    let log = requests.clone();
    tokio::spawn(async move {
        for number in 0.. {
            let (mut stream, _) = listener.accept().await.unwrap();
            let (mut head, mut buffer) = (vec![], [0; 4096]);
            while !head.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
                let count = stream.read(&mut buffer).await.unwrap();
                head.extend_from_slice(&buffer[..count]);
            }
            let head = String::from_utf8_lossy(&head).to_lowercase();
            let condition = head.lines().find(|line| line.starts_with("if-")).unwrap_or_default().to_owned();
            log.lock().unwrap().push(format!("{} {condition}", &head[..head.find(' ').unwrap()]));
            let answer: &str = answers[answers.len().min(number + 1) - 1];
            let answer = format!("HTTP/1.1 {answer}\r\nconnection: close\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    });
    let config = Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .endpoint_url(url)
        .force_path_style(true)
        .allow_no_auth()
        .retry_config(RetryConfig::disabled())
        .build();
    (Claims::new(Client::from_conf(config), "pictures".into(), Duration::from_secs(60)), requests)
}

const WRITTEN: &str = "200 OK\r\netag: \"1\"\r\ncontent-length: 0";
const HELD: &str = "412 Precondition Failed\r\ncontent-length: 0";
const GONE: &str = "404 Not Found\r\ncontent-length: 0";
const OLD: &str = "200 OK\r\netag: \"old\"\r\nlast-modified: Wed, 01 Jan 2020 00:00:00 GMT\r\ncontent-length: 0";

#[tokio::test]
async fn a_bucket_that_takes_no_claims_costs_one_request_and_no_task() {
    for refusal in ["501 Not Implemented", "403 Forbidden", "400 Bad Request", "405 Method Not Allowed"] {
        let answer: &'static str = format!("{refusal}\r\ncontent-length: 0").leak();
        let (claims, requests) = bucket(vec![answer].leak()).await;
        for _ in 0..2 {
            claims.take(1).await.unwrap().release().await;
        }
        assert_eq!(*requests.lock().unwrap(), ["put if-none-match: *"], "{refusal}");
    }
}

#[tokio::test]
async fn a_bucket_that_does_not_answer_is_an_error() {
    let (claims, _) = bucket(&["503 Slow Down\r\ncontent-length: 0"]).await;
    assert!(claims.take(1).await.is_err());
}

#[tokio::test]
async fn a_claim_is_put_and_deleted() {
    let (claims, requests) = bucket(&[WRITTEN]).await;
    claims.take(1).await.unwrap().release().await;
    assert_eq!(*requests.lock().unwrap(), ["put if-none-match: *", "delete "]);
}

#[tokio::test]
async fn one_that_was_not_renewed_is_taken_over_by_its_tag() {
    let (claims, requests) = bucket(&[HELD, OLD, WRITTEN]).await;
    claims.take(1).await.unwrap().release().await;
    let expected = ["put if-none-match: *", "head ", "put if-match: \"old\"", "delete "];
    assert_eq!(*requests.lock().unwrap(), expected);
}

#[tokio::test]
async fn one_that_is_let_go_of_meanwhile_is_free() {
    let (claims, requests) = bucket(&[HELD, GONE, WRITTEN]).await;
    claims.take(1).await.unwrap().release().await;
    let expected = ["put if-none-match: *", "head ", "put if-none-match: *", "delete "];
    assert_eq!(*requests.lock().unwrap(), expected);
}
