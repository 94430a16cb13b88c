//! `template.yaml`, deployed to a stand-in: `deployed/main.py` deploys and checks it and prints the settings of relay and handler;
//! here the real ones run with exactly those.

use crate::context::{PATIENCE, TestContext, case, model};
use anyhow::{Context, Result};
use e2e::{
    aws::MODELS,
    paths::{binary, repo, tool},
    process::{Process, Spec, output},
    relay::Relay,
    stack::TOKEN,
};
use serde_json::{Map, Value};

/// Deploys; gives the script's output.
async fn deploy(ctx: &TestContext, name: &str, kind: &str) -> Result<Value> {
    let stack = ctx.stack;
    let (aws, amqp_url) = (&stack.aws, stack.broker.url());
    let host = ctx.backend.url().replace("http://", "");
    let spec = Spec::new(&format!("deploy-{name}"), tool("python3")?)
        .args([repo().join("tests/cases/deployed/main.py")])
        .args([aws.endpoint(), name, kind, MODELS, &host, &amqp_url, TOKEN]);
    let (status, said) = output(&stack.run, spec, PATIENCE).await?;
    assert!(status.success(), "{said}");
    Ok(serde_json::from_str(said.lines().last().context("it said nothing")?)?)
}

fn variables(of: &Value) -> Result<&Map<String, Value>> {
    of.as_object().context("no variables")
}

/// A worker with the function's settings, except for those that this machine cannot have.
fn worker(ctx: &TestContext, name: &str, deployed: &Value) -> Result<Process> {
    let stack = ctx.stack;
    let environment = variables(&deployed["handler"])?;
    let bucket = environment["S3_BUCKET"].as_str().context("no bucket")?;
    Spec::new(&format!("worker-{name}"), binary("handler")?)
        .args(["worker"])
        .envs(stack.aws.env())
        .envs(environment.iter().filter_map(|(key, value)| Some((key, value.as_str()?))))
        // This machine has no GPU.
        .env("EASEL_DEVICE", "cpu")
        .env("SQS_QUEUE_URL", deployed["tasks"].as_str().context("no queue")?)
        .env("EASEL_MODEL_DIR", model().as_os_str())
        .env("EASEL_CACHE_DIR", stack.run.folder(&format!("{name}-cache"))?.as_os_str())
        .env("EASEL_RESULT_BASE_URL", format!("{}/{bucket}", stack.aws.endpoint()))
        .start(&stack.run)
}

/// Runs the container's health check against a relay.
async fn is_healthy(ctx: &TestContext, name: &str, deployed: &Value, relay: &Relay) -> Result<bool> {
    let command: Vec<String> = serde_json::from_value(deployed["health"].clone())?;
    let port = deployed["relay"]["RELAY_HEALTH_ADDR"].as_str().context("no address")?.replace(':', "/");
    let here = relay.health.replace("http://", "").replace(':', "/");
    let [program, arguments @ ..] = &command[..] else { panic!("no command") };
    let spec =
        Spec::new(&format!("health-{name}"), program).args(arguments.iter().map(|text| text.replace(&port, &here)));
    Ok(output(&ctx.stack.run, spec, PATIENCE).await?.0.success())
}

async fn paints(ctx: TestContext, name: &str, kind: &str) -> Result<()> {
    let stack = ctx.stack;
    let deployed = deploy(&ctx, name, kind).await?;
    let queue = deployed["tasks"].as_str().context("no queue")?;
    let options = variables(&deployed["relay"])?;
    // Its health endpoint gets a free port of this machine.
    let options = options.iter().filter(|(key, _)| *key != "RELAY_HEALTH_ADDR");
    let options: Vec<_> = options.filter_map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect();
    let relay = ctx.relay(name, queue, &options).await?;
    assert!(is_healthy(&ctx, name, &deployed, &relay).await?, "the relay lives");
    let worker = worker(&ctx, name, &deployed)?;
    let task = ctx.task();
    stack.publisher.publish(name, task.body().as_bytes()).await?;
    ctx.painting(&task).await?;
    stack.aws.has_depth(queue, (0, 0), PATIENCE).await?;
    let log = worker.log_text();
    let metrics = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let metrics = metrics.filter(|line| line["_aws"].is_object()).collect::<Vec<_>>();
    let [metrics] = &metrics[..] else { panic!("one task, one line of metrics: {log}") };
    assert_watched(&deployed, metrics);
    assert!(relay.process.terminate(PATIENCE).await?.success() && worker.terminate(PATIENCE).await?.success());
    Ok(())
}

/// Alarm and dashboard use metrics that the handler writes, with its namespace and dimensions.
fn assert_watched(deployed: &Value, written: &Value) {
    let directive = &written["_aws"]["CloudWatchMetrics"][0];
    let has = |name: &Value| {
        let metrics = directive["Metrics"].as_array();
        metrics.is_some_and(|metrics| metrics.iter().any(|metric| metric["Name"] == *name))
    };
    let alarm = &deployed["alarm"];
    assert_eq!(alarm["namespace"], directive["Namespace"]);
    assert!(has(&alarm["metric"]), "{alarm} {written}");
    let dimensions = alarm["dimensions"].as_array().into_iter().flatten().map(|one| one["Name"].clone());
    let dimensions = Value::Array(dimensions.collect());
    assert!(directive["Dimensions"].as_array().is_some_and(|sets| sets.contains(&dimensions)), "{alarm} {written}");
    let mut shown = 0;
    // "." repeats the value above, "..." all of them.
    let mut namespace = &Value::Null;
    for row in deployed["dashboard"].as_array().into_iter().flatten() {
        if row[0] != "." && row[0] != "..." {
            namespace = &row[0];
        }
        let own = row[0] == "Easel" || (row[0] == "." && namespace == "Easel");
        if own && row[2] != Value::Null && row[1].is_string() && row[2].is_string() {
            assert!(has(&row[1]), "{row} {written}");
            shown += 1;
        }
    }
    assert!(shown >= 5, "{}", deployed["dashboard"]);
}

#[test]
fn what_a_standard_deployment_makes_carries_a_task_to_its_picture() {
    case(|ctx| paints(ctx, "deployed-standard", "standard"));
}

#[test]
fn what_a_fifo_deployment_makes_carries_a_task_to_its_picture() {
    case(|ctx| paints(ctx, "deployed-fifo", "fifo"));
}
