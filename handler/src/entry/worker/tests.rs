//! A worker whose GPU is lost, in front of an engine that needs none. No queue is reached.

use super::*;
use crate::{
    cli::options::{Cli, Command},
    engine::{
        batcher::{
            Batcher,
            tests::{End, Fake, wanted},
        },
        loader::{LoadError, ModelLoader},
    },
    observe::{Tally, metrics::Metrics, trace::Stage},
    storage::Store,
};
use aws_config::{BehaviorVersion, Region};
use aws_sdk_sqs::config::{Credentials, SharedCredentialsProvider};
use clap::Parser;
use futures_util::{future::ready, poll};
use std::ops::ControlFlow;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

fn config() -> WorkerConfig {
    let arguments = ["handler", "worker", "--model", "m", "--s3-bucket", "pictures", "--internal-api-token", "t"];
    let cli = Cli::try_parse_from(arguments.iter().chain(&["--sqs-queue-url", "http://127.0.0.1:1/q"])).unwrap();
    let Command::Worker(config) = cli.command else { panic!("another command") };
    config
}

fn aws() -> SdkConfig {
    let credentials = SharedCredentialsProvider::new(Credentials::new("test", "test", None, None, "test"));
    let aws = SdkConfig::builder().behavior_version(BehaviorVersion::latest()).region(Region::new("us-east-1"));
    aws.credentials_provider(credentials).endpoint_url("http://127.0.0.1:1").build()
}

#[tokio::test]
async fn a_lost_gpu_ends_the_worker_with_an_error() {
    let (config, aws, (engine, told)) = (config(), aws(), Fake::new());
    let batcher = Batcher::start(engine, None, Metrics::new(&Tally::default())).unwrap();
    let (loader, store) = (ModelLoader::of(ready(Ok(batcher.clone()))), Store::new(&config.service.store, &aws));
    let metrics = Metrics::new(store.tally());
    let runner = JobRunner::with(loader, store, metrics, &config.service, &aws).await.unwrap();
    let serving = serve_until(CancellationToken::new(), &runner, &config, &aws);
    tokio::pin!(serving);
    assert!(poll!(&mut serving).is_pending());
    told.ends.send(End::Loss).unwrap();
    let on_step = Box::new(|_| ControlFlow::Continue(()));
    assert!(batcher.paint(wanted(512), on_step, Stage::begin("wait")).await.is_err());
    let ended = timeout(SOON, serving).await.unwrap();
    assert!(matches!(ended.unwrap_err().downcast_ref(), Some(LoadError::Lost)));
}
