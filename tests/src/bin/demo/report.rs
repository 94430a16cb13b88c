//! The results of the demo: image.jpg, report.json, and tables on the screen. None of them has the token.

use crate::progress::{Outcome, short, summary};
use anyhow::{Context, Result, ensure};
use e2e::{
    aws::IMAGES,
    backend::{Backend, Call, PROGRESS},
    stack::Stack,
};
use serde::{Serialize, Serializer};
use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

const IMAGE: &str = "image.jpg";
const REPORT: &str = "report.json";

/// The report.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// In order of arrival; times from the publish of the task.
    webhooks: Vec<Call>,
    #[serde(serialize_with = "as_object")]
    timings_ms: Vec<(String, u64)>,
    image: Option<Picture>,
}

/// The picture that was fetched.
#[derive(Debug, Serialize)]
struct Picture {
    path: PathBuf,
    result_url: String,
    content_type: String,
    width: u32,
    height: u32,
    bytes: usize,
}

impl Report {
    /// A report of the webhooks so far.
    pub(crate) fn new(stack: &Stack, backend: &Backend, body: &str, published_ms: u64, started: Duration) -> Self {
        let mut webhooks = backend.calls();
        for call in &mut webhooks {
            call.at_ms = call.at_ms.saturating_sub(published_ms);
            if let Some(value) = call.headers.get_mut("authorization") {
                *value = "Bearer ***".to_string();
            }
        }
        let mut timings_ms = vec![("start the stack".to_string(), started.as_millis() as u64)];
        let first = webhooks.iter().find(|call| call.path == PROGRESS);
        timings_ms.extend(first.map(|call| ("publish to first webhook".to_string(), call.at_ms)));
        let stages = stack.function.stages(crate::task::id(body));
        timings_ms.extend(stages.into_iter().map(|(name, ms)| (format!("stage {name}"), ms)));
        let end = webhooks.iter().find(|call| call.is_end());
        timings_ms.extend(end.map(|call| ("publish to last webhook".to_string(), call.at_ms)));
        Self { webhooks, timings_ms, image: None }
    }

    /// Downloads the picture without credentials; `None` if its address is not known.
    pub(crate) async fn fetch_picture(
        &mut self,
        stack: &Stack,
        outcome: &Outcome,
        out: &Path,
        id: Option<i64>,
    ) -> Result<Option<PathBuf>> {
        let url = match (outcome, id) {
            (Outcome::Complete(url), _) => url.clone(),
            (Outcome::OtherReceiver, Some(id)) => {
                format!("{}/{IMAGES}/generations/gen_{id}.jpg", stack.aws.endpoint())
            }
            _ => return Ok(None),
        };
        let http = e2e::http_client()?;
        let answer = http.get(&url).send().await.with_context(|| format!("the picture at {url}"))?;
        if matches!(outcome, Outcome::OtherReceiver) && !answer.status().is_success() {
            return Ok(None);
        }
        ensure!(answer.status().is_success(), "the picture at {url}: S3 answered {}", answer.status());
        let content_type = answer.headers().get("content-type").and_then(|value| value.to_str().ok());
        let content_type = content_type.unwrap_or_default().to_string();
        let content = answer.bytes().await?;
        let picture = image::load_from_memory(&content).context("what S3 holds is no picture")?;
        let path = out.join(IMAGE);
        fs::write(&path, &content).with_context(|| path.display().to_string())?;
        let (width, height, bytes) = (picture.width(), picture.height(), content.len());
        self.image = Some(Picture { path: path.clone(), result_url: url, content_type, width, height, bytes });
        Ok(Some(path))
    }

    /// Writes report.json.
    pub(crate) fn write(&self, out: &Path) -> Result<()> {
        let path = out.join(REPORT);
        fs::write(&path, serde_json::to_string_pretty(self)? + "\n").with_context(|| path.display().to_string())
    }

    /// Prints the tables.
    pub(crate) fn print(&self) {
        let none = if self.webhooks.is_empty() { ": none" } else { "" };
        println!("\nwebhooks received{none}\n{:>9}  {:>8}  {:<6}  {:<8}  says", "at ms", "answered", "method", "path");
        for call in &self.webhooks {
            let Call { at_ms, status, method, path, .. } = call;
            println!("{at_ms:>9}  {status:>8}  {method:<6}  {:<8}  {}", short(path), summary(call));
        }
        println!("\ntimings in ms");
        for (name, ms) in &self.timings_ms {
            println!("{ms:>9}  {name}");
        }
        if let Some(Picture { width, height, bytes, content_type, .. }) = &self.image {
            println!("\n{content_type}, {width}x{height}, {bytes} bytes");
        }
    }
}

/// Removes the results of an earlier run.
pub(crate) fn remove_old(out: &Path) -> Result<()> {
    for name in [IMAGE, REPORT, "stack.json"] {
        match fs::remove_file(out.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| out.join(name).display().to_string());
            }
            _ => {}
        }
    }
    Ok(())
}

fn as_object<S: Serializer>(pairs: &[(String, u64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(key, value)| (key, value)))
}
