//! The function as AWS runs it: the real handler binary behind a Lambda Runtime API (cargo-lambda's), invoked over HTTP.

use crate::{
    mapping::Invoke,
    paths::{self, RunDir, binary},
    ports,
    process::{Process, Spec},
};
use anyhow::{Context, Result, bail};
use handler::observe::report::STAGES;
use serde_json::{Value, json};
use std::{fs, path::PathBuf, time::Duration};
use tokio::net::TcpStream;

const START: Duration = Duration::from_secs(120);
/// The longest timeout that Lambda allows.
const TIMEOUT: Duration = Duration::from_secs(900);

/// One execution environment of the function.
#[derive(Debug)]
pub struct Function {
    http: reqwest::Client,
    invoke_url: String,
    api: Process,
    handler: Process,
}

impl Function {
    /// Starts the Runtime API and the handler, and waits until the handler answers an empty event.
    ///
    /// # Errors
    /// Something is missing, or does not come up.
    pub async fn start(run: &RunDir, name: &str, env: &[(&'static str, String)]) -> Result<Self> {
        let port = ports::free()?;
        let api = Spec::new(&format!("{name}-runtime-api"), paths::tool("cargo-lambda")?)
            .args(["lambda", "watch", "--only-lambda-apis", "--disable-cors"])
            .args(["--invoke-address", "127.0.0.1", "--invoke-port", &port.to_string()])
            .folder(&manifest(run, name)?)
            .env("RUST_LOG", "warn")
            .start(run)?;
        api.ready(START, async || TcpStream::connect(("127.0.0.1", port)).await.is_ok()).await?;
        let handler = Spec::new(name, binary("handler")?)
            .env("AWS_LAMBDA_RUNTIME_API", format!("http://127.0.0.1:{port}/.rt"))
            .env("AWS_LAMBDA_FUNCTION_NAME", "_")
            .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "4096")
            .envs(env.iter().map(|(key, value)| (key, value)))
            .start(run)?;
        let http = crate::http_client()?;
        let invoke_url = format!("http://127.0.0.1:{port}/2015-03-31/functions/_/invocations");
        let function = Self { http, invoke_url, api, handler };
        let answer = tokio::time::timeout(START, function.invoke(&json!({ "Records": [] }))).await;
        answer.map_err(|_| function.handler.error("did not answer its first event"))??;
        Ok(function)
    }

    /// Invokes it and waits for its answer.
    ///
    /// # Errors
    /// The function answered with an error, or its process ended.
    pub async fn invoke(&self, event: &Value) -> Result<Value> {
        let request = self.http.post(&self.invoke_url).timeout(TIMEOUT).json(event);
        let answered = async {
            let answer = request.send().await.context("invoke")?;
            let status = answer.status();
            let text = answer.text().await.context("invoke")?;
            if !status.is_success() {
                bail!("the function answered {status}: {text}");
            }
            serde_json::from_str(&text).with_context(|| format!("the function's answer is no JSON: {text}"))
        };
        tokio::select! {
            // The Runtime API does not notice when the function's process is gone.
            error = self.handler.died() => Err(error),
            error = self.api.died() => Err(error),
            answer = answered => answer,
        }
    }

    /// The stages of a generation and their milliseconds, as last logged; without an id those of the first task.
    pub fn stages(&self, id: Option<i64>) -> Vec<(String, u64)> {
        stages(&self.handler.log_text(), id)
    }

    /// The handler's process.
    pub fn process(&self) -> &Process {
        &self.handler
    }

    /// The Runtime API's process.
    pub fn api(&self) -> &Process {
        &self.api
    }
}

impl Invoke for Function {
    async fn invoke(&self, event: &Value) -> Result<Value> {
        Self::invoke(self, event).await
    }
}

/// cargo-lambda wants to see a package before it starts. An empty one spares it the workspace, and the network. Each has its own:
/// one that starts must not read what another writes.
fn manifest(run: &RunDir, name: &str) -> Result<PathBuf> {
    let folder = run.folder(&format!("{name}-runtime-api"))?;
    fs::create_dir_all(folder.join("src"))?;
    fs::write(
        folder.join("Cargo.toml"),
        "[package]\nname = \"function\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n",
    )?;
    fs::write(folder.join("src/main.rs"), "fn main() {}\n")?;
    Ok(folder)
}

fn stages(log: &str, id: Option<i64>) -> Vec<(String, u64)> {
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut ends = lines.filter(|line| line["message"] == "task ended");
    let end = match id {
        None => ends.next(),
        Some(_) => ends.rfind(|line| line["span"]["generation_id"].as_i64() == id),
    };
    let stage = |name: &&str| Some((name.to_string(), end.as_ref()?[format!("{name}_ms")].as_u64()?));
    STAGES.iter().filter_map(stage).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_generation_counts_and_other_lines_do_not() {
        let line = |id: i64, ms: u64| {
            format!(r#"{{"message":"task ended","denoise_ms":{ms},"span":{{"generation_id":{id}}}}}"#)
        };
        let log = [line(1, 10), "no JSON".to_string(), line(2, 20), line(1, 30)].join("\n");
        let denoise = |ms| vec![("denoise".to_string(), ms)];
        assert_eq!(stages(&log, Some(1)), denoise(30));
        assert_eq!(stages(&log, None), denoise(10));
        assert!(stages(&log, Some(3)).is_empty());
    }
}
