//! Whitespace around values: a file that ends with a line break made a variable of it, or a quote is in the wrong place. What is meant
//! is plain, but not to the services that would get it.

use clap::{ArgMatches, Command, parser::ValueSource};
use std::ffi::OsStr;

/// What is wrong with the ends of a value, if anything.
pub(crate) fn problem(value: &OsStr) -> Option<String> {
    let text = value.to_string_lossy();
    let place = match (text.trim_start().len() < text.len(), text.trim_end().len() < text.len()) {
        (false, false) => return None,
        (true, false) => "begins",
        (false, true) => "ends",
        (true, true) => "begins and ends",
    };
    let what =
        if text.trim_end().len() < text.len() && text.ends_with(['\n', '\r']) { "a line break" } else { "whitespace" };
    Some(format!("{place} with {what}, which is no part of it: take that away"))
}

/// The first option or variable of a command line, also of its subcommands, whose value has whitespace at an end. `free` are the options
/// whose text is free, or whose own parser takes whitespace off.
pub fn stray_whitespace(command: &Command, matches: &ArgMatches, free: &[&str]) -> Option<String> {
    let found = command.get_arguments().find_map(|option| {
        let long = option.get_long();
        let id = option.get_id().as_str();
        let name = match matches.value_source(id)? {
            ValueSource::CommandLine => long.map_or_else(|| option.to_string(), |long| format!("--{long}")),
            ValueSource::EnvVariable => option.get_env()?.to_string_lossy().into_owned(),
            _ => return None,
        };
        if long.is_some_and(|long| free.contains(&long)) {
            return None;
        }
        let mut values = matches.try_get_raw(id).ok().flatten()?;
        values.find_map(problem).map(|problem| format!("{name}: {problem}"))
    });
    found.or_else(|| {
        let (name, matches) = matches.subcommand()?;
        stray_whitespace(command.find_subcommand(name)?, matches, free)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;

    #[test]
    fn the_option_is_named_and_its_value_is_not_shown() {
        let inner = Command::new("inner").arg(Arg::new("url").long("queue-url")).arg(Arg::new("text").long("text"));
        let command = Command::new("outer").subcommand(inner.arg(Arg::new("file")));
        let said = |arguments: &[&str]| {
            let matches = command.clone().get_matches_from([&["outer", "inner"], arguments].concat());
            stray_whitespace(&command, &matches, &["text"])
        };
        for (value, ends) in [
            ("hidden\n", "ends with a line break"),
            ("hidden\r\n", "ends with a line break"),
            ("hidden ", "ends with whitespace"),
            ("\thidden", "begins with whitespace"),
            ("\u{a0}hidden\n", "begins and ends with a line break"),
            (" ", "begins and ends with whitespace"),
        ] {
            let text = said(&["--queue-url", value]).unwrap();
            assert!(text.starts_with("--queue-url: ") && text.contains(ends), "{text}");
            assert!(!text.contains("hidden"), "{text}");
        }
        assert!(said(&["a.fifo\n"]).is_some_and(|text| text.starts_with("[file]: ")), "an argument");
        assert_eq!(said(&["--queue-url", "in the middle", "--text", "free "]), None);
        assert_eq!(said(&["--queue-url", ""]), None);
    }
}
