//! What clap does not say about mistakes on a command line: whitespace around a value, and the variables of missing
//! options.

use clap::{
    Arg, ArgMatches, Command,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};
use std::{collections::BTreeSet, ffi::OsStr};

/// Whitespace around a value, as a problem to show. It comes from files that end with a line break, or from quotes in
/// the wrong place, and services do not ignore it.
pub(crate) fn whitespace_problem(value: &OsStr) -> Option<String> {
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

/// The first option or variable of a command line, including subcommands, whose value has whitespace around it. `free`
/// are the options with free text, or whose parser trims whitespace.
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
        values.find_map(whitespace_problem).map(|problem| format!("{name}: {problem}"))
    });
    found.or_else(|| {
        let (name, matches) = matches.subcommand()?;
        stray_whitespace(command.find_subcommand(name)?, matches, free)
    })
}

/// Names the variables of options that an error says are missing or wrong: on Lambda or in a cluster there is nothing
/// else to set. `None` if they have none.
pub fn variables(command: &Command, error: &clap::Error) -> Option<String> {
    let wanted = [ErrorKind::MissingRequiredArgument, ErrorKind::InvalidValue, ErrorKind::ValueValidation];
    if !wanted.contains(&error.kind()) {
        return None;
    }
    let at_fault = match error.get(ContextKind::InvalidArg)? {
        ContextValue::Strings(options) => options.as_slice(),
        ContextValue::String(option) => std::slice::from_ref(option),
        _ => return None,
    };
    let known: BTreeSet<String> = options(command)
        .into_iter()
        .filter_map(|option| {
            let (long, variable) = (option.get_long()?, option.get_env()?);
            at_fault
                .iter()
                .any(|given| mentions(given, long))
                .then(|| format!("{} for --{long}", variable.to_string_lossy()))
        })
        .collect();
    let known = known.into_iter().collect::<Vec<_>>().join(", ");
    (!known.is_empty()).then(|| format!("As variables: {known}."))
}

/// Whether an error mentions an option: `--long`, `--long <VALUE>`, `--long[=<VALUE>]`, alone or in a group.
fn mentions(given: &str, long: &str) -> bool {
    let flag = format!("--{long}");
    given
        .match_indices(&flag)
        .any(|(at, _)| !given[at + flag.len()..].starts_with(|next: char| next.is_ascii_alphanumeric() || next == '-'))
}

/// The options of a command and all its subcommands.
fn options(command: &Command) -> Vec<&Arg> {
    command.get_arguments().chain(command.get_subcommands().flat_map(options)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_named_and_its_value_is_not_shown() {
        let inner = Command::new("inner").arg(Arg::new("url").long("queue-url")).arg(Arg::new("text").long("text"));
        let command = Command::new("outer").subcommand(inner.arg(Arg::new("file")));
        let reported = |arguments: &[&str]| {
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
            let text = reported(&["--queue-url", value]).unwrap();
            assert!(text.starts_with("--queue-url: ") && text.contains(ends), "{text}");
            assert!(!text.contains("hidden"), "{text}");
        }
        assert!(reported(&["a.fifo\n"]).is_some_and(|text| text.starts_with("[file]: ")), "an argument");
        assert_eq!(reported(&["--queue-url", "in the middle", "--text", "free "]), None);
        assert_eq!(reported(&["--queue-url", ""]), None);
    }

    #[test]
    fn an_option_is_found_in_every_form() {
        for given in ["--declare", "--declare <BOOL>", "--declare[=<BOOL>]", "<--declare <BOOL>|--other <X>>"] {
            assert!(mentions(given, "declare"), "{given}");
        }
        for given in ["--declare-all", "--undeclared", "declare", ""] {
            assert!(!mentions(given, "declare"), "{given}");
        }
    }
}
