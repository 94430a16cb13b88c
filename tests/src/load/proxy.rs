//! An HTTP proxy in front of S3 by which a share of the requests is answered 503, whether taken or not, or late.

use crate::{
    mishap::{Mishap, Mishaps},
    proxy::{Proxy, Request, Target},
};
use anyhow::Result;
use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use std::sync::Arc;
use tokio::time::sleep;

const SLOW_DOWN: &str = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>";

/// Starts one in front of `target`, the address of an S3.
pub(super) async fn start(target: &str, mishaps: Arc<Mishaps>) -> Result<Proxy> {
    let target = Arc::new(Target::new(target)?);
    let pass = move |request| {
        let (target, mishaps) = (target.clone(), mishaps.clone());
        async move { pass(&target, mishaps.next(), request).await }
    };
    Proxy::start(pass).await
}

/// An S3 that cannot be reached is S3's answer too: the handler has to live with it.
async fn pass(target: &Target, mishap: Option<Mishap>, request: Request) -> Result<Response> {
    let slow_down = || (StatusCode::SERVICE_UNAVAILABLE, SLOW_DOWN).into_response();
    match mishap {
        Some(Mishap::Refusal) => return Ok(slow_down()),
        Some(Mishap::Stall(time)) => sleep(time).await,
        Some(Mishap::LostAnswer) | None => {}
    }
    let answer = target.pass(request).await;
    if matches!(mishap, Some(Mishap::LostAnswer)) { Ok(slow_down()) } else { answer }
}
