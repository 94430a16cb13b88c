//! Time stamps (RFC 3161) of credentials. The library makes the request and checks the answer; this carries both. Follows no
//! redirect and reads no more than it must.

use c2pa::{
    Context,
    crypto::time_stamp::{default_rfc3161_message, default_rfc3161_request},
    http::{
        HttpResolverError, SyncHttpResolver,
        http::{Request, Response},
    },
};
use reqwest::{header::CONTENT_TYPE, redirect::Policy};
use std::{
    error::Error,
    io::{self, Cursor, Read},
    thread,
    time::Duration,
};
use tokio::runtime;
use url::Url;

/// Room for a stamp, with the certificates of its authority.
pub(super) const MOST_BYTES: usize = 10_000;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Who stamps.
pub(super) struct Authority {
    url: Url,
    context: Context,
}

impl Authority {
    pub(super) fn new(url: Url) -> Self {
        Self { url, context: Context::new().with_resolver(Carrier) }
    }

    /// Asks for the stamp of a message.
    pub(super) fn stamp(&self, message: &[u8]) -> c2pa::Result<Vec<u8>> {
        let body = default_rfc3161_message(message)?;
        Ok(default_rfc3161_request(self.url.as_str(), None, &body, message, &self.context)?)
    }
}

/// Sends a request from a thread of its own: the caller's belongs to a runtime, or to none.
struct Carrier;

impl SyncHttpResolver for Carrier {
    fn http_resolve(&self, request: Request<Vec<u8>>) -> Result<Response<Box<dyn Read>>, HttpResolverError> {
        let answered = thread::scope(|scope| scope.spawn(|| send(request)).join());
        let answer = answered.map_err(|_| io::Error::other("the request broke off"))?;
        let answer = answer.map_err(|error| {
            io::Error::other(format!(
                "no stamp from --credential-time-stamp-url (EASEL_CREDENTIAL_TIME_STAMP_URL): {error}"
            ))
        })?;
        Ok(answer.map(|bytes| Box::new(Cursor::new(bytes)) as Box<dyn Read>))
    }
}

fn send(request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, Box<dyn Error + Send + Sync>> {
    let client = reqwest::Client::builder().redirect(Policy::none()).timeout(TIMEOUT).build()?;
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut answer = client.execute(request.try_into()?).await.map_err(reqwest::Error::without_url)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            if bytes.len() + chunk.len() > MOST_BYTES {
                return Err(format!("the answer has more than {MOST_BYTES} bytes").into());
            }
            bytes.extend_from_slice(&chunk);
        }
        let head = Response::builder().status(answer.status());
        let kind = answer.headers().get(CONTENT_TYPE).into_iter();
        Ok(kind.fold(head, |head, kind| head.header(CONTENT_TYPE, kind)).body(bytes)?)
    })
}
