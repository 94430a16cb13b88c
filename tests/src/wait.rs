//! Waiting with a deadline. It polls only what offers no event, such as a port of another process.

use anyhow::{Result, bail};
use std::{
    future::Future,
    time::{Duration, Instant},
};

const INTERVAL: Duration = Duration::from_millis(25);

/// Polls `probe` until it gives a value.
///
/// # Errors
/// `what` did not happen in time.
pub async fn until<T>(what: &str, within: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(value) = probe().await {
            return Ok(value);
        }
        if started.elapsed() >= within {
            bail!("no {what} within {within:?}");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Waits for `future` at most `within`.
///
/// # Errors
/// `what` did not happen in time.
pub async fn at_most<T>(what: &str, within: Duration, future: impl Future<Output = T>) -> Result<T> {
    match tokio::time::timeout(within, future).await {
        Ok(value) => Ok(value),
        Err(_) => bail!("no {what} within {within:?}"),
    }
}
