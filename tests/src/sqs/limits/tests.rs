use super::*;
use serde_json::{Value, json};

/// The code with which a request is refused; none when it is taken.
fn refused(entries: &[Value], fifo: bool) -> Option<&'static str> {
    let text = json!({ "QueueUrl": "q", "Entries": entries }).to_string();
    let request: Batch<'_> = serde_json::from_str(&text).unwrap();
    let entries = request.entries.iter().map(entry).collect::<Result<Vec<()>, Refusal>>();
    batch(&request, fifo).and(entries.map(drop)).err().map(|refusal| refusal.code)
}

fn sized(id: usize, bytes: usize) -> Value {
    json!({ "Id": id.to_string(), "MessageBody": "x".repeat(bytes) })
}

#[test]
fn bytes_and_entries_are_counted_as_sqs_counts_them() {
    let with = |data_type: &str, field: &str, value: &str, body: usize| {
        let attribute = json!({ "DataType": data_type, field: value });
        json!({ "Id": "0", "MessageBody": "x".repeat(body), "MessageAttributes": { "n": attribute } })
    };
    let long = Some("BatchRequestTooLong");
    for (entries, want) in [
        (vec![], Some("EmptyBatchRequest")),
        ((0..10).map(|id| sized(id, 1)).collect(), None),
        ((0..11).map(|id| sized(id, 1)).collect(), Some("TooManyEntriesInBatchRequest")),
        (vec![sized(0, MAX_BYTES)], None),
        (vec![sized(0, MAX_BYTES + 1)], long),
        (vec![sized(0, MAX_BYTES - 1), sized(1, 1)], None),
        (vec![sized(0, MAX_BYTES), sized(1, 1)], long),
        // Two bytes each in UTF-8.
        (vec![json!({ "Id": "0", "MessageBody": "é".repeat(MAX_BYTES / 2) })], None),
        (vec![json!({ "Id": "0", "MessageBody": "é".repeat(MAX_BYTES / 2 + 1) })], long),
        // Name, type and value: 1 + 6 + 2 bytes, as text and as Base64.
        (vec![with("String", "StringValue", "ab", MAX_BYTES - 9)], None),
        (vec![with("String", "StringValue", "ab", MAX_BYTES - 8)], long),
        (vec![with("Binary", "BinaryValue", "//8=", MAX_BYTES - 9)], None),
        (vec![with("Binary", "BinaryValue", "//8=", MAX_BYTES - 8)], long),
    ] {
        assert_eq!(refused(&entries, false), want, "{} entries", entries.len());
    }
}

#[test]
fn what_sqs_refuses_is_refused_with_its_code() {
    let attributes = |count: usize| {
        let all = (0..count).map(|n| (format!("n{n}"), json!({ "DataType": "Number", "StringValue": "1" })));
        json!({ "Id": "0", "MessageBody": "x", "MessageAttributes": all.collect::<serde_json::Map<_, _>>() })
    };
    let group = |id: &str| json!({ "Id": "0", "MessageBody": "x", "MessageGroupId": id });
    let fifo = json!({ "Id": "0", "MessageBody": "x", "MessageGroupId": "g", "MessageDeduplicationId": "d" });
    let (parameter, missing) = (Some("InvalidParameterValue"), Some("MissingParameter"));
    for (entries, is_fifo, want) in [
        (vec![sized(0, 1), sized(0, 1)], false, Some("BatchEntryIdsNotDistinct")),
        (vec![json!({ "Id": "a.b", "MessageBody": "x" })], false, Some("InvalidBatchEntryId")),
        (vec![sized(0, 0)], false, missing),
        (vec![json!({ "Id": "0", "MessageBody": "a\u{0}" })], false, Some("InvalidMessageContents")),
        (vec![json!({ "Id": "0", "MessageBody": "\u{fffe}" })], false, Some("InvalidMessageContents")),
        (vec![attributes(10)], false, None),
        (vec![attributes(11)], false, parameter),
        (vec![group(&"g".repeat(128))], false, None),
        (vec![group(&"g".repeat(129))], false, parameter),
        (vec![group("two words")], false, parameter),
        (vec![fifo.clone()], true, None),
        (vec![fifo], false, parameter),
        (vec![sized(0, 1)], true, missing),
        (vec![group("g")], true, parameter),
    ] {
        assert_eq!(refused(&entries, is_fifo), want, "{entries:.200?}");
    }
}

#[test]
fn attribute_names_and_values_that_sqs_refuses() {
    for (name, data_type, text, taken) in [
        ("a-b_c.d", "String", "x", true),
        ("traceparent", "String.custom", "x", true),
        ("n", "Number", "-1.5e3", true),
        ("n", "Number", "one", false),
        ("n", "String", "", false),
        ("n", "String", "\u{1}", false),
        ("n", "Text", "x", false),
        ("AWS.n", "String", "x", false),
        (".n", "String", "x", false),
        ("a..b", "String", "x", false),
        ("a b", "String", "x", false),
        ("", "String", "x", false),
    ] {
        let attribute = json!({ "DataType": data_type, "StringValue": text });
        let entry = json!({ "Id": "0", "MessageBody": "x", "MessageAttributes": { name: attribute } });
        assert_eq!(refused(&[entry], false).is_none(), taken, "{name:?} {data_type} {text:?}");
    }
}
