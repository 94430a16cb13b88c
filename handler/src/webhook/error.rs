//! Why a webhook was not delivered. No error holds the token, or the address that a message chose.

use crate::webhook::network::Refused;
use reqwest::StatusCode;
use std::{error::Error, time::Duration};

/// Why a webhook was not delivered.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// No answer. Retried.
    #[error("webhook {path}: {source}")]
    Unreachable {
        /// Which webhook.
        path: &'static str,
        /// The client's error.
        source: reqwest::Error,
    },
    /// The address may not be called. Not retried.
    #[error("webhook {path}: {refused}")]
    Forbidden {
        /// Which webhook.
        path: &'static str,
        /// Why.
        refused: Refused,
    },
    /// The backend answered 409 or 410: it does not want this picture any more. Not retried.
    #[error("webhook {path}: the backend does not want it: {status}")]
    Unwanted {
        /// Which webhook.
        path: &'static str,
        /// Its status.
        status: StatusCode,
    },
    /// The backend answered with another error. Retried: it may be starting or overloaded.
    #[error("webhook {path}: the backend answered {status}")]
    Refused {
        /// Which webhook.
        path: &'static str,
        /// Its status.
        status: StatusCode,
        /// Wait that it asks for by Retry-After.
        retry_after: Option<Duration>,
    },
}

impl WebhookError {
    /// Wait that the backend asks for by Retry-After.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Unreachable { .. } | Self::Forbidden { .. } | Self::Unwanted { .. } => None,
        }
    }

    /// The error's name in traces.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Forbidden { .. } => "forbidden",
            Self::Refused { .. } => "refused",
            Self::Unwanted { .. } => "unwanted",
        }
    }
}

/// Why there is no answer. What the guard refused comes back inside the client's error.
pub(super) fn unanswered(path: &'static str, error: reqwest::Error) -> WebhookError {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(refused) = inner.downcast_ref::<Refused>() {
            return WebhookError::Forbidden { path, refused: *refused };
        }
        cause = inner.source();
    }
    WebhookError::Unreachable { path, source: error.without_url() }
}
