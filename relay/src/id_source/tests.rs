use super::*;
use lapin::types::{ByteArray, DecimalValue, FieldTable};

const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn id(field: &str, body: &str, properties: &BasicProperties) -> Option<String> {
    let field: IdSource = field.parse().expect(field);
    field.id(&MessageParts { body, exchange: "", routing_key: "key", properties })
}

#[test]
fn options_are_read_or_refused_with_what_would_be_right() {
    let tokens = |tokens: &[&str]| IdSource::Json(tokens.iter().map(ToString::to_string).collect());
    for (text, want) in [
        ("message-id", IdSource::MessageId),
        ("routing-key", IdSource::RoutingKey),
        ("sha256", IdSource::Sha256),
        ("header:x", IdSource::Header("x".to_owned())),
        ("header:a:b c", IdSource::Header("a:b c".to_owned())),
        ("fixed:one:two", IdSource::Fixed("one:two".to_owned())),
        ("json:", tokens(&[])),
        ("json:/", tokens(&[""])),
        ("json:/style_id", tokens(&["style_id"])),
        ("json:/a~1b/~0~01/0", tokens(&["a/b", "~~1", "0"])),
    ] {
        assert_eq!(text.parse::<IdSource>().expect(text), want);
    }
    let long = format!("header:{}", "h".repeat(256));
    for (text, part) in [
        ("", "want message-id"),
        ("message-id:x", "want message-id"),
        ("sha256:x", "want message-id"),
        ("header", "want message-id"),
        ("Header:x", "want message-id"),
        ("header:", "needs a name"),
        (&long, "has 256 bytes, AMQP takes 255"),
        ("fixed:", "needs a text"),
        ("json:style_id", "starts with /"),
        ("json:/a~", "~0 or ~1"),
        ("json:/a~2", "~0 or ~1"),
    ] {
        let problem = text.parse::<IdSource>().expect_err(text);
        assert!(problem.contains(part), "{text}: {problem}");
    }
    assert_eq!(IdSource::for_group("message-id"), Ok(IdSource::MessageId));
    assert!(IdSource::for_group("sha256").is_err());
}

#[test]
fn pointers_find_strings_and_numbers_and_nothing_else() {
    let body = r#" {"s":"text","n":-1.50,"big":12345678901234567890123456789,"":"empty-key","a/b":{"~":[7,"x",["deep"]]},
        "null":null,"yes":true,"table":{},"nothing":"","twice":1,"twice":2,"tab":"a\tb","half":"\ud800"} "#;
    for (pointer, want) in [
        ("/s", Some("text")),
        ("/n", Some("-1.50")),
        ("/big", Some("12345678901234567890123456789")),
        ("/", Some("empty-key")),
        ("/a~1b/~0/0", Some("7")),
        ("/a~1b/~0/1", Some("x")),
        ("/a~1b/~0/2/0", Some("deep")),
        ("/twice", Some("2")),
        ("/tab", Some(&*sha256(b"a\tb"))),
        ("/a~1b/~0/00", None),
        ("/a~1b/~0/+0", None),
        ("/a~1b/~0/-", None),
        ("/a~1b/~0/3", None),
        ("/a~1b/~0/99999999999999999999", None),
        ("/s/0", None),
        ("/missing", None),
        ("/null", None),
        ("/yes", None),
        ("/table", None),
        ("/nothing", None),
        ("/half", Some(&*sha256(&[0xed, 0xa0, 0x80]))),
        ("", None),
    ] {
        let got = id(&format!("json:{pointer}"), body, &BasicProperties::default());
        assert_eq!(got.as_deref(), want, "{pointer}");
    }
    let deep = "[".repeat(100_000);
    for (body, want) in [("\"whole\"", Some("whole")), ("12", Some("12")), ("{", None), ("x", None), (&deep, None)] {
        assert_eq!(id("json:", body, &BasicProperties::default()).as_deref(), want, "{:.9}", body);
    }
    let nested = format!("{{\"a\":{}{},\"b\":1}}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(id("json:/b", &nested, &BasicProperties::default()).as_deref(), Some("1"));
    for odd in [r#""\ud83d":1"#, r#""x":"\udc00""#, r#""x":1e400"#, r#""x":[{"\ud83d":[-1e400]}]"#] {
        for body in [format!("{{{odd},\"b\":1}}"), format!("\u{feff} {{\"b\":1,{odd}}}")] {
            assert_eq!(id("json:/b", &body, &BasicProperties::default()).as_deref(), Some("1"), "{body}");
        }
    }
}

#[test]
fn a_value_that_is_no_id_becomes_its_hash() {
    let punctuation = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~aZ09";
    for (value, kept) in [
        (punctuation, true),
        (&"x".repeat(128), true),
        (&"x".repeat(129), false),
        ("two words", false),
        ("Ü", false),
        ("a\0", false),
        ("\u{7f}", false),
    ] {
        let want = if kept { value.to_owned() } else { sha256(value.as_bytes()) };
        assert_eq!(id(&format!("fixed:{value}"), "", &BasicProperties::default()), Some(want), "{value:?}");
    }
    assert_eq!(sha256(b""), EMPTY);
    assert_eq!(id("sha256", "", &BasicProperties::default()).as_deref(), Some(EMPTY));
}

#[test]
fn properties_and_headers_of_every_type() {
    let with_id = |id: &str| BasicProperties::default().with_message_id(id.into());
    assert_eq!(id("message-id", "", &with_id("m-1")).as_deref(), Some("m-1"));
    assert_eq!(id("message-id", "", &with_id("")), None);
    assert_eq!(id("message-id", "", &BasicProperties::default()), None);
    assert_eq!(id("routing-key", "", &BasicProperties::default()).as_deref(), Some("key"));
    assert_eq!(id("header:h", "", &BasicProperties::default()), None);
    for (value, want) in [
        (AMQPValue::LongString("text".into()), Some("text")),
        (AMQPValue::ShortString("short".into()), Some("short")),
        (AMQPValue::LongString("".into()), None),
        (AMQPValue::LongString(vec![0xff].into()), Some(&*sha256(&[0xff]))),
        (AMQPValue::ByteArray(ByteArray::from(b"bytes".to_vec())), Some("bytes")),
        (AMQPValue::Boolean(true), Some("true")),
        (AMQPValue::ShortShortInt(-1), Some("-1")),
        (AMQPValue::LongLongInt(i64::MIN), Some("-9223372036854775808")),
        (AMQPValue::Double(f64::NAN), Some("NaN")),
        (AMQPValue::DecimalValue(DecimalValue { scale: 2, value: 5 }), Some("5e-2")),
        (AMQPValue::Timestamp(u64::MAX), Some("18446744073709551615")),
        (AMQPValue::FieldTable(FieldTable::default()), None),
        (AMQPValue::Void, None),
    ] {
        let mut headers = FieldTable::default();
        headers.insert("h".into(), value.clone());
        let properties = BasicProperties::default().with_headers(headers);
        assert_eq!(id("header:h", "", &properties).as_deref(), want, "{value:?}");
    }
}
