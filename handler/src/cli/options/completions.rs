//! Scripts that complete the command line in a shell.

use super::Cli;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

/// Settings of `handler completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsConfig {
    /// The shell.
    #[arg(value_name = "SHELL")]
    pub shell: Shell,
}

impl CompletionsConfig {
    /// The script.
    pub fn script(&self) -> Vec<u8> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "handler", &mut script);
        script
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    #[test]
    fn bash_can_read_the_completions_and_finds_the_commands_in_them() {
        let script = CompletionsConfig { shell: Shell::Bash }.script();
        let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
        bash.stdin.take().unwrap().write_all(&script).unwrap();
        assert!(bash.wait().unwrap().success());
        let script = String::from_utf8(script).unwrap();
        for word in ["handler__subcmd__doctor", "worker", "--sqs-queue-url", "inspect"] {
            assert!(script.contains(word), "{word}");
        }
    }
}
