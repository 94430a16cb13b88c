//! What was found about one thing, and its line.

use super::ANSWER_TIMEOUT;
use std::{
    fmt::{self, Display},
    io::{self, Write},
    time::Duration,
};
use tokio::{task::spawn_blocking, time::timeout};

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// It works, but not as well as it could; or nobody can say.
    Warn,
    Fail,
}

/// What was found about one thing.
#[derive(Debug)]
pub(super) struct Finding {
    verdict: Verdict,
    what: String,
    /// How it is; where something is wrong, what to do about it.
    note: String,
}

impl Finding {
    pub(super) fn ok(what: impl Into<String>, note: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, what: what.into(), note: note.into() }
    }

    pub(super) fn warn(what: impl Into<String>, note: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, what: what.into(), note: note.into() }
    }

    pub(super) fn fail(what: impl Into<String>, note: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, what: what.into(), note: note.into() }
    }

    pub(super) fn is_failure(&self) -> bool {
        self.verdict == Verdict::Fail
    }

    pub(super) fn print(&self) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{self}")
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        // A cause may have lines of its own.
        let note = self.note.split_whitespace().collect::<Vec<_>>().join(" ");
        match note.as_str() {
            "" => write!(f, "{verdict} {}", self.what),
            note => write!(f, "{verdict} {}: {note}", self.what),
        }
    }
}

/// The answer of a service, or that there is none.
pub(super) async fn answer<T>(question: impl Future<Output = T>) -> Result<T, String> {
    let none = |_| format!("no answer within {ANSWER_TIMEOUT:?}; check the network and the endpoint");
    timeout(ANSWER_TIMEOUT, question).await.map_err(none)
}

/// What a function says that may block for good, as one on a volume that does not answer.
pub(super) async fn blocking<T: Send + 'static>(
    limit: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    match timeout(limit, spawn_blocking(look)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(_)) => Err("looking at it broke off: this is a fault of the program".into()),
        Err(_) => Err(format!("no answer within {limit:?}; check the volume that it is on")),
    }
}

/// Bytes for people.
pub(super) fn size(bytes: u64) -> String {
    match bytes {
        0..0x400 => format!("{bytes} bytes"),
        0x400..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}
