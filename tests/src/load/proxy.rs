//! HTTP proxies in front of S3 and SQS by which a share of the requests meets with mishaps: throttled, carried out without an answer
//! in time, or answered late.

use crate::{
    entries::{self, Refused},
    mishap::{Extent, Mishap, Mishaps},
    proxy::{Proxy, Request, Target},
    sqs,
};
use anyhow::Result;
use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use std::sync::Arc;
use tokio::time::sleep;

const SLOW_DOWN: &str = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";
const INTERNAL: &str = "<Error><Code>InternalError</Code><Message>We encountered an internal error.</Message></Error>";
/// SQS says of throttled entries that the sender is at fault.
const THROTTLED: Refused = Refused { code: "RequestThrottled", sender_fault: true };
const TARGET: &str = "x-amz-target";

/// Whose answers they give.
#[derive(Debug, Clone, Copy)]
pub(super) enum Service {
    S3,
    Sqs,
}

/// Starts one in front of `target`, the address of a service.
pub(super) async fn start(service: Service, target: &str, mishaps: Arc<Mishaps>) -> Result<Proxy> {
    let target = Arc::new(Target::new(target)?);
    let pass = move |request| {
        let (target, mishaps) = (target.clone(), mishaps.clone());
        async move { service.pass(&target, mishaps.next(), request).await }
    };
    Proxy::start(pass).await
}

impl Service {
    async fn pass(self, target: &Target, mishap: Option<Mishap>, request: Request) -> Result<Response> {
        match mishap {
            Some(Mishap::Refusal(Extent::Entries)) if self.is_batch(&request) => {
                // At least the first, which may be the only one.
                return entries::withhold(target, request, THROTTLED, |index| index % 2 == 0).await;
            }
            Some(Mishap::Refusal(_)) => return Ok(self.throttled()),
            Some(Mishap::Stall(time)) => sleep(time).await,
            Some(Mishap::LostAnswer(_)) | None => {}
        }
        let connection = request.connection.clone();
        let answer = target.pass(request).await?;
        match mishap {
            Some(Mishap::LostAnswer(loss)) => Ok(loss.lose(&connection, self.internal(), answer).await),
            _ => Ok(answer),
        }
    }

    fn is_batch(self, request: &Request) -> bool {
        let target = request.headers.get(TARGET).and_then(|target| target.to_str().ok());
        matches!(self, Self::Sqs) && target.is_some_and(|target| target.ends_with("Batch"))
    }

    fn throttled(self) -> Response {
        match self {
            Self::S3 => (StatusCode::SERVICE_UNAVAILABLE, SLOW_DOWN).into_response(),
            Self::Sqs => sqs::throttled(),
        }
    }

    fn internal(self) -> Response {
        match self {
            Self::S3 => (StatusCode::INTERNAL_SERVER_ERROR, INTERNAL).into_response(),
            Self::Sqs => sqs::internal(),
        }
    }
}

#[cfg(test)]
mod tests;
