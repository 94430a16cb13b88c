//! Signals. The first SIGTERM or SIGINT asks the process to finish its work; the second one ends it at once.

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};
use std::{
    io,
    sync::{Arc, OnceLock, atomic::AtomicBool},
    time::Instant,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Exit code of a process that a signal ended is this plus the signal's number.
const SIGNAL_EXIT_BASE: i32 = 128;

/// When the first signal came, once it has.
pub type Asked = Arc<OnceLock<Instant>>;

/// Starts to listen. The first signal cancels the token and sets `asked`; the second ends the process with 128 plus its
/// number. `finishing` is what the log says is done between the two.
///
/// # Errors
/// The operating system installs no signal handler.
pub fn on_signal(asked: &Asked, finishing: &'static str) -> io::Result<CancellationToken> {
    let seen = Arc::new(AtomicBool::new(false));
    for number in [SIGTERM, SIGINT] {
        // In the signal handler itself, because the runtime may be gone, or wait for a thread that hangs. The order
        // matters: the shutdown, registered first, sees only the flag of an earlier signal.
        flag::register_conditional_shutdown(number, SIGNAL_EXIT_BASE + number, seen.clone())?;
        flag::register(number, seen.clone())?;
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (token, asked) = (CancellationToken::new(), asked.clone());
    let shutdown = token.clone();
    tokio::spawn(async move {
        let first = tokio::select! { _ = terminate.recv() => SIGTERM, _ = interrupt.recv() => SIGINT };
        asked.get_or_init(Instant::now);
        info!(signal = first, "shutting down: {finishing} first; a second signal ends the process at once");
        shutdown.cancel();
    });
    Ok(token)
}
