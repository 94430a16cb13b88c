//! Whether a backend can be reached, for `handler doctor`. Refuses to tell it anything: no token goes there, and no
//! event.

use super::{WebhookError, client, error::unanswered};
use crate::webhook::network::Guard;
use reqwest::StatusCode;
use url::Url;

/// Where it goes wrong.
const PATH: &str = "address";

/// Asks for the headers of a backend's address, under the rules of every webhook. Any answer is one.
///
/// # Errors
/// It may not be called, or does not answer.
pub(crate) async fn probe(guard: &Guard, url: &Url) -> Result<StatusCode, WebhookError> {
    guard.check_ahead(url).await.map_err(|refused| WebhookError::Forbidden { path: PATH, refused })?;
    let asked = async { client(guard)?.head(url.clone()).send().await };
    Ok(asked.await.map_err(|error| unanswered(PATH, error))?.status())
}
