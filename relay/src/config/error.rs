//! An option that a person must correct, and the checks that more than one option needs.
//!
//! Refuses to repeat a value: it names the option and what is wrong with it.

use settings::BadVariable;

/// AMQP carries names as short strings.
const MAX_NAME_BYTES: usize = 255;

/// An option that a person must correct.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line or the environment cannot be read as options.
    #[error("{0}")]
    Usage(String),
    /// One option has a value that cannot work.
    #[error("error: {option}: {problem}")]
    Invalid {
        /// The option's name as on the command line, or a variable's.
        option: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl From<BadVariable> for ConfigError {
    fn from(bad: BadVariable) -> Self {
        Self::Invalid { option: bad.name, problem: bad.problem }
    }
}

pub(super) fn check_name(option: &'static str, name: &str) -> Result<(), ConfigError> {
    match name.len() {
        0 => Err(invalid(option, "must not be empty")),
        1..=MAX_NAME_BYTES => Ok(()),
        bytes => Err(invalid(option, format!("has {bytes} bytes, AMQP takes {MAX_NAME_BYTES}"))),
    }
}

pub(super) fn invalid(option: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { option, problem: problem.into() }
}
