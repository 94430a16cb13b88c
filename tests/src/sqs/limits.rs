//! The limits of SQS, as it documents and enforces them.

use super::wire::{Attribute, Batch, Entry, Refusal};
use std::collections::BTreeSet;

const MAX_BYTES: usize = 1024 * 1024;
const MAX_ENTRIES: usize = 10;
const MAX_ATTRIBUTES: usize = 10;
const MAX_ENTRY_ID: usize = 80;
const MAX_GROUP_ID: usize = 128;
const MAX_ATTRIBUTE_NAME: usize = 256;

/// What makes SQS refuse a whole request.
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

/// What makes SQS refuse one entry.
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

/// The bytes that SQS counts.
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
mod tests;
