//! HTTP proxies in front of S3 and SQS that inject faults into a share of the requests: throttling, lost answers, late answers.

use crate::{
    fault_injection::{Extent, FaultInjector, RequestFault},
    http_proxy::{HttpProxy, RefusedEntry, Request, Target, withhold},
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
/// SQS reports throttled entries with `SenderFault` true.
const THROTTLED: RefusedEntry = RefusedEntry { code: "RequestThrottled", sender_fault: true };
const TARGET: &str = "x-amz-target";

/// The service whose errors a proxy imitates.
#[derive(Debug, Clone, Copy)]
pub(super) enum Service {
    S3,
    Sqs,
}

/// Starts one in front of `target`, the address of a service.
pub(super) async fn start(service: Service, target: &str, injector: Arc<FaultInjector>) -> Result<HttpProxy> {
    let target = Arc::new(Target::new(target)?);
    let pass = move |request| {
        let (target, injector) = (target.clone(), injector.clone());
        async move { service.pass(&target, injector.next(), request).await }
    };
    HttpProxy::start(pass).await
}

impl Service {
    async fn pass(self, target: &Target, fault: Option<RequestFault>, request: Request) -> Result<Response> {
        match fault {
            Some(RequestFault::Refuse(Extent::Entries)) if self.is_batch(&request) => {
                // The first at least, which may be the only one.
                return withhold(target, request, THROTTLED, |index| index % 2 == 0).await;
            }
            Some(RequestFault::Refuse(_)) => return Ok(self.throttled()),
            Some(RequestFault::Stall(time)) => sleep(time).await,
            Some(RequestFault::LostAnswer(_)) | None => {}
        }
        let connection = request.connection.clone();
        let answer = target.pass(request).await?;
        match fault {
            Some(RequestFault::LostAnswer(loss)) => Ok(loss.lose(&connection, self.internal(), answer).await),
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
mod tests {
    use super::*;
    use crate::{connection::Connection, fault_injection::Loss};
    use axum::body::Body;
    use serde_json::{Value, json};
    use std::{
        sync::Mutex,
        time::{Duration, Instant},
    };

    const LATE: Duration = Duration::from_millis(200);

    /// A service that reports every entry as done, and the requests that it got.
    struct Real {
        bodies: Arc<Mutex<Vec<Value>>>,
        proxy: HttpProxy,
    }

    async fn real() -> Result<Real> {
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let log = bodies.clone();
        let proxy = HttpProxy::start(move |request: Request| {
            let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
            log.lock().unwrap().push(body.clone());
            let done: Vec<Value> =
                body["Entries"].as_array().into_iter().flatten().map(|entry| entry["Id"].clone()).collect();
            async move { Ok(axum::Json(json!({ "Successful": done })).into_response()) }
        });
        Ok(Real { bodies, proxy: proxy.await? })
    }

    /// One request through a proxy that injects this fault: what the client and the service saw.
    async fn ask(
        service: Service,
        fault: Option<RequestFault>,
        entries: usize,
    ) -> Result<(reqwest::Result<(u16, String)>, Vec<Value>)> {
        let real = real().await?;
        let target = Arc::new(Target::new(&real.proxy.url())?);
        let proxy = HttpProxy::start(move |request| {
            let target = target.clone();
            async move { service.pass(&target, fault, request).await }
        });
        let proxy = proxy.await?;
        let entries: Vec<Value> = (0..entries).map(|id| json!({ "Id": id })).collect();
        let body = json!({ "Entries": entries }).to_string();
        let http = crate::http_client()?;
        let sent = http.post(proxy.url()).header(TARGET, "AmazonSQS.DeleteMessageBatch").body(body).send().await;
        let answer = match sent {
            Ok(answer) => Ok((answer.status().as_u16(), answer.text().await?)),
            Err(error) => Err(error),
        };
        let bodies = real.bodies.lock().unwrap().clone();
        Ok((answer, bodies))
    }

    #[tokio::test]
    async fn a_throttled_request_does_not_reach_the_service() -> Result<()> {
        for (service, status, code) in [(Service::S3, 503, "SlowDown"), (Service::Sqs, 400, "RequestThrottled")] {
            let (answer, bodies) = ask(service, Some(RequestFault::Refuse(Extent::Whole)), 1).await?;
            let (answered, text) = answer?;
            assert_eq!((answered, text.contains(code), bodies.len()), (status, true, 0), "{text}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn throttled_entries_are_the_senders_fault_and_the_others_are_carried_out() -> Result<()> {
        let throttled =
            |id| json!({ "Id": id, "Code": "RequestThrottled", "Message": "RequestThrottled", "SenderFault": true });
        let part = Some(RequestFault::Refuse(Extent::Entries));
        let (answer, bodies) = ask(Service::Sqs, part, 3).await?;
        let answer: Value = serde_json::from_str(&answer?.1)?;
        assert_eq!(answer, json!({ "Successful": [1], "Failed": [throttled(0), throttled(2)] }));
        assert_eq!(bodies, [json!({ "Entries": [{ "Id": 1 }] })]);
        let (answer, bodies) = ask(Service::Sqs, part, 1).await?;
        let answer: Value = serde_json::from_str(&answer?.1)?;
        assert_eq!((answer, bodies.len()), (json!({ "Successful": [], "Failed": [throttled(0)] }), 0));
        let (answer, bodies) = ask(Service::S3, part, 1).await?;
        assert_eq!((answer?.0, bodies.len()), (503, 0), "S3 has no entries");
        Ok(())
    }

    #[tokio::test]
    async fn a_request_that_loses_its_answer_is_carried_out() -> Result<()> {
        for (service, code) in [(Service::S3, "InternalError"), (Service::Sqs, "InternalFailure")] {
            let (answer, bodies) = ask(service, Some(RequestFault::LostAnswer(Loss::ServerError)), 1).await?;
            let (status, text) = answer?;
            assert_eq!((status, text.contains(code), bodies.len()), (500, true, 1), "{text}");
            let (answer, bodies) = ask(service, Some(RequestFault::LostAnswer(Loss::Reset)), 1).await?;
            assert_eq!((answer.is_err(), bodies.len()), (true, 1));
            for slow in [RequestFault::LostAnswer(Loss::Late(LATE)), RequestFault::Stall(LATE)] {
                let clock = Instant::now();
                let (answer, bodies) = ask(service, Some(slow), 1).await?;
                assert_eq!((answer?.0, bodies.len(), clock.elapsed() >= LATE), (200, 1, true), "{slow:?}");
            }
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_connection_that_is_reset_has_no_orderly_end() -> Result<()> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let proxy = HttpProxy::start(|request: Request| {
            let connection: Connection = request.connection;
            connection.reset();
            async { Ok(Response::new(Body::from("nobody reads this"))) }
        });
        let proxy = proxy.await?;
        let address = proxy.url().replace("http://", "");
        let mut client = tokio::net::TcpStream::connect(address).await?;
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        let read = client.read(&mut [0; 64]).await;
        assert_eq!(read.err().map(|error| error.kind()), Some(std::io::ErrorKind::ConnectionReset));
        Ok(())
    }
}
