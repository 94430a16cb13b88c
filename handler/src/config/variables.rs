//! By which variables the options could be given that a command line lacks: Lambda and a cluster know nothing else.

use super::Cli;
use clap::{
    CommandFactory,
    error::{ContextKind, ContextValue, ErrorKind},
};
use std::collections::BTreeSet;

/// A line for an error about missing options, if any of them has a variable.
pub fn variables(error: &clap::Error) -> Option<String> {
    if error.kind() != ErrorKind::MissingRequiredArgument {
        return None;
    }
    let Some(ContextValue::Strings(missing)) = error.get(ContextKind::InvalidArg) else { return None };
    let command = Cli::command();
    let options = command.get_subcommands().flat_map(|subcommand| subcommand.get_arguments());
    let known: BTreeSet<String> = options
        .filter_map(|option| {
            let (long, variable) = (option.get_long()?, option.get_env()?);
            missing
                .iter()
                .any(|given| given.contains(&format!("--{long} <")))
                .then(|| format!("{} for --{long}", variable.to_string_lossy()))
        })
        .collect();
    let known = known.into_iter().collect::<Vec<_>>().join(", ");
    (!known.is_empty()).then(|| format!("As variables: {known}."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn what_is_missing_is_named_by_its_variable() {
        let error = Cli::try_parse_from(["handler", "generate", "--prompt", "x", "--out", "x.jpg"]).unwrap_err();
        assert_eq!(variables(&error).unwrap(), "As variables: EASEL_MODEL_DIR for --model.");
        let error = Cli::try_parse_from(["handler", "generate", "--nonsense"]).unwrap_err();
        assert_eq!(variables(&error), None);
    }
}
