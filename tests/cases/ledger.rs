//! Every scenario of the ledger with few messages: nothing is lost, nothing arrives twice without need. Only the binary `ledger`
//! plays `random`, which takes 60 s.
//!
//! Some are known bugs of similar programs; the comment at the case names them.

use anyhow::{Result, ensure};
use clap::Parser;
use e2e::{
    broker::Broker,
    ledger::{Options, Report, Scenario, run},
    paths::RunDir,
};
use std::sync::{LazyLock, OnceLock};
use tokio::{
    runtime::Runtime,
    sync::{OnceCell, RwLock},
};

static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime"));
static RUN: OnceLock<RunDir> = OnceLock::new();
static BROKER: OnceCell<RwLock<Broker>> = OnceCell::const_new();

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
}

/// The broker that a case uses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Node {
    /// The one of all cases that do not break the broker.
    Shared,
    /// Its own, because the scenario breaks it.
    Own,
}

fn folder() -> &'static RunDir {
    RUN.get_or_init(|| RunDir::create().expect("a folder for logs"))
}

async fn shared() -> Result<&'static RwLock<Broker>> {
    BROKER.get_or_try_init(async || Ok(RwLock::new(Broker::start(folder(), "rabbitmq-ledger").await?))).await
}

async fn report(name: &str, node: Node, options: &Options) -> Result<Report> {
    if node == Node::Shared {
        return run(folder(), shared().await?, options).await;
    }
    let broker = Broker::start(folder(), &format!("rabbitmq-{name}")).await?;
    run(folder(), &RwLock::new(broker), options).await
}

/// Runs a scenario; gives the report if every promise was kept.
fn case(name: &str, node: Node, args: &[&str]) -> Report {
    let fixed = ["ledger", "--name", name, "--messages", "400", "--hold-ms", "1500", "--heartbeat", "2"];
    let patience = ["--patience", "90", "--prefetch", "100"];
    let options = Cli::parse_from(fixed.iter().chain(&patience).chain(args)).options;
    let ended = RUNTIME.block_on(async {
        let report = report(name, node, &options).await?;
        let violations = report.violations();
        ensure!(violations.is_empty(), "{violations:?}\n{report}");
        let settled = report.sums.received + report.sums.dead_lettered;
        ensure!(report.sums.confirmed == options.messages && settled == options.messages, "{report}");
        Ok(report)
    });
    ended.unwrap_or_else(|error| panic!("{name}: {error:#}"))
}

fn plain(fault: &str, node: Node) -> Report {
    case(&format!("ledger-{fault}"), node, &["--fault", fault])
}

#[test]
fn none() {
    let report = plain("none", Node::Shared);
    assert_eq!((report.sums.duplicated, report.fault), (0, Scenario::None));
}

/// Vector (#20735): no reconnect after an error of the broker.
#[test]
fn broker_restart() {
    plain("broker-restart", Node::Own);
}

#[test]
fn broker_kill_classic() {
    case("ledger-kill-classic", Node::Own, &["--fault", "broker-kill"]);
}

/// RabbitMQ: a quorum queue drops a message after 20 deliveries, and a lost connection is one.
#[test]
fn broker_kill_quorum() {
    case("ledger-kill-quorum", Node::Own, &["--fault", "broker-kill", "--queue-type", "quorum"]);
}

/// FIFO: a refused entry must not be overtaken by later ones of its group.
#[test]
fn sqs_partial_fifo() {
    case("ledger-partial-fifo", Node::Shared, &["--fault", "sqs-partial", "--fifo"]);
}

#[test]
fn relay_kill_fifo() {
    case("ledger-kill-fifo", Node::Shared, &["--fault", "relay-kill", "--fifo"]);
}

#[test]
fn broker_cut_fifo() {
    case("ledger-cut-fifo", Node::Shared, &["--fault", "broker-cut", "--fifo"]);
}

/// lapin: recovery gives up after 16 tries; an ack on a recovered channel hits another message.
#[test]
fn broker_cut() {
    plain("broker-cut", Node::Shared);
}

/// rabbot (#202), lapin (#283): the consumer is dead, and the connection looks healthy for hours.
#[test]
fn broker_half_open() {
    plain("broker-half-open", Node::Shared);
}

#[test]
fn broker_slow() {
    plain("broker-slow", Node::Shared);
}

/// lapin: a cancel by the server only ends the stream.
#[test]
fn broker_cancel() {
    plain("broker-cancel", Node::Shared);
}

/// lapin: channel errors are left to the user, and late acks must not reach the next channel.
#[test]
fn broker_ack_timeout() {
    plain("broker-ack-timeout", Node::Own);
}

/// lapin: a blocked connection that also publishes stops acks, too.
#[test]
fn broker_blocked() {
    plain("broker-blocked", Node::Own);
}

#[test]
fn relay_kill() {
    plain("relay-kill", Node::Shared);
}

/// Vector: a downstream error becomes a reject without requeue.
#[test]
fn sqs_cut() {
    plain("sqs-cut", Node::Shared);
}

/// aws-sdk-rust (#1094): a call without an attempt timeout hangs for ever.
#[test]
fn sqs_half_open() {
    plain("sqs-half-open", Node::Shared);
}

#[test]
fn sqs_slow() {
    plain("sqs-slow", Node::Shared);
}

/// Vector: throttling by SQS is not retried.
#[test]
fn sqs_throttle() {
    plain("sqs-throttle", Node::Shared);
}

/// Throttling is never the message's fault, whatever `SenderFault` says.
#[test]
fn sqs_throttle_entries() {
    plain("sqs-throttle-entries", Node::Shared);
}

/// Redpanda Connect: immediate requeue loops.
#[test]
fn sqs_500() {
    let report = plain("sqs-500", Node::Shared);
    // Without a fault 400 messages need 40 to 400 requests; a loop would make thousands during the fault.
    assert!(report.requests < 800, "{} requests", report.requests);
}

/// camel, shoryuken (#1037): partial failures are ignored. Redpanda Connect (#1070): retried messages have no body.
#[test]
fn sqs_partial() {
    plain("sqs-partial", Node::Shared);
}

/// Redpanda Connect: one bad entry fails its whole batch, and the others arrive twice.
#[test]
fn sqs_sender_fault() {
    let report = plain("sqs-sender-fault", Node::Shared);
    // One of ten groups is refused during the fault, which lasts half of the time.
    assert!((5..=40).contains(&report.sums.dead_lettered), "{report}");
}

#[test]
fn sqs_lost_response() {
    let report = plain("sqs-lost-response", Node::Shared);
    assert!(report.sums.duplicated > 0, "no response was lost: the case shows nothing");
}

/// FIFO: nothing is accepted twice, and nothing overtakes a retried message.
#[test]
fn sqs_lost_response_fifo() {
    let report = case("ledger-lost-fifo", Node::Shared, &["--fault", "sqs-lost-response", "--fifo"]);
    assert_eq!(report.sums.duplicated, 0, "{report}");
}
