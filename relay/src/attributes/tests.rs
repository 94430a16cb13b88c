use super::*;
use lapin::{
    BasicProperties,
    types::{ByteArray, FieldArray, FieldTable},
};

fn names(list: &str) -> Vec<String> {
    list.parse::<Attributes>().expect(list).0.iter().map(|item| item.name.to_string()).collect()
}

fn text(text: &str) -> Option<AttributeValue> {
    Some(AttributeValue::Text(text.to_owned()))
}

fn number(text: &str) -> Option<AttributeValue> {
    Some(AttributeValue::Number(text.to_owned()))
}

#[test]
fn lists_keep_their_order_and_get_legal_names() {
    let long = "h".repeat(255);
    for (list, want) in [
        ("", vec![]),
        (" ", vec![]),
        (DEFAULT, vec!["message_id", "correlation_id", "timestamp", "traceparent"]),
        ("priority, type ,app-id", vec!["priority", "type", "app_id"]),
        ("content-type,routing-key,exchange,tracestate", vec!["content_type", "routing_key", "exchange", "tracestate"]),
        ("header:x-style", vec!["x-style"]),
        ("header:a b:ü", vec!["a_b__"]),
        ("header:..a..b..", vec!["__a._b._"]),
        ("header:.", vec!["_"]),
        ("header:AWS.x,header:amazon.y,header:awsome", vec!["_AWS.x", "_amazon.y", "awsome"]),
        (&format!("header:{long}"), vec![&*long]),
    ] {
        assert_eq!(names(list), want, "{list}");
    }
    let reserved = names(&format!("header:aws.{}", "x".repeat(251)));
    assert_eq!(reserved[0].len(), 256, "SQS takes 256");
}

#[test]
fn lists_that_cannot_work_are_refused() {
    let eleven: Vec<String> = (0..11).map(|number| format!("header:h{number}")).collect();
    let long = format!("header:{}", "h".repeat(256));
    for (list, part) in [
        (&*eleven.join(","), "has 11 attributes, SQS takes 10"),
        ("message-id,message-id", "two items would become the attribute message_id"),
        ("header:a b,header:a_b", "two items would become the attribute a_b"),
        ("traceparent,header:traceparent", "attribute traceparent"),
        ("body", "\"body\" is none of"),
        ("message-id,,type", "\"\" is none of"),
        ("header:", "needs a name"),
        (&long, "has 256 bytes, AMQP takes 255"),
    ] {
        let problem = list.parse::<Attributes>().expect_err(list);
        assert!(problem.contains(part), "{list}: {problem}");
    }
    assert_eq!(names(&eleven[..10].join(",")).len(), 10);
}

#[test]
fn attributes_come_in_the_order_of_the_list() {
    let list = "priority,message-id,correlation-id,timestamp,traceparent,routing-key,exchange,type,app-id,content-type";
    let attributes: Attributes = list.parse().unwrap();
    let mut headers = FieldTable::default();
    headers.insert("traceparent".into(), AMQPValue::LongString("00-a-b-01".into()));
    let full = BasicProperties::default()
        .with_message_id("m\0".into())
        .with_correlation_id("c".into())
        .with_timestamp(u64::MAX)
        .with_headers(headers)
        .with_type("t".into())
        .with_app_id("a".into())
        .with_content_type("".into())
        .with_priority(9);
    let got = attributes.of(&MessageParts { body: "", exchange: "e", routing_key: "", properties: &full });
    let got: Vec<(&str, Option<AttributeValue>)> =
        got.iter().map(|got| (&*got.name, Some(got.value.clone()))).collect();
    assert_eq!(
        got,
        vec![
            ("priority", number("9")),
            ("message_id", Some(AttributeValue::Binary(b"m\0".to_vec()))),
            ("correlation_id", text("c")),
            ("timestamp", number("18446744073709551615")),
            ("traceparent", text("00-a-b-01")),
            ("exchange", text("e")),
            ("type", text("t")),
            ("app_id", text("a")),
        ]
    );
    let empty = BasicProperties::default();
    assert_eq!(attributes.of(&MessageParts { body: "", exchange: "", routing_key: "", properties: &empty }), vec![]);
}

#[test]
fn values_of_every_type() {
    let mut table = FieldTable::default();
    table.insert("n".into(), AMQPValue::Void);
    table.insert("f".into(), AMQPValue::Double(f64::INFINITY));
    table.insert("l".into(), AMQPValue::FieldArray(FieldArray::from(vec![AMQPValue::Boolean(true)])));
    let decimal = |scale, value| AMQPValue::DecimalValue(DecimalValue { scale, value });
    for (value, want) in [
        (AMQPValue::Boolean(false), text("false")),
        (AMQPValue::ShortShortInt(-1), number("-1")),
        (AMQPValue::ShortShortUInt(255), number("255")),
        (AMQPValue::ShortInt(-2), number("-2")),
        (AMQPValue::ShortUInt(2), number("2")),
        (AMQPValue::LongInt(-3), number("-3")),
        (AMQPValue::LongUInt(3), number("3")),
        (AMQPValue::LongLongInt(i64::MIN), number("-9223372036854775808")),
        (AMQPValue::Timestamp(u64::MAX), number("18446744073709551615")),
        (AMQPValue::Float(0.1), number("0.1")),
        (AMQPValue::Float(f32::MAX), text("3.4028235e38")),
        (AMQPValue::Double(-1.5), number("-1.5")),
        (AMQPValue::Double(-0.0), number("0")),
        (AMQPValue::Double(1e37), number(&format!("1{}", "0".repeat(37)))),
        (AMQPValue::Double(1e38), text("1e38")),
        (AMQPValue::Double(1e-37), number(&format!("0.{}1", "0".repeat(36)))),
        (AMQPValue::Double(1e-38), text("1e-38")),
        (AMQPValue::Double(f64::MAX), text("1.7976931348623157e308")),
        (AMQPValue::Double(5e-324), text("5e-324")),
        (AMQPValue::Double(f64::NAN), text("NaN")),
        (AMQPValue::Float(f32::NEG_INFINITY), text("-inf")),
        (decimal(0, 7), number("7")),
        (decimal(2, 5), number("0.05")),
        (decimal(2, 1234), number("12.34")),
        (decimal(37, 1), number(&format!("0.{}1", "0".repeat(36)))),
        (decimal(255, 7), text("7e-255")),
        (AMQPValue::ShortString("s".into()), text("s")),
        (AMQPValue::LongString("Ü".into()), text("Ü")),
        (AMQPValue::LongString("".into()), None),
        (AMQPValue::LongString("\u{ffff}".into()), Some(AttributeValue::Binary("\u{ffff}".as_bytes().to_vec()))),
        (AMQPValue::LongString(vec![0xff].into()), Some(AttributeValue::Binary(vec![0xff]))),
        (AMQPValue::ByteArray(ByteArray::from(b"b".to_vec())), Some(AttributeValue::Binary(b"b".to_vec()))),
        (AMQPValue::ByteArray(ByteArray::from(vec![])), None),
        (AMQPValue::FieldTable(table), text("{\"f\":null,\"l\":[true],\"n\":null}")),
        (AMQPValue::FieldTable(FieldTable::default()), text("{}")),
        (AMQPValue::Void, None),
    ] {
        assert_eq!(AttributeValue::of(&value), want, "{value:?}");
    }
}

#[test]
fn nesting_without_end_becomes_no_attribute() {
    let nested =
        |depth| (0..depth).fold(AMQPValue::Void, |inner, _| AMQPValue::FieldArray(FieldArray::from(vec![inner])));
    assert_eq!(AttributeValue::of(&nested(3)), text("[[[null]]]"));
    assert!(AttributeValue::of(&nested(64)).is_some());
    assert_eq!(AttributeValue::of(&nested(65)), None);
    assert_eq!(AttributeValue::of(&nested(2_000)), None);
}
