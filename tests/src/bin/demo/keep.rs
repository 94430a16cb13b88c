//! `--keep` and `--to`: a stack that keeps running, and further tasks for it.

use crate::{
    options::Options,
    progress::{Screen, short, summary},
    task::{self, Styles},
};
use anyhow::{Context, Result};
use e2e::{
    aws::REGION,
    backend::Backend,
    broker::Publisher,
    stack::{QUEUE, Stack, TOKEN},
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// The addresses of a kept stack.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Addresses {
    amqp_url: String,
    amqp_queue: String,
    sqs_queue_url: String,
    sqs_dead_letter_queue_url: String,
    s3_endpoint: String,
    webhook: String,
    styles: Styles,
}

impl Addresses {
    /// Of a running stack.
    pub(crate) fn of(stack: &Stack, backend: &Backend, styles: &Styles) -> Self {
        Self {
            amqp_url: stack.broker.url(),
            amqp_queue: QUEUE.to_string(),
            sqs_queue_url: stack.route.queue.url.clone(),
            sqs_dead_letter_queue_url: stack.route.queue.dead_letter_url.clone(),
            s3_endpoint: stack.aws.endpoint().to_string(),
            webhook: backend.url(),
            styles: styles.clone(),
        }
    }

    /// The variables for a program that uses the stack, as a shell command.
    fn export(&self) -> String {
        let mut variables = vec![
            ("AMQP_URL", self.amqp_url.as_str()),
            ("SQS_QUEUE_URL", &self.sqs_queue_url),
            ("WEBHOOK_URL", &self.webhook),
            ("INTERNAL_API_TOKEN", TOKEN),
            ("AWS_ENDPOINT_URL", &self.s3_endpoint),
            ("AWS_DEFAULT_REGION", REGION),
            ("AWS_ACCESS_KEY_ID", "any"),
            ("AWS_SECRET_ACCESS_KEY", "any"),
        ];
        // The style of the artist in the README's tasks, if it is there.
        let style = self.styles.get("stained-glass").or_else(|| self.styles.values().next());
        variables.extend(style.map(|style| ("LORA_URL", style.url.as_str())));
        variables.iter().fold("export".to_string(), |line, (name, value)| format!("{line} {name}={value}"))
    }
}

/// Prints the addresses and shows webhooks; never ends by itself.
pub(crate) async fn wait(addresses: &Addresses, stack: &Stack, backend: &Backend, out: &Path) -> Result<()> {
    let file = StackFile(out.join("stack.json"));
    fs::write(&file.0, serde_json::to_string_pretty(addresses)? + "\n")?;
    println!("\nThe stack stays until ctrl-C.");
    println!("  RabbitMQ  {}, queue {}", addresses.amqp_url, addresses.amqp_queue);
    println!("  SQS       {}", addresses.sqs_queue_url);
    println!("  S3        {} (any access key)", addresses.s3_endpoint);
    println!("  webhooks  {}", addresses.webhook);
    println!("  logs      {}", stack.run.path().display());
    println!("From another shell, the README's backend, its task by SQS alone, and a task of your own:");
    println!("  {}", addresses.export());
    println!("  .cache/venv/bin/python tests/docs/backend.py");
    println!("  .cache/venv/bin/python tests/docs/by_sqs.py");
    println!("  infra/local/demo --to {} --task FILE.json", file.0.display());
    let mut calls = backend.follow();
    let mut shown = calls.borrow_and_update().len();
    let mut screen = Screen::new();
    loop {
        calls.changed().await.context("the webhook receiver has ended")?;
        let came = calls.borrow_and_update().clone();
        for call in &came[shown..] {
            let id = call.generation_id().unwrap_or_default();
            screen.line(&format!("generation {id}: webhook {}: {}", short(&call.path), summary(call)));
        }
        shown = came.len();
    }
}

/// Publishes a task to a kept stack.
pub(crate) async fn publish(stack: &Path, options: &Options) -> Result<()> {
    let text = fs::read(stack).with_context(|| format!("--to {}: does that demo still run?", stack.display()))?;
    let addresses: Addresses = serde_json::from_slice(&text).with_context(|| format!("--to {}", stack.display()))?;
    let body = task::body(options, &addresses.webhook, &addresses.styles)?;
    let publisher = Publisher::connect(&addresses.amqp_url).await.context("does that demo still run?")?;
    publisher.publish(&addresses.amqp_queue, body.as_bytes()).await?;
    println!("task published to RabbitMQ ({} bytes); the demo that runs with --keep shows its webhooks", body.len());
    Ok(())
}

/// The file with the stack's addresses; removed with the stack.
struct StackFile(PathBuf);

impl Drop for StackFile {
    fn drop(&mut self) {
        // A file that stays leads to a clear error: nothing listens there.
        let _ = fs::remove_file(&self.0);
    }
}
