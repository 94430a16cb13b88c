//! Why a webhook was not delivered. Refuses to hold the token, or the address that a message chose.

use crate::webhook::network::Refused;
use reqwest::StatusCode;
use std::time::Duration;

/// Why a webhook was not delivered. Never holds the token.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// No answer: try again later.
    #[error("webhook {path}: {source}")]
    Unreachable {
        /// Which webhook.
        path: &'static str,
        /// What the client said.
        source: reqwest::Error,
    },
    /// It may not be called, and trying again would change nothing.
    #[error("webhook {path}: {refused}")]
    Forbidden {
        /// Which webhook.
        path: &'static str,
        /// Why.
        refused: Refused,
    },
    /// The backend answered, with 409 or 410, that it does not want to hear of this picture. Not retried.
    #[error("webhook {path}: the backend does not want it: {status}")]
    Unwanted {
        /// Which webhook.
        path: &'static str,
        /// Its answer.
        status: StatusCode,
    },
    /// The backend answered that it did not take it. Retried too: it may be starting or overloaded.
    #[error("webhook {path}: the backend answered {status}")]
    Refused {
        /// Which webhook.
        path: &'static str,
        /// Its answer.
        status: StatusCode,
        /// How long it asks not to be called, by Retry-After.
        retry_after: Option<Duration>,
    },
}

impl WebhookError {
    /// How long the backend asks not to be called.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            Self::Unreachable { .. } | Self::Forbidden { .. } | Self::Unwanted { .. } => None,
        }
    }

    /// A word for each.
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
    let refused = service::chain(&error).find_map(|cause| cause.downcast_ref::<Refused>()).copied();
    match refused {
        Some(refused) => WebhookError::Forbidden { path, refused },
        None => WebhookError::Unreachable { path, source: error.without_url() },
    }
}
