//! When the process is told to end: the first signal asks it to, and whoever holds tasks finishes them; the second one ends it at once.

use signal_hook::{
    consts::{SIGINT, SIGTERM},
    flag,
};
use std::{
    io,
    sync::{Arc, atomic::AtomicBool},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Exit code of a process that is ended by a signal, but for the signal's number.
const SIGNAL_EXIT_BASE: i32 = 128;

/// A token that is cancelled by the first SIGTERM or SIGINT. From here on that one does not end the process by itself.
///
/// # Errors
/// The system refuses.
pub fn on_signal() -> io::Result<CancellationToken> {
    let asked = Arc::new(AtomicBool::new(false));
    for number in [SIGTERM, SIGINT] {
        // In the signal handler itself, and in this order: the runtime may be at its end already, or wait for a thread that hangs.
        flag::register_conditional_shutdown(number, SIGNAL_EXIT_BASE + number, asked.clone())?;
        flag::register(number, asked.clone())?;
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::info!("stopping: the tasks in work are finished first; a second signal ends the process at once");
        token.cancel();
    });
    Ok(stop)
}
