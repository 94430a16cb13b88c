//! What `--help` says below the options: examples, exit codes, files, where to read on.

use crate::cli::exit;

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
";

/// Of the binary.
pub(super) fn handler() -> String {
    [EXAMPLES, &exit::section(), ENVIRONMENT, SEE_ALSO].join("\n")
}

/// Of function and worker.
pub(super) fn service() -> String {
    [&exit::section(), ENVIRONMENT, FILES, telemetry::HELP, "", SEE_ALSO].join("\n")
}

/// Of the doctor.
pub(super) fn doctor() -> String {
    let lines = "Output:
  ok   THING: how it is
  warn THING: it works, but not as well as it could, or it was not looked at; and what to do about it
  FAIL THING: what is wrong; what to do about it
";
    [lines, &exit::section(), ENVIRONMENT, SEE_ALSO].join("\n")
}
