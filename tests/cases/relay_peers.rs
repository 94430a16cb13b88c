//! Known bugs of similar programs that no other case covers, and a check that docs/OPERATIONS.md names existing tests for all.

use crate::context::{PATIENCE, case, drained};
use anyhow::{Context, Result, ensure};
use e2e::{paths::repo, sqs::Sqs, wait};
use lapin::BasicProperties;
use std::{fs, time::Duration};

const KIB: usize = 1024;

/// Vector (#21037): without a prefetch the broker sends the whole queue at once. lapin: nothing else bounds the buffer.
#[test]
fn the_broker_hands_out_no_more_than_the_prefetch() {
    case(|ctx| async move {
        let (name, stack) = ("peer-prefetch", ctx.stack);
        let sqs = Sqs::start(name, None).await?;
        let bodies = vec![b"{}".as_slice(); 50];
        stack.publisher.declare(name).await?;
        stack.publisher.publish_all(name, bodies).await?;
        let relay = ctx.relay_to(&sqs, name, &[("AMQP_PREFETCH", "12")]).await?;
        sqs.accepts(50, PATIENCE).await?;
        // From now on nothing is acknowledged.
        sqs.set_latency(Duration::from_secs(600));
        stack.publisher.publish_all(name, vec![b"{}".as_slice(); 50]).await?;
        let held = async || (relay.metric("relay_unacked_messages").await? == 12.0).then_some(());
        wait::until("12 messages held", PATIENCE, held).await?;
        assert_eq!(stack.publisher.ready_count(name).await?, 38, "the others stay with the broker");
        relay.process.kill().await;
        Ok(())
    });
}

/// Vector (#22631): one SendMessage for each message, and no attributes.
#[test]
fn ten_messages_share_a_request_and_bring_their_attributes() {
    case(|ctx| async move {
        let (name, stack) = ("peer-batch", ctx.stack);
        let sqs = Sqs::start(name, None).await?;
        let properties = |number: u32| BasicProperties::default().with_message_id(format!("m{number}").into());
        stack.publisher.declare(name).await?;
        stack.publisher.publish_with(name, (0..100).map(|number| (b"{}".as_slice(), properties(number)))).await?;
        let relay = ctx.relay_to(&sqs, name, &[("RELAY_LINGER_MS", "2000")]).await?;
        sqs.accepts(100, PATIENCE).await?;
        assert_eq!(sqs.requests(), 10);
        for kept in sqs.kept() {
            let id = kept.attributes.get("message_id").and_then(|attribute| attribute.string_value.as_deref());
            assert!(id.is_some_and(|id| id.starts_with('m')), "{kept:?}");
        }
        assert!(relay.process.terminate(PATIENCE).await?.success());
        Ok(())
    });
}

/// Redpanda Connect (#756): a batch of ten over the byte limit is refused again and again.
#[test]
fn a_batch_ends_where_the_byte_limit_of_sqs_is() {
    case(|ctx| async move {
        let (name, stack) = ("peer-bytes", ctx.stack);
        let sqs = Sqs::start(name, None).await?;
        let body = vec![b'x'; 300 * KIB];
        stack.publisher.declare(name).await?;
        stack.publisher.publish_all(name, vec![body.as_slice(); 20]).await?;
        let relay = ctx.relay_to(&sqs, name, &[("RELAY_LINGER_MS", "2000")]).await?;
        sqs.accepts(20, PATIENCE).await?;
        assert_eq!((sqs.broken_limits(), sqs.requests()), (vec![], 7), "three fit into a MiB");
        drained(&relay, &stack.publisher).await?;
        Ok(())
    });
}

/// Each row of the table names an existing test in its last column, as `file` `test`.
#[test]
fn every_test_that_the_docs_name_for_a_peers_fault_exists() -> Result<()> {
    let docs = fs::read_to_string(repo().join("docs/OPERATIONS.md"))?;
    let (_, section) = docs.split_once("\n## What others get wrong\n").context("no such section")?;
    let rows: Vec<&str> = section.lines().take_while(|line| !line.starts_with("## ")).collect();
    let rows = rows.iter().filter(|line| line.starts_with('|')).skip(2);
    let mut seen = 0;
    for row in rows {
        let last = row.trim_end_matches('|').rsplit('|').next().context("no last column")?;
        let names: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        ensure!(names.len() == 2, "want `file` `test`: {row}");
        let text = fs::read_to_string(repo().join(names[0])).with_context(|| row.to_string())?;
        let (before, _) = text.split_once(&format!("fn {}()", names[1])).with_context(|| row.to_string())?;
        let above: Vec<&str> = before.lines().rev().take(4).map(str::trim).collect();
        ensure!(above.iter().any(|line| line.starts_with("#[") && line.contains("test]")), "no test: {row}");
        for word in row.split([' ', '(', ')', ',']).filter(|word| word.starts_with('#')) {
            ensure!(above.iter().any(|line| line.contains(word)), "{word} is not named above {}", names[1]);
        }
        seen += 1;
    }
    ensure!(seen >= 15, "only {seen} rows");
    Ok(())
}
