//! What a person sees while the task is under way: one changing line on a terminal, plain lines elsewhere.

use e2e::backend::{COMPLETE, Call, FAILED, PROGRESS};
use std::io::{IsTerminal, Write, stdout};

const BAR: u64 = 30;

/// Standard output.
pub(crate) struct Screen {
    terminal: bool,
    dirty: bool,
}

impl Screen {
    /// Looks at what standard output is.
    pub(crate) fn new() -> Self {
        Self { terminal: stdout().is_terminal(), dirty: false }
    }

    /// Shows a webhook that has come in.
    pub(crate) fn webhook(&mut self, call: &Call) {
        if call.path != PROGRESS || !self.terminal {
            return self.line(&format!("webhook {}: {}", short(&call.path), summary(call)));
        }
        let percent = call.body["progress"]["progress_percent"].as_u64().unwrap_or(0).min(100);
        let full = (BAR * percent / 100) as usize;
        let (done, rest) = ("#".repeat(full), ".".repeat(BAR as usize - full));
        print!("\r\x1b[K[{done}{rest}] {}", summary(call));
        self.dirty = true;
        // A terminal that is gone shows nothing.
        let _ = stdout().flush();
    }

    /// Shows a line.
    pub(crate) fn line(&mut self, text: &str) {
        self.clear();
        println!("{text}");
    }

    /// Takes the changing line away.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.dirty) {
            print!("\r\x1b[K");
        }
    }
}

/// A path without what all webhooks have in common.
pub(crate) fn short(path: &str) -> &str {
    path.strip_prefix("/api/webhooks/inference/").unwrap_or(path)
}

/// What a webhook says, in a few words.
pub(crate) fn summary(call: &Call) -> String {
    let body = &call.body;
    let text = |name: &str| body[name].as_str().unwrap_or("?").to_string();
    match call.path.as_str() {
        PROGRESS => {
            let progress = &body["progress"];
            let number = |name: &str| progress[name].as_u64().unwrap_or(0);
            let (step, steps) = (number("current_step"), number("total_steps"));
            let left = number("estimated_seconds");
            format!("{} %, step {step} of {steps}, about {left} s left", number("progress_percent"))
        }
        COMPLETE => text("result_url"),
        FAILED => text("error_message"),
        _ => body.to_string(),
    }
}
