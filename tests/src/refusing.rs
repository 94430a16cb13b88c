//! A reverse proxy in front of S3 and SQS that answers requests itself where a rule says so, in the form of an error of theirs.

use crate::proxy::{Proxy, Target};
use anyhow::Result;
use axum::{
    http::{HeaderMap, Method, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde_json::json;
use std::sync::{Arc, Mutex, PoisonError};

/// What of a request a rule sees.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path, as it stands in the address.
    pub path: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
}

type Rule = Box<dyn Fn(&Asked<'_>) -> Option<Response> + Send>;

/// The proxy. It ends when this is dropped.
pub struct Refusing {
    proxy: Proxy,
    rule: Arc<Mutex<Option<Rule>>>,
}

impl Refusing {
    /// Starts it in front of `target`; all passes.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(target: &str) -> Result<Self> {
        let (target, rule) = (Arc::new(Target::new(target)?), Arc::new(Mutex::new(None::<Rule>)));
        let shared = rule.clone();
        let proxy = Proxy::start(move |request| {
            let (target, shared) = (target.clone(), shared.clone());
            async move {
                let asked = Asked { method: &request.method, path: request.uri.path(), headers: &request.headers };
                let answer =
                    shared.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(|rule| rule(&asked));
                match answer {
                    Some(answer) => Ok(answer),
                    None => target.pass(request).await,
                }
            }
        });
        Ok(Self { proxy: proxy.await?, rule })
    }

    /// Its address.
    pub fn url(&self) -> String {
        self.proxy.url()
    }

    /// From now on `rule` answers what it wants to.
    pub fn answer(&self, rule: impl Fn(&Asked<'_>) -> Option<Response> + Send + 'static) {
        *self.rule.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(rule));
    }

    /// From now on all passes.
    pub fn pass(&self) {
        *self.rule.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Asked<'_> {
    /// The operation of SQS that is asked for.
    pub fn operation(&self) -> Option<&str> {
        self.headers.get("x-amz-target")?.to_str().ok()?.strip_prefix("AmazonSQS.")
    }

    /// Whether it is signed for this region.
    pub fn is_signed_for(&self, region: &str) -> bool {
        let signature = self.headers.get("authorization").and_then(|value| value.to_str().ok());
        signature.is_some_and(|signature| signature.contains(&format!("/{region}/")))
    }
}

/// An error as S3 writes it, which repeats what it was sent. The answer to `HEAD` has no body.
pub fn s3_error(status: u16, code: &str, repeated: &str) -> Response {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>The provided token {repeated} is \
         refused.</Message><Token-0>{repeated}</Token-0><AWSAccessKeyId>{repeated}</AWSAccessKeyId>\
         <RequestId>1</RequestId></Error>"
    );
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    (status, [(CONTENT_TYPE, "application/xml")], body).into_response()
}

/// An error as SQS writes it.
pub fn sqs_error(status: u16, code: &str, repeated: &str) -> Response {
    let body = json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": format!("{repeated} is refused") });
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    (status, [(CONTENT_TYPE, "application/x-amz-json-1.0")], body.to_string()).into_response()
}
