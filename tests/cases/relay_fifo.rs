//! The relay in front of a FIFO queue: order inside each group, ids and attributes.

use crate::context::{PATIENCE, case, drained};
use anyhow::{Context, Result};
use aws_sdk_sqs::types::{Message, MessageSystemAttributeName};
use e2e::wait;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use std::collections::BTreeMap;

const MESSAGES: i32 = 200;
const GROUPS: i32 = 7;
const PERSISTENT: u8 = 2;
const TIME: u64 = 1_700_000_000;

/// The properties of a message; its number is also a header.
fn properties(number: i32) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert("x number".into(), AMQPValue::LongInt(number));
    headers.insert("traceparent".into(), AMQPValue::LongString(format!("00-{number}").into()));
    BasicProperties::default()
        .with_delivery_mode(PERSISTENT)
        .with_message_id(format!("m-{number}").into())
        .with_timestamp(TIME)
        .with_headers(headers)
}

/// An SQS attribute as `Type=value`.
fn attribute(message: &Message, name: &str) -> Option<String> {
    let value = message.message_attributes.as_ref()?.get(name)?;
    Some(format!("{}={}", value.data_type, value.string_value.as_deref()?))
}

/// Checks ids and attributes of a message; gives its group and number.
fn checked(message: &Message) -> Result<(String, i32)> {
    let system = |name| message.attributes.as_ref().and_then(|all| all.get(&name)).cloned().context("not there");
    let body: serde_json::Value = serde_json::from_str(message.body.as_deref().context("no body")?)?;
    let number = i32::try_from(body["number"].as_i64().context("no number")?)?;
    let group = system(MessageSystemAttributeName::MessageGroupId)?;
    // Without a style its deduplication id is its group.
    let want = body["style_id"].as_i64().map_or(format!("m-{number}"), |style| style.to_string());
    assert_eq!(group, want);
    assert_eq!(system(MessageSystemAttributeName::MessageDeduplicationId)?, format!("m-{number}"));
    for (name, want) in [
        ("message_id", Some(format!("String=m-{number}"))),
        ("timestamp", Some(format!("Number={TIME}"))),
        ("x_number", Some(format!("Number={number}"))),
        ("traceparent", Some(format!("String=00-{number}"))),
        ("correlation_id", None),
    ] {
        assert_eq!(attribute(message, name), want, "{name} of {number}");
    }
    Ok((group, number))
}

#[test]
fn a_fifo_queue_keeps_the_order_of_each_group() {
    case(|ctx| async move {
        let (name, stack) = ("fifo", ctx.stack);
        let url = stack.aws.fifo_queue("relay.fifo").await?;
        stack.publisher.declare(name).await?;
        let body = |number: i32| match number % (GROUPS + 1) {
            GROUPS => format!("{{\"number\":{number}}}"),
            style => format!("{{\"style_id\":{style},\"number\":{number}}}"),
        };
        let messages: Vec<_> = (0..MESSAGES).map(|number| (body(number), properties(number))).collect();
        let messages = messages.iter().map(|(body, properties)| (body.as_bytes(), properties.clone()));
        stack.publisher.publish_with(name, messages).await?;
        let options = [
            ("SQS_MESSAGE_GROUP_ID", "json:/style_id"),
            ("RELAY_ATTRIBUTES", "timestamp,message-id,header:x number,correlation-id,traceparent"),
        ];
        let relay = ctx.start_relay(name, &url, &options).await?;
        let mut groups: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        let arrived = async {
            while groups.values().map(Vec::len).sum::<usize>() < usize::try_from(MESSAGES)? {
                for message in stack.aws.receive(&url, 1, 10).await? {
                    let (group, number) = checked(&message)?;
                    groups.entry(group).or_default().push(number);
                    let handle = message.receipt_handle.context("no receipt handle")?;
                    stack.aws.sqs.delete_message().queue_url(&url).receipt_handle(handle).send().await?;
                }
            }
            anyhow::Ok(())
        };
        wait::at_most("arrival of every message", PATIENCE, arrived).await??;
        for style in 0..GROUPS {
            let want: Vec<i32> = (0..MESSAGES).filter(|number| number % (GROUPS + 1) == style).collect();
            assert_eq!(groups.remove(&style.to_string()), Some(want), "group {style}");
        }
        assert_eq!(groups.len(), usize::try_from(MESSAGES / (GROUPS + 1))?, "messages without a style: {groups:?}");
        drained(&relay, &stack.publisher).await?;
        Ok(())
    });
}
