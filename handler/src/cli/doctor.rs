//! `handler doctor`: checks everything that function and worker need, and prints one line for each: how it is, and what to do about it.
//!
//! It paints nothing, takes no message, sends the token nowhere and shows no secret. It writes one file into the cache's folder, which it
//! removes, and tries one write to the pictures' bucket, under a condition that never holds.

mod backend;
mod machine;
mod model;
mod queue;
mod storage;

use crate::job::options::ServiceConfig;
use clap::Args;
use settings::{queue_url, web_url};
use std::{
    fmt::{self, Display},
    io::{self, Write},
    time::Duration,
};
use tokio::{task::spawn_blocking, time::timeout};
use url::Url;

/// The timeout of each question to a service or a volume.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);

/// Settings of `handler doctor`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "What is looked at")]
pub struct DoctorConfig {
    /// What it shares with function and worker.
    #[command(flatten)]
    pub service: ServiceConfig,
    /// The queue that tasks come from.
    #[arg(long, env = "SQS_QUEUE_URL", value_name = "URL", value_parser = queue_url)]
    pub sqs_queue_url: Option<String>,
    /// The function's timeout, which the queue's visibility timeout must outlast; a worker needs none.
    #[arg(long, env = "EASEL_FUNCTION_TIMEOUT", value_name = "SECONDS")]
    pub function_timeout: Option<u32>,
    /// A backend's address as tasks have it in `webhook_url`. It is asked for its headers by HEAD, without the token.
    #[arg(long, env = "EASEL_DOCTOR_WEBHOOK_URL", value_name = "URL", value_parser = web_url)]
    pub webhook_url: Option<Url>,
    /// A LoRA as tasks have it in `lora_model_url`; S3 is asked for its headers.
    #[arg(long, env = "EASEL_DOCTOR_LORA_URL", value_name = "S3-URL")]
    pub lora_url: Option<Url>,
    /// Load the model where it would be loaded, too.
    #[arg(long)]
    pub load: bool,
    /// Hash the model's files against the manifest of `handler weights pull`, too.
    #[arg(long)]
    pub hash: bool,
}

/// Checks everything. Returns whether nothing is wrong.
///
/// # Errors
/// Standard output is closed, or `AWS_CA_BUNDLE` has no certificates.
pub async fn run(config: &DoctorConfig) -> anyhow::Result<bool> {
    let service = &config.service;
    let mut wrong = 0;
    let mut print = |findings: Vec<Finding>| {
        wrong += findings.iter().filter(|finding| finding.is_failure()).count();
        findings.iter().try_for_each(Finding::print)
    };
    let aws = settings::sdk_config().await?;
    print(model::check(config, &aws).await)?;
    print(machine::gpu(&service.model, service.sizes.largest()).await)?;
    print(vec![machine::fonts()])?;
    print(vec![machine::cache(&service.store).await])?;
    print(vec![storage::credentials(&aws).await])?;
    print(vec![backend::secrets(&service.secrets, &aws).await])?;
    print(storage::check(config, &aws).await)?;
    print(queue::check(config, &aws).await)?;
    print(backend::webhooks(config).await)?;
    Ok(wrong == 0)
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Ok,
    /// It works, but not as well as it could; or it is unknown.
    Warn,
    Fail,
}

/// What was found about one thing.
#[derive(Debug)]
struct Finding {
    verdict: Verdict,
    what: String,
    /// How it is; if something is wrong, what to do about it.
    note: String,
}

impl Finding {
    fn ok(what: impl Into<String>, note: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, what: what.into(), note: note.into() }
    }

    fn warn(what: impl Into<String>, note: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, what: what.into(), note: note.into() }
    }

    fn fail(what: impl Into<String>, note: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, what: what.into(), note: note.into() }
    }

    fn is_failure(&self) -> bool {
        self.verdict == Verdict::Fail
    }

    fn print(&self) -> io::Result<()> {
        writeln!(io::stdout().lock(), "{self}")
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        // One line, whatever line breaks an error has.
        let note = self.note.split_whitespace().collect::<Vec<_>>().join(" ");
        match note.as_str() {
            "" => write!(f, "{verdict} {}", self.what),
            note => write!(f, "{verdict} {}: {note}", self.what),
        }
    }
}

/// Waits for the answer of a service, up to a timeout.
async fn answer<T>(question: impl Future<Output = T>) -> Result<T, String> {
    let none = |_| format!("no answer within {ANSWER_TIMEOUT:?}; check the network and the endpoint");
    timeout(ANSWER_TIMEOUT, question).await.map_err(none)
}

/// Runs a function that may block forever, as on a volume that does not answer.
async fn blocking<T: Send + 'static>(limit: Duration, look: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    match timeout(limit, spawn_blocking(look)).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(_)) => Err("looking at it broke off: this is a fault of the program".into()),
        Err(_) => Err(format!("no answer within {limit:?}; check the volume that it is on")),
    }
}

/// A number of bytes, for people.
fn size(bytes: u64) -> String {
    match bytes {
        0..0x400 => format!("{bytes} bytes"),
        0x400..0x10_0000 => format!("{:.1} KiB", bytes as f64 / 1024.0),
        0x10_0000..0x4000_0000 => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        _ => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
    }
}
