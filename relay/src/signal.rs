//! Signals: the first SIGTERM or SIGINT asks the relay to end in order, the second ends the process at once.
//!
//! Refuses to decide how the relay ends; it only cancels a token, and notes when.

use std::{
    io, process,
    sync::{Arc, OnceLock},
    time::Instant,
};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Exit code of a process ended by a signal is 128 plus its number.
const SIGNAL_EXIT_BASE: i32 = 128;

/// When the first signal came, once it has.
pub type Asked = Arc<OnceLock<Instant>>;

/// Starts to listen; the token is cancelled by the first signal.
pub fn listen(asked: &Asked) -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = CancellationToken::new();
    let (token, asked) = (shutdown.clone(), Arc::clone(asked));
    tokio::spawn(async move {
        let first = next(&mut terminate, &mut interrupt).await;
        asked.get_or_init(Instant::now);
        info!(signal = first.as_raw_value(), "shutting down, a second signal ends the process at once");
        token.cancel();
        let second = next(&mut terminate, &mut interrupt).await;
        warn!(signal = second.as_raw_value(), "ended by a second signal");
        process::exit(SIGNAL_EXIT_BASE + second.as_raw_value());
    });
    Ok(shutdown)
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> SignalKind {
    tokio::select! {
        _ = terminate.recv() => SignalKind::terminate(),
        _ = interrupt.recv() => SignalKind::interrupt(),
    }
}
