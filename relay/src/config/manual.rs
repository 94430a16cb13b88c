//! What `--help` says below the options, and the scripts that complete the command line.

use clap::{Arg, Command, CommandFactory, value_parser};
use clap_complete::Shell;

use super::Config;
use crate::exit::CODES;

const NAME: &str = "relay";
const COMPLETIONS: &str = "completions";
const SHELL: &str = "shell";

const EXAMPLES: &str = "Examples:
  relay --check
      look whether broker, queue and SQS are as they must be, configured by the environment
  relay --declare --health-addr 0.0.0.0:9100
      create what is missing in the broker, and move messages until SIGTERM
  relay completions bash > ~/.local/share/bash-completion/completions/relay
      complete this command line from now on
";

const ENVIRONMENT: &str = "Environment:
  Each option shows its variable, if it has one, in brackets; a flag wins over it.
  AWS_REGION, AWS_ENDPOINT_URL and the others of the AWS SDK say where SQS and S3 are, and who we are.
  AWS_CA_BUNDLE and SSL_CERT_FILE say whom TLS trusts, HTTPS_PROXY and NO_PROXY what goes by a proxy.
  RUST_LOG filters log lines, as in RUST_LOG=relay=debug.
";

const SEE_ALSO: &str = "
See also:
  docs/OPERATIONS.md      failures, metrics, what others get wrong
  docs/CONFIGURATION.md   every option of both binaries
  handler --help          what takes the messages from SQS";

/// The command line, with its manual and the command that prints completions.
pub(super) fn command() -> Command {
    let shell = Arg::new(SHELL).value_name("SHELL").help("The shell").required(true).value_parser(value_parser!(Shell));
    let completions =
        Command::new(COMPLETIONS).about("Print a script that completes this command line in a shell").arg(shell);
    Config::command().after_long_help(manual()).subcommand(completions).subcommand_negates_reqs(true)
}

/// The script for a shell, if that is what was asked for.
pub(super) fn completions(matches: &clap::ArgMatches) -> Option<Vec<u8>> {
    let (_, asked) = matches.subcommand()?;
    let mut script = Vec::new();
    clap_complete::generate(*asked.get_one::<Shell>(SHELL)?, &mut command(), NAME, &mut script);
    Some(script)
}

fn manual() -> String {
    let codes: String = CODES.iter().map(|(code, meaning)| format!("  {code:<4}{meaning}\n")).collect();
    let codes = format!("Exit codes:\n{codes}");
    [EXAMPLES, &codes, ENVIRONMENT, telemetry::HELP, SEE_ALSO].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        process::{Command as Process, Stdio},
    };

    #[test]
    fn bash_can_read_the_completions_and_finds_the_options_in_them() {
        let matches = command().try_get_matches_from([NAME, COMPLETIONS, "bash"]).unwrap();
        let script = completions(&matches).unwrap();
        let mut bash = Process::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
        bash.stdin.take().unwrap().write_all(&script).unwrap();
        assert!(bash.wait().unwrap().success());
        let script = String::from_utf8(script).unwrap();
        assert!(script.contains("--sqs-queue-url") && script.contains("--check") && script.contains(COMPLETIONS));
    }
}
