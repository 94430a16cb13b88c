//! A fake S3 with one bucket on loopback, for tests. It injects faults: lost or late answers, broken connections and errors.

use aws_sdk_s3::{
    Client,
    config::{BehaviorVersion, Config, Credentials, Region, retry::RetryConfig},
    primitives::{DateTime, DateTimeFormat},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::sleep,
};

/// Part of every error body, as S3's own repeat tokens. It must not appear in our errors.
pub(crate) const SECRET: &str = "zebrafinch";
pub(crate) const HOME_REGION: &str = "us-east-1";
/// The metadata that it keeps.
const METADATA: [&str; 3] = ["x-amz-meta-easel-fingerprint", "x-amz-meta-easel-safety", "x-amz-meta-easel-nsfw"];

/// A fault of one request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RequestFault {
    /// The request is executed, and answered with 500.
    Lost,
    /// The request is executed, and the connection closed without an answer.
    Reset,
    /// The request is executed, and answered after this time.
    Late(Duration),
    /// The request is not executed; status and error code.
    Refused(u16, &'static str),
}

#[derive(Debug, Clone)]
pub(crate) struct FakeBucket {
    url: String,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    objects: BTreeMap<String, Object>,
    writes: u64,
    /// Method, end of the path, fault, and how many requests.
    faults: Vec<(&'static str, &'static str, RequestFault, usize)>,
    region: Option<&'static str>,
    ignores_range: bool,
    requests: Vec<String>,
}

#[derive(Debug, Clone)]
struct Object {
    body: String,
    tag: String,
    modified: SystemTime,
    metadata: Vec<(&'static str, String)>,
}

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: String,
}

struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: String,
}

impl FakeBucket {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bucket = Self { url: format!("http://{}", listener.local_addr().unwrap()), shared: Arc::default() };
        let server = bucket.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let server = server.clone();
                tokio::spawn(async move { server.serve(stream).await });
            }
        });
        bucket
    }

    /// A client with the program's retries and shorter waits.
    pub(crate) fn client(&self) -> Client {
        let config = Config::builder()
            .http_client(settings::aws_http_client())
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new(HOME_REGION))
            .endpoint_url(&self.url)
            .force_path_style(true)
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .retry_config(RetryConfig::standard().with_initial_backoff(Duration::from_millis(5)));
        Client::from_conf(config.build())
    }

    /// Injects a fault into the next `times` requests of this method to paths with this ending.
    pub(crate) fn fail(&self, method: &'static str, ending: &'static str, fault: RequestFault, times: usize) {
        self.shared().faults.push((method, ending, fault, times));
    }

    /// Moves the bucket to another region.
    pub(crate) fn move_to(&self, region: &'static str) {
        self.shared().region = Some(region);
    }

    /// From now on Range is ignored.
    pub(crate) fn ignore_ranges(&self) {
        self.shared().ignores_range = true;
    }

    pub(crate) fn put(&self, key: &str, body: &str) {
        self.shared().put(key, body.to_string(), Vec::new());
    }

    /// Moves an object's modification time into the past.
    pub(crate) fn age(&self, key: &str, by: Duration) {
        if let Some(object) = self.shared().objects.get_mut(key) {
            object.modified -= by;
        }
    }

    pub(crate) fn remove(&self, key: &str) {
        self.shared().objects.remove(key);
    }

    pub(crate) fn body(&self, key: &str) -> Option<String> {
        self.shared().objects.get(key).map(|object| object.body.clone())
    }

    /// Method, path and condition of each request since the last call.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.shared().requests)
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }

    async fn serve(&self, mut stream: TcpStream) {
        let Some(request) = read(&mut stream).await else { return };
        let is_head = request.method == "HEAD";
        let fault = self.shared().record(&request);
        let answer = match fault {
            Some(RequestFault::Refused(status, code)) => error(status, code),
            fault => {
                let answer = self.shared().answer(&request);
                match fault {
                    Some(RequestFault::Reset) => return,
                    Some(RequestFault::Lost) => error(500, "InternalError"),
                    Some(RequestFault::Late(time)) => {
                        sleep(time).await;
                        answer
                    }
                    _ => answer,
                }
            }
        };
        let length = answer.body.len();
        let mut text = format!("HTTP/1.1 {} -\r\nconnection: close\r\n", answer.status);
        let date = DateTime::from(SystemTime::now()).fmt(DateTimeFormat::HttpDate).unwrap();
        text += &format!("date: {date}\r\ncontent-length: {length}\r\n");
        answer.headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
        text += "\r\n";
        text += if is_head { "" } else { &answer.body };
        // The client may have given up.
        let _ = stream.write_all(text.as_bytes()).await;
    }
}

impl Shared {
    fn record(&mut self, request: &Request) -> Option<RequestFault> {
        let condition = ["if-none-match", "if-match"].into_iter().find_map(|name| {
            let value = request.headers.get(name)?;
            Some(format!(" {name}: {value}"))
        });
        self.requests.push(format!("{} {}{}", request.method, request.path, condition.unwrap_or_default()));
        let fault = self.faults.iter_mut().find(|(method, ending, _, times)| {
            *times > 0 && request.method == *method && request.path.ends_with(ending)
        })?;
        fault.3 -= 1;
        Some(fault.2)
    }

    fn put(&mut self, key: &str, body: String, metadata: Vec<(&'static str, String)>) -> String {
        self.writes += 1;
        let tag = format!("\"{}\"", self.writes);
        let object = Object { body, tag: tag.clone(), modified: SystemTime::now(), metadata };
        self.objects.insert(key.to_string(), object);
        tag
    }

    fn answer(&mut self, request: &Request) -> Answer {
        if let Some(region) = self.region
            && !request.headers.get("authorization").is_some_and(|scope| scope.contains(&format!("/{region}/s3/")))
        {
            let status = if request.method == "HEAD" { 400 } else { 301 };
            let mut answer = error(status, "PermanentRedirect");
            answer.headers.push(("x-amz-bucket-region", region.into()));
            return answer;
        }
        let key = request.path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key).to_string();
        let there = self.objects.get(&key).cloned();
        let wanted = |name: &str| request.headers.get(name).map(String::as_str);
        let (absent, unchanged) = (wanted("if-none-match") == Some("*"), wanted("if-match"));
        match (request.method.as_str(), there) {
            ("PUT", Some(_)) if absent => error(412, "PreconditionFailed"),
            ("PUT", None) if unchanged.is_some() => error(404, "NoSuchKey"),
            ("PUT" | "DELETE" | "GET", Some(object)) if unchanged.is_some_and(|tag| tag != object.tag) => {
                error(412, "PreconditionFailed")
            }
            ("DELETE", None) if unchanged.is_some() => error(412, "PreconditionFailed"),
            ("PUT", _) => {
                let sent = |name| request.headers.get(name).map(|value: &String| (name, value.clone()));
                let tag = self.put(&key, request.body.clone(), METADATA.into_iter().filter_map(sent).collect());
                Answer { status: 200, headers: vec![("etag", tag)], body: String::new() }
            }
            ("DELETE", _) => {
                self.objects.remove(&key);
                Answer { status: 204, headers: vec![], body: String::new() }
            }
            (_, None) => error(404, "NoSuchKey"),
            (_, Some(object)) => self.read(request, object),
        }
    }

    fn read(&self, request: &Request, object: Object) -> Answer {
        let modified = DateTime::from(object.modified).fmt(DateTimeFormat::HttpDate).unwrap();
        let mut headers = vec![("etag", object.tag), ("last-modified", modified)];
        headers.extend(object.metadata);
        let range = request.headers.get("range").filter(|_| !self.ignores_range);
        let Some(range) = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) else {
            return Answer { status: 200, headers, body: object.body };
        };
        let (first, last): (usize, usize) = (range.0.parse().unwrap(), range.1.parse().unwrap());
        let last = last.min(object.body.len() - 1);
        headers.push(("content-range", format!("bytes {first}-{last}/{}", object.body.len())));
        Answer { status: 206, headers, body: object.body[first..=last].to_string() }
    }
}

fn error(status: u16, code: &str) -> Answer {
    let body = match code {
        "" => String::new(),
        code => {
            format!("<Error><Code>{code}</Code><Message>said {SECRET}</Message><Token-0>{SECRET}</Token-0></Error>")
        }
    };
    Answer { status, headers: vec![], body }
}

async fn read(stream: &mut TcpStream) -> Option<Request> {
    let (mut bytes, mut buffer) = (vec![], [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let mut lines = head.lines();
            let mut words = lines.next()?.split(' ');
            let (method, path) = (words.next()?.to_string(), words.next()?);
            let path = path.split('?').next().unwrap_or_default().to_string();
            let headers: BTreeMap<_, _> = lines
                .filter_map(|line| line.split_once(": "))
                .map(|(name, value)| (name.to_lowercase(), value.to_string()))
                .collect();
            let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            if body.len() >= length {
                return Some(Request { method, path, headers, body: body.to_string() });
            }
        }
        match stream.read(&mut buffer).await {
            Ok(count) if count > 0 => bytes.extend_from_slice(&buffer[..count]),
            _ => return None,
        }
    }
}
