//! What `--help` says below the options (examples, exit codes, files, where to read on), and the exit codes.

use std::fmt::Write;

/// Done; of a service also: it was told to end.
pub const SUCCESS: u8 = 0;
/// It failed; of a command that answers yes or no: no.
pub const FAILURE: u8 = 1;
/// A wrong command line or environment, `EX_USAGE` of sysexits.h.
pub const USAGE: u8 = 64;

/// Every exit code and its meaning.
pub const CODES: [(u8, &str); 3] = [
    (SUCCESS, "done; of function and worker: told to end, or idle for as long as configured"),
    (
        FAILURE,
        "it did not work, or options do not fit one another, and standard error says why; of doctor, weights verify and lora \
         inspect: no",
    ),
    (USAGE, "an option or a variable is missing or wrong, or a certificate cannot sign; standard error names it"),
];

const ENVIRONMENT: &str = "Environment:
  Each option shows its variable, if it has one, in brackets; a flag wins over it.
  AWS_REGION, AWS_ENDPOINT_URL and the others of the AWS SDK say where S3, SQS and Secrets Manager are, and who we are.
  AWS_CA_BUNDLE and SSL_CERT_FILE say whom TLS trusts, HTTPS_PROXY and NO_PROXY what goes by a proxy, webhooks never.
  RUST_LOG filters log lines, as in RUST_LOG=handler=debug.
";

const SEE_ALSO: &str = "See also:
  docs/OPERATIONS.md      failures, metrics, safety, the volume
  docs/CONFIGURATION.md   every option of both binaries
  docs/SHELL.md           pictures from the shell
  relay --help            what brings the tasks from RabbitMQ
";

const FILES: &str = "Files:
  MODEL/easel-weights.json   what weights pull or weights fetch brought, with hashes
  CACHE/loras/               LoRAs kept between tasks; may be removed while nothing runs
";

const EXAMPLES: &str = "Examples:
  handler doctor --load
      look whether everything is as function and worker need it
  handler worker
      serve a queue from a GPU host, configured by the environment
  handler generate --model DIR --prompt \"lighthouse sunset sea\" --out picture.png
      paint one picture
  handler weights pull --repo ORG/NAME --to DIR
      fill a model folder
  handler weights fetch s3://BUCKET/PREFIX --to DIR
      fill one from S3, where aws s3 sync brought what was pulled
  handler schema task
      print the contract with the backend
  handler completions bash > ~/.local/share/bash-completion/completions/handler
      complete this command line from now on
  handler man ~/.local/share/man/man1
      read the manual with man handler
";

/// For the binary.
pub(super) fn handler() -> String {
    [EXAMPLES, &exit_codes(), ENVIRONMENT, SEE_ALSO].join("\n")
}

/// For function and worker.
pub(super) fn service() -> String {
    [&exit_codes(), ENVIRONMENT, FILES, telemetry::HELP, "", SEE_ALSO].join("\n")
}

/// For the doctor.
pub(super) fn doctor() -> String {
    let lines = "Output:
  ok   THING: how it is
  warn THING: it works, but not as well as it could, or it was not looked at; and what to do about it
  FAIL THING: what is wrong; what to do about it
";
    [lines, &exit_codes(), ENVIRONMENT, SEE_ALSO].join("\n")
}

fn exit_codes() -> String {
    CODES.iter().fold("Exit codes:\n".to_string(), |mut text, (code, meaning)| {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {code:<4}{meaning}");
        text
    })
}
