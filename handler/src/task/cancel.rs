//! The message that cancels a task, as the handler reads it among tasks: see the crate `cancellation`.

use super::InvalidTask;
pub use cancellation::Cancel;

/// Parses the body of a message that cancels a task; `None` if it is anything else, such as a task.
///
/// # Errors
/// A message that would cancel a task and is not as it must be.
pub fn read_cancel(body: &str) -> Option<Result<Cancel, Box<InvalidTask>>> {
    let invalid = |reason| Box::new(InvalidTask { reason, generation_id: None, webhook_url: None });
    Cancel::parse(body).map(|read| read.map_err(|bad| invalid(bad.to_string())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{
        contract::{CANCEL, CANCELLATION},
        json::Json,
        rule::Fields,
    };

    /// The schema is made from the contract's rule, and the message is read by the crate that the relay reads it by, too.
    #[test]
    fn the_contract_says_what_the_crate_reads() {
        let long = "9".repeat(300);
        for value in [
            "0",
            "-0",
            "500",
            "9223372036854775807",
            "9223372036854775808",
            "-1",
            "1.0",
            "1e2",
            "1E2",
            "-1.5e3",
            "null",
            "\"7\"",
            "true",
            "false",
            "[]",
            "[1]",
            "{}",
            "{\"cancel\":1}",
            &long,
        ] {
            let body = format!("{{\"cancel\":{value}}}");
            let members = Json::parse(&body).unwrap().members(CANCELLATION).unwrap();
            let rule = CANCEL.read(&Fields::new(members)).map(|id| id as i64);
            let read = read_cancel(&body).unwrap().map(|cancel| cancel.generation_id).map_err(|invalid| invalid.reason);
            assert_eq!(read, rule, "{value}");
        }
    }
}
