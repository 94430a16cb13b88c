//! How the process ends, in numbers.

/// `EX_USAGE` of sysexits.
pub(crate) const USAGE: u8 = 64;
/// `EX_UNAVAILABLE` of sysexits.
pub(crate) const UNAVAILABLE: u8 = 69;
pub(crate) const FAILURE: u8 = 1;

/// Every exit code but those of signals, and when it comes.
pub(crate) const CODES: [(u8, &str); 4] = [
    (0, "ended by a signal, in order; --check found all well"),
    (FAILURE, "anything else, such as a health address that is taken"),
    (USAGE, "an option or a variable is missing or wrong; standard error names it"),
    (UNAVAILABLE, "SQS or the first broker refuses for good; --check found something wrong"),
];
