//! How the process ends: what `--help` says of exit codes, and what `main` ends with.

use std::fmt::Write;

/// Done; for a server also an ordered end.
pub const SUCCESS: u8 = 0;
/// It did not work; of a command that answers yes or no: no.
pub const FAILURE: u8 = 1;
/// A wrong command line or environment, `EX_USAGE` of sysexits.h.
pub const USAGE: u8 = 64;

/// Every exit code, and when it comes.
pub const CODES: [(u8, &str); 3] = [
    (SUCCESS, "done; of function and worker: told to end, or idle for as long as configured"),
    (
        FAILURE,
        "it did not work, or options do not fit one another, and standard error says why; of doctor, weights verify and lora \
         inspect: no",
    ),
    (USAGE, "an option or a variable is missing or wrong, or a certificate cannot sign; standard error names it"),
];

/// A section of a manual.
pub(crate) fn section() -> String {
    CODES.iter().fold("Exit codes:\n".to_string(), |mut text, (code, meaning)| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {code:<4}{meaning}");
        text
    })
}
