//! The limits of SQS, as it documents and enforces them.

use super::wire::{Attribute, Batch, Entry, Refusal};
use std::collections::BTreeSet;

const MAX_BYTES: usize = 1024 * 1024;
const MAX_ENTRIES: usize = 10;
const MAX_ATTRIBUTES: usize = 10;
const MAX_ENTRY_ID: usize = 80;
const MAX_GROUP_ID: usize = 128;
const MAX_ATTRIBUTE_NAME: usize = 256;

/// The checks for which SQS rejects a whole request.
pub(super) fn batch(batch: &Batch<'_>, fifo: bool) -> Result<(), Refusal> {
    let refuse = |code, message: &str| Err(Refusal::sender(code, message));
    if batch.entries.is_empty() {
        return refuse("EmptyBatchRequest", "There should be at least one entry in the request.");
    }
    if batch.entries.len() > MAX_ENTRIES {
        return refuse("TooManyEntriesInBatchRequest", "Maximum number of entries per request are 10.");
    }
    let ids: BTreeSet<&str> = batch.entries.iter().map(|entry| &*entry.id).collect();
    if ids.len() < batch.entries.len() {
        return refuse("BatchEntryIdsNotDistinct", "Two or more entries have the same Id.");
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if ids.iter().any(|id| id.is_empty() || id.len() > MAX_ENTRY_ID || !id.chars().all(legal)) {
        return refuse("InvalidBatchEntryId", "An Id holds other than alphanumeric, hyphen and underscore.");
    }
    let bytes: usize = batch.entries.iter().map(size).sum();
    if bytes > MAX_BYTES {
        let message = format!("Batch requests cannot be longer than {MAX_BYTES} bytes. You have sent {bytes} bytes.");
        return Err(Refusal::sender("BatchRequestTooLong", message));
    }
    if batch.entries.iter().any(|entry| entry.body.is_empty()) {
        return refuse("MissingParameter", "The request must contain the parameter MessageBody.");
    }
    if fifo && batch.entries.iter().any(|entry| entry.group.is_none()) {
        return refuse("MissingParameter", "The request must contain the parameter MessageGroupId.");
    }
    if fifo && batch.entries.iter().any(|entry| entry.deduplication.is_none()) {
        return refuse(
            "InvalidParameterValue",
            "The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly",
        );
    }
    if !fifo && batch.entries.iter().any(|entry| entry.deduplication.is_some()) {
        return refuse("InvalidParameterValue", "MessageDeduplicationId is not valid for this queue type.");
    }
    Ok(())
}

/// The checks for which SQS rejects one entry.
pub(super) fn entry(entry: &Entry<'_>) -> Result<(), Refusal> {
    if !entry.body.chars().all(is_legal) {
        return Err(Refusal::sender("InvalidMessageContents", "Invalid characters found."));
    }
    let invalid = |message: String| Err(Refusal::sender("InvalidParameterValue", message));
    for (name, id) in [("MessageGroupId", &entry.group), ("MessageDeduplicationId", &entry.deduplication)] {
        let legal = |id: &str| (1..=MAX_GROUP_ID).contains(&id.len()) && id.chars().all(|c| c.is_ascii_graphic());
        if id.as_deref().is_some_and(|id| !legal(id)) {
            return invalid(format!(
                "{name} can only include alphanumeric and punctuation characters. 1 to 128 in length."
            ));
        }
    }
    if entry.attributes.len() > MAX_ATTRIBUTES {
        return invalid(format!(
            "Number of message attributes [{}] exceeds the allowed maximum [10].",
            entry.attributes.len()
        ));
    }
    for (name, attribute) in &entry.attributes {
        if !is_name(name) {
            return invalid(format!("Invalid attribute name {name:?}."));
        }
        if let Err(problem) = value(attribute) {
            return invalid(format!("The message attribute {name:?} {problem}"));
        }
    }
    Ok(())
}

fn value(attribute: &Attribute) -> Result<(), &'static str> {
    let text = match attribute.data_type.split('.').next() {
        Some("String" | "Number") => attribute.string_value.as_deref(),
        Some("Binary") => attribute.binary_value.as_deref(),
        _ => return Err("has an invalid type"),
    };
    let text = text.filter(|text| !text.is_empty()).ok_or("must contain a non-empty value")?;
    if attribute.data_type.starts_with("Number") && text.parse::<f64>().is_err() {
        return Err("is no number");
    }
    if text.chars().all(is_legal) { Ok(()) } else { Err("holds invalid characters") }
}

fn is_name(name: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let lower = name.to_ascii_lowercase();
    let reserved = lower.starts_with("aws.") || lower.starts_with("amazon.");
    let dots = name.starts_with('.') || name.ends_with('.') || name.contains("..");
    (1..=MAX_ATTRIBUTE_NAME).contains(&name.len()) && name.chars().all(legal) && !reserved && !dots
}

/// The bytes that SQS counts for an entry.
fn size(entry: &Entry<'_>) -> usize {
    let attributes = entry.attributes.iter().map(|(name, attribute)| {
        let text = attribute.string_value.as_ref().map_or(0, String::len);
        let binary = attribute
            .binary_value
            .as_ref()
            .map_or(0, |base64| base64.len() / 4 * 3 - base64.bytes().rev().take_while(|&byte| byte == b'=').count());
        name.len() + attribute.data_type.len() + text + binary
    });
    entry.body.len() + attributes.sum::<usize>()
}

fn is_legal(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{FFFD}' | '\u{10000}'..)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// The error code of a request; none when it is accepted.
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
    fn requests_that_sqs_rejects_are_rejected_with_its_code() {
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
}
