//! The command line and the environment of the handler. Tests build these structs; nothing else reads the environment.

use crate::{
    cli::{bench::BenchCommand, doctor::DoctorConfig, generate::GenerateConfig, lora::LoraCommand, manual},
    entry::worker::WorkerConfig,
    job::options::ServiceConfig,
    storage::weights::options::WeightsCommand,
};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};
use clap_complete::Shell;
use settings::{Reads, stray_whitespace};
use std::{ffi::OsString, io, path::PathBuf};

/// Paints generation tasks with Stable Diffusion 1.5 and an artist's LoRA.
///
/// Without a subcommand it is the AWS Lambda function, configured by the environment alone.
#[derive(Debug, Parser)]
#[command(name = "handler", version, override_usage = "handler [COMMAND]", after_long_help = manual::handler())]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of free text, and those that trim whitespace themselves.
const MAY_HAVE_WHITESPACE: [&str; 7] =
    ["prompt", "negative-prompt", "signature", "webhook-hosts", "lora-buckets", "image-buckets", "webhook-secret"];

impl Cli {
    /// Reads a command line and the variables of its options.
    ///
    /// # Errors
    /// Names what is missing or wrong. Whitespace at an end of a value is wrong: no bucket or queue is named so.
    pub fn load(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(arguments)?;
        match stray_whitespace(&command, &matches, &MAY_HAVE_WHITESPACE) {
            Some(problem) => Err(command.error(ErrorKind::InvalidValue, problem)),
            None => {
                let cli = Self::from_arg_matches(&matches)?;
                match cli.command.check() {
                    Ok(()) => Ok(cli),
                    Err(problem) => Err(command.error(ErrorKind::ArgumentConflict, problem)),
                }
            }
        }
    }
}

/// For an error about missing or wrong options: a line with the variables that set them.
pub fn variables(error: &clap::Error) -> Option<String> {
    settings::variables(&Cli::command(), error)
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve SQS events through the Lambda Runtime API (what `handler` alone does).
    #[command(after_long_help = manual::service())]
    Function(ServiceConfig),
    /// Poll an SQS queue: for GPU hosts that are not Lambda.
    #[command(after_long_help = manual::service())]
    Worker(WorkerConfig),
    /// Look at everything that function and worker need: one line for each thing, with what to do about it.
    #[command(after_long_help = manual::doctor())]
    Doctor(DoctorConfig),
    /// Paint one picture from the shell.
    Generate(GenerateConfig),
    /// Fill a model folder from the hub, from S3 or from a checkpoint, and check one.
    #[command(subcommand)]
    Weights(WeightsCommand),
    /// Look at LoRA files.
    #[command(subcommand)]
    Lora(LoraCommand),
    /// Measure what something costs here.
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Print the contract with the backend.
    #[command(subcommand)]
    Schema(SchemaCommand),
    /// Print a script that completes this command line in a shell.
    Completions(CompletionsConfig),
    /// Write manual pages, one for each command.
    Man(ManConfig),
}

/// Which side of the contract.
#[derive(Debug, Clone, Copy, Subcommand)]
pub enum SchemaCommand {
    /// The task, as JSON Schema (draft 2020-12).
    Task,
    /// The message that cancels a task, as JSON Schema (draft 2020-12).
    Cancel,
    /// The webhooks, as OpenAPI 3.1.
    Webhooks,
}

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

/// Settings of `handler man`.
#[derive(Debug, Clone, Args)]
pub struct ManConfig {
    /// Where to; the folder is made.
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
}

impl ManConfig {
    /// Writes the pages.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self) -> io::Result<()> {
        settings::write_manual(Cli::command(), &self.folder)
    }
}

impl Command {
    /// The options that function and worker share; none for a tool, which has no JSON logs and no traces.
    pub fn service(&self) -> Option<&ServiceConfig> {
        match self {
            Self::Function(service) => Some(service),
            Self::Worker(worker) => Some(&worker.service),
            Self::Doctor(_)
            | Self::Generate(_)
            | Self::Weights(_)
            | Self::Lora(_)
            | Self::Bench(_)
            | Self::Schema(_)
            | Self::Completions(_)
            | Self::Man(_) => None,
        }
    }

    /// Whether the options go together.
    fn check(&self) -> Result<(), String> {
        match self {
            Self::Doctor(doctor) => doctor.service.check(),
            _ => self.service().map_or(Ok(()), ServiceConfig::check),
        }
    }

    /// The variables that it reads beside those of its options.
    pub fn reads(&self) -> Reads {
        match self {
            Self::Function(_) | Self::Worker(_) | Self::Doctor(_) | Self::Weights(WeightsCommand::Fetch(_)) => {
                Reads::Services
            }
            Self::Generate(_)
            | Self::Weights(WeightsCommand::Pull(_) | WeightsCommand::Convert(_) | WeightsCommand::Verify(_))
            | Self::Lora(_)
            | Self::Bench(_)
            | Self::Schema(_)
            | Self::Completions(_)
            | Self::Man(_) => Reads::Common,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::Write,
        process::{self, Stdio},
    };

    #[test]
    fn missing_settings_are_named() {
        let error = Cli::try_parse_from(["handler", "generate", "--prompt", "x", "--out", "x.jpg"]).unwrap_err();
        assert!(error.to_string().contains("--model"), "{error}");
    }

    #[test]
    fn an_error_names_the_variables_of_missing_and_wrong_options() {
        let said = |line: &[&str]| variables(&Cli::load(["handler"].iter().chain(line)).unwrap_err());
        let named = |line| said(line).unwrap();
        assert_eq!(
            named(&["generate", "--prompt", "x", "--out", "x.jpg"]),
            "As variables: EASEL_MODEL_DIR for --model."
        );
        assert_eq!(named(&["generate", "--device", "abacus"]), "As variables: EASEL_DEVICE for --device.");
        assert_eq!(
            named(&["generate", "--metadata-prompt=perhaps"]),
            "As variables: EASEL_METADATA_PROMPT for --metadata-prompt."
        );
        let token = ["weights", "pull", "--repo", "a/b", "--to", "x", "--token", "two words"];
        assert_eq!(named(&token), "As variables: HF_TOKEN for --token.");
        assert!(!Cli::load(["handler"].iter().chain(&token)).unwrap_err().to_string().contains("words"));
        assert_eq!(said(&["generate", "--nonsense"]), None);
    }

    /// Every command, with its words on the command line.
    fn commands(command: &clap::Command, path: &[String]) -> Vec<(Vec<String>, clap::Command)> {
        let below: Vec<_> = command.get_subcommands().filter(|below| below.get_name() != "help").collect();
        if below.is_empty() {
            return vec![(path.to_vec(), command.clone())];
        }
        below.iter().flat_map(|below| commands(below, &[path, &[below.get_name().to_string()]].concat())).collect()
    }

    #[test]
    fn no_option_takes_a_line_break_at_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let pem = folder.path().join("a.pem\n");
        std::fs::write(&pem, "-----BEGIN NONSENSE-----\n").unwrap();
        let pem = pem.to_str().unwrap();
        let mut checked = 0;
        for (path, command) in commands(&Cli::command(), &["handler".to_string()]) {
            for option in command.get_arguments().filter(|option| option.get_action().takes_values()) {
                let long = option.get_long().unwrap_or_default();
                if MAY_HAVE_WHITESPACE.contains(&long) || option.get_long().is_none() {
                    continue;
                }
                // Values that the parsers of the options accept but for the line break.
                let texts = [
                    "1\n",
                    "0.1\n",
                    "/tmp/x.png\n",
                    "https://example.org\n",
                    "s3://bucket/key\n",
                    "127.0.0.1:80\n",
                    "a/b\n",
                    "abc\n",
                    "arn:aws:secretsmanager:eu:1:secret:a\n",
                    pem,
                ];
                for text in texts {
                    let given = [format!("--{long}={text}")];
                    let rest = required(&path[1..], long);
                    let line = path.iter().chain(&rest).chain(&given);
                    let error = match Cli::load(line) {
                        Ok(_) => panic!("{path:?} --{long} takes {text:?}"),
                        Err(error) => error.to_string(),
                    };
                    assert!(error.contains(&format!("--{long}")), "{path:?} {long} {text:?}: {error}");
                }
                checked += 1;
            }
        }
        assert!(checked > 100, "{checked}");
    }

    /// The required options of a command beside `option`.
    fn required(path: &[String], option: &str) -> Vec<String> {
        let service = [("model", "m"), ("internal-api-token", "t"), ("sqs-queue-url", "http://h/q")];
        let pairs: &[(&str, &str)] = match path.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            ["function" | "doctor"] => &service[..2],
            ["worker"] => &service,
            ["generate"] => &[("model", "m"), ("prompt", "x"), ("out", "x.png")],
            ["weights", "pull"] => &[("repo", "a/b"), ("to", "x")],
            ["weights", "fetch"] => &[("to", "x")],
            ["bench", "lora"] => &[("model", "m"), ("lora", "x")],
            ["bench", "picture" | "soak"] => &[("model", "m")],
            ["lora", "inspect"] => return vec!["x".into()],
            _ => &[],
        };
        let token = option.starts_with("internal-api-token");
        let needed = pairs.iter().filter(|(name, _)| *name != option && !(token && *name == "internal-api-token"));
        let argument = path.ends_with(&["fetch".to_string()]).then(|| "s3://models/sd15".to_string());
        needed.map(|(name, value)| format!("--{name}={value}")).chain(argument).collect()
    }

    #[test]
    fn every_command_has_a_manual_page() {
        let folder = tempfile::tempdir().unwrap();
        ManConfig { folder: folder.path().to_path_buf() }.write().unwrap();
        for (path, _) in commands(&Cli::command(), &["handler".to_string()]) {
            let page = std::fs::read_to_string(folder.path().join(format!("{}.1", path.join("-")))).unwrap();
            assert!(page.contains(&format!(".TH {} 1", path.join("-"))), "{page}");
        }
        let page = std::fs::read_to_string(folder.path().join("handler.1")).unwrap();
        assert!(page.contains("EXIT CODES") && page.contains("handler doctor \\-\\-load"), "{page}");
    }

    #[test]
    fn bash_can_read_the_completions_and_finds_the_commands_in_them() {
        let script = CompletionsConfig { shell: Shell::Bash }.script();
        let mut bash = process::Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn().unwrap();
        bash.stdin.take().unwrap().write_all(&script).unwrap();
        assert!(bash.wait().unwrap().success());
        let script = String::from_utf8(script).unwrap();
        for word in ["handler__subcmd__doctor", "worker", "--sqs-queue-url", "inspect"] {
            assert!(script.contains(word), "{word}");
        }
    }
}
