//! Odd messages are relayed as they are, or dead-lettered with the reason. None is lost, none blocks the next.

use crate::context::{PATIENCE, case, drained};
use anyhow::{Context, ensure};
use e2e::{
    paths,
    sqs::{Sqs, SqsFault},
};
use lapin::{
    BasicProperties,
    types::{AMQPValue, DecimalValue, FieldArray, FieldTable},
};
use std::collections::{BTreeMap, BTreeSet};
use tokio::process::Command;

const MIB: usize = 1024 * 1024;
const MARK: &str = "sqs-says-no";

/// A header of every type, some nested. RabbitMQ itself accepts neither NaN nor infinities.
fn every_type() -> FieldTable {
    let mut inner = FieldTable::default();
    inner.insert("deep".into(), AMQPValue::Boolean(true));
    let mut nested = AMQPValue::FieldTable(inner.clone());
    for _ in 0..100 {
        let mut array = FieldArray::default();
        array.push(nested);
        nested = AMQPValue::FieldArray(array);
    }
    let values = [
        AMQPValue::Boolean(false),
        AMQPValue::ShortShortInt(i8::MIN),
        AMQPValue::ShortShortUInt(u8::MAX),
        AMQPValue::ShortInt(i16::MIN),
        AMQPValue::ShortUInt(u16::MAX),
        AMQPValue::LongInt(i32::MIN),
        AMQPValue::LongUInt(u32::MAX),
        AMQPValue::LongLongInt(i64::MIN),
        AMQPValue::Float(f32::MAX),
        AMQPValue::Double(f64::MIN_POSITIVE),
        AMQPValue::DecimalValue(DecimalValue { scale: 255, value: u32::MAX }),
        AMQPValue::LongString("text\0".into()),
        AMQPValue::Timestamp(u64::MAX),
        AMQPValue::FieldTable(inner),
        nested,
        AMQPValue::Void,
    ];
    let mut headers = FieldTable::default();
    for (number, value) in values.into_iter().enumerate() {
        headers.insert(format!("odd-{number}").into(), value);
    }
    headers
}

fn many_headers() -> FieldTable {
    let mut headers = FieldTable::default();
    for number in 0..200 {
        headers.insert(format!("{number:0>255}").into(), AMQPValue::LongInt(number));
    }
    headers
}

/// Each body with its properties and the reason if SQS cannot carry it.
fn messages() -> Vec<(Vec<u8>, BasicProperties, Option<&'static str>)> {
    let plain = BasicProperties::default;
    let random: Vec<u8> = (0..1024_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 | 0x80).collect();
    let refused = format!("{{\"mark\":\"{MARK}\"}}");
    vec![
        (random, plain(), Some("not-utf8")),
        (b"{\"nul\":\"\0\"}".to_vec(), plain(), Some("illegal-character")),
        (b"{\"surrogate\":\"\xed\xa0\x80\"}".to_vec(), plain(), Some("not-utf8")),
        (vec![], plain(), Some("empty-body")),
        (vec![b'y'; MIB + 1], plain(), Some("too-large")),
        (vec![b'x'; MIB], plain().with_message_id("full".into()), None),
        (b"{\"types\":1}".to_vec(), plain().with_headers(every_type()), None),
        (b"{\"headers\":200}".to_vec(), plain().with_headers(many_headers()), None),
        (b"\xff with headers".to_vec(), plain().with_headers(many_headers()), Some("not-utf8")),
        (b"{\"time\":1}".to_vec(), plain().with_timestamp(u64::MAX), None),
        (b"{\"id\":1}".to_vec(), plain().with_message_id("\u{1}".repeat(255).into()), None),
        (refused.into_bytes(), plain(), Some("rejected-by-sqs")),
        (b"{\"the\":\"last\"}".to_vec(), plain(), None),
    ]
}

#[test]
fn odd_messages_are_relayed_or_dead_lettered_and_block_nobody() {
    case(|ctx| async move {
        let (name, stack) = ("odd", ctx.stack);
        let sqs = Sqs::start(name, None).await?;
        // Redpanda Connect: one bad entry fails its whole batch.
        sqs.set_fault(Some(SqsFault::sender_fault(MARK)));
        let attributes = (0..6).map(|number| format!("header:odd-{}", number * 3)).collect::<Vec<_>>().join(",");
        let attributes = format!("message-id,timestamp,{attributes}");
        let env = [("RELAY_ATTRIBUTES", attributes.as_str())];
        let relay = ctx.relay_to(&sqs, name, &env).await?;
        let all = messages();
        let sent = all.iter().map(|(body, properties, _)| (body.as_slice(), properties.clone()));
        stack.publisher.publish_with(name, sent).await?;
        let mut reasons = BTreeMap::new();
        for _ in all.iter().filter(|(.., reason)| reason.is_some()) {
            let dead = stack.publisher.take("odd.dead-letter", PATIENCE).await?;
            let headers = dead.delivery.properties.headers().clone().context("no headers")?;
            let reason = headers.inner().get("x-relay-reason").cloned();
            let Some(AMQPValue::LongString(reason)) = reason else { anyhow::bail!("no reason: {reason:?}") };
            if dead.delivery.data.ends_with(b"with headers") {
                assert!(headers.inner().len() > 200, "only {} headers are left", headers.inner().len());
            }
            reasons.insert(dead.delivery.data, reason.to_string());
        }
        let wanted: BTreeSet<&[u8]> =
            all.iter().filter(|(.., reason)| reason.is_none()).map(|(body, ..)| body.as_slice()).collect();
        sqs.accepts(wanted.len() as u64, PATIENCE).await?;
        let kept = sqs.kept();
        assert_eq!(kept.iter().map(|kept| kept.body.as_bytes()).collect::<BTreeSet<_>>(), wanted);
        for (body, _, reason) in all.iter().filter(|(.., reason)| reason.is_some()) {
            assert_eq!(reasons.get(body).map(String::as_str), *reason, "{:?}", &body[..body.len().min(20)]);
        }
        assert_eq!(sqs.broken_limits(), [] as [String; 0]);
        drained(&relay, &stack.publisher).await?;
        Ok(())
    });
}

/// The details of the dead letters of `odd_strings.py`.
const ODD_STRINGS: [&str; 6] = [
    "not UTF-8: message-id fffe",
    "not UTF-8: correlation-id 618062",
    "not UTF-8: header name fffe",
    "not UTF-8: header name fffe",
    "not UTF-8: header name 303030ff, header name 303031ff, header name 303032ff, 197 more",
    "not UTF-8: routing key fffe",
];

#[test]
fn strings_that_are_not_utf8_are_dead_lettered_and_block_nobody() {
    case(|ctx| async move {
        let (name, stack) = ("odd-strings", ctx.stack);
        let sqs = Sqs::start(name, None).await?;
        let relay = ctx.relay_to(&sqs, name, &[]).await?;
        let script = paths::repo().join("tests/cases/odd_strings.py");
        let published =
            Command::new(paths::tool("python")?).arg(script).args([&stack.broker.url(), name]).output().await?;
        ensure!(published.status.success(), "{}", String::from_utf8_lossy(&published.stderr));
        let mut details = BTreeMap::new();
        for _ in ODD_STRINGS {
            let dead = stack.publisher.take(&format!("{name}.dead-letter"), PATIENCE).await?;
            let headers = dead.delivery.properties.headers().clone().context("no headers")?;
            let text = |header: &str| match headers.inner().get(header) {
                Some(AMQPValue::LongString(text)) => Ok(text.to_string()),
                other => Err(anyhow::anyhow!("{header}: {other:?}")),
            };
            assert_eq!(text("x-relay-reason")?, "property-not-utf8");
            details.insert(String::from_utf8(dead.delivery.data)?, text("x-relay-detail")?);
        }
        let expected =
            (0..).zip(ODD_STRINGS).map(|(number, detail)| (format!("{{\"odd\":{number}}}"), detail.to_owned()));
        assert_eq!(details, expected.collect());
        sqs.accepts(ODD_STRINGS.len() as u64, PATIENCE).await?;
        assert!(sqs.kept().iter().all(|kept| kept.body.starts_with("{\"good\"")), "{:?}", sqs.kept());
        assert!(!relay.process.log_text().contains("cannot consume"), "a connection broke");
        drained(&relay, &stack.publisher).await?;
        Ok(())
    });
}
