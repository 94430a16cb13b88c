//! What the hub requires, and what it does wrong.

use axum::{
    body::{Body, Bytes},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use std::{collections::BTreeMap, io};

/// What the hub requires and does wrong.
#[derive(Debug, Default, Clone)]
pub struct Behavior {
    /// Who may read.
    pub access: Access,
    /// Files that break off after this many bytes, once each.
    pub cuts: BTreeMap<String, usize>,
    /// Files whose content does not match the listing.
    pub corrupted: Vec<String>,
    /// Files in whose place something else comes.
    pub replaced: BTreeMap<String, String>,
    /// Listed paths that do not exist.
    pub listed: Vec<String>,
    /// Files of one page of the listing; a thousand by default.
    pub page_size: Option<usize>,
    /// How often a signed address is refused as expired.
    pub expired: usize,
    /// Answers instead of the right ones, each for one request.
    pub faults: Vec<Fault>,
    /// Status and body of every answer.
    pub answer: Option<(u16, String)>,
}

/// Who may read the repository.
#[derive(Debug, Default, Clone)]
pub enum Access {
    /// Everybody.
    #[default]
    Public,
    /// Listings are open, files need this token, whose owner has accepted the conditions.
    Gated(String),
    /// Everything needs this token.
    Private(String),
}

/// An answer that is not the right one. With status 200 the connection ends after the body's first part.
#[derive(Debug, Clone, Default)]
pub struct Fault {
    /// A part of the path of the request that gets it.
    pub path: String,
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: Vec<(&'static str, String)>,
    /// Its body.
    pub body: String,
}

impl Behavior {
    /// The fault for that path, which is gone then.
    pub(super) fn fault(&mut self, path: &str) -> Option<Fault> {
        let found = self.faults.iter().position(|fault| path.contains(&fault.path))?;
        Some(self.faults.remove(found))
    }
}

impl Access {
    /// Status, `X-Error-Code` and `X-Error-Message` for a request with that `Authorization` header, if it is refused.
    pub(super) fn refusal(&self, given: Option<&str>, is_file: bool) -> Option<(u16, &'static str, String)> {
        let is = |token: &String| given == Some(format!("Bearer {token}").as_str());
        match (self, given) {
            (Self::Private(token) | Self::Gated(token), _) if is(token) => None,
            (Self::Public, _) => None,
            (Self::Gated(_), _) if !is_file => None,
            (Self::Gated(_), None) => Some((
                401,
                "GatedRepo",
                "Access to model easel/tiny is restricted. You must have access to it and be authenticated to access it."
                    .into(),
            )),
            (Self::Gated(_), Some(_)) => Some((
                403,
                "GatedRepo",
                "Access to model easel/tiny is restricted and you are not in the authorized list.".into(),
            )),
            (Self::Private(_), None) => Some((401, "RepoNotFound", "Invalid username or password.".into())),
            // This hub repeats the header, which no program may show.
            (Self::Private(_), Some(given)) => {
                Some((401, "", format!("Invalid credentials in Authorization header ({given})")))
            }
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let mut answer = Response::builder().status(self.status);
        for (name, value) in self.headers {
            answer = answer.header(name, value);
        }
        let body = match self.status {
            200 => cut(self.body.into()),
            _ => self.body.into(),
        };
        answer.body(body).unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
    }
}

/// A body whose connection ends after this part of it.
pub(super) fn cut(part: Bytes) -> Body {
    // The part is sent before the error.
    let end = stream::once(async {
        tokio::task::yield_now().await;
        Err(io::Error::from(io::ErrorKind::ConnectionReset))
    });
    Body::from_stream(stream::iter([Ok(part)]).chain(end))
}
