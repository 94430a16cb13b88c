//! By which variables the options could be given that a command line lacks or has wrong: Lambda and a cluster know nothing else.

use clap::{
    Arg, Command,
    error::{ContextKind, ContextValue, ErrorKind},
};
use std::collections::BTreeSet;

/// A line for an error about options that are missing or have a wrong value, if any of them has a variable.
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
                .any(|given| names(given, long))
                .then(|| format!("{} for --{long}", variable.to_string_lossy()))
        })
        .collect();
    let known = known.into_iter().collect::<Vec<_>>().join(", ");
    (!known.is_empty()).then(|| format!("As variables: {known}."))
}

/// Whether an error speaks of an option: `--long`, `--long <VALUE>`, `--long[=<VALUE>]`, alone or in a group.
fn names(given: &str, long: &str) -> bool {
    let flag = format!("--{long}");
    given
        .match_indices(&flag)
        .any(|(at, _)| !given[at + flag.len()..].starts_with(|next: char| next.is_ascii_alphanumeric() || next == '-'))
}

/// Those of a command and of all below it.
fn options(command: &Command) -> Vec<&Arg> {
    command.get_arguments().chain(command.get_subcommands().flat_map(options)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_known_however_it_is_shown() {
        for given in ["--declare", "--declare <BOOL>", "--declare[=<BOOL>]", "<--declare <BOOL>|--other <X>>"] {
            assert!(names(given, "declare"), "{given}");
        }
        for given in ["--declare-all", "--undeclared", "declare", ""] {
            assert!(!names(given, "declare"), "{given}");
        }
    }
}
