//! Addresses: of a LoRA in S3, of the backend. The patterns are in the syntax that ECMA-262, Python and Rust share;
//! they refuse nothing that the parser takes.

use super::{Rule, Text, object};
use crate::task::{
    MAX_URL,
    buckets::{BUCKET_LENGTH, is_bucket, is_key},
    fields::{Result, wrong},
    json::Json,
};
use serde_json::{Map, Value, json};
use url::Url;

/// Longest address, in characters.
const TEXT: Text = Text { most: MAX_URL, examples: &[] };

/// The address of a LoRA, `s3://bucket/key`; becomes bucket and key.
pub(in crate::task) struct Lora;

/// The base address of the webhooks.
pub(in crate::task) struct Webhook;

impl Rule for Lora {
    type Held<'a> = (String, String);

    fn wanted(&self) -> String {
        "an address of the form s3://bucket/key, with names as S3 allows them".into()
    }

    fn read(&self, place: &str, value: Json) -> Result<(String, String)> {
        let text = TEXT.read(place, value)?;
        let parts = text.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
        let usable = parts.filter(|(bucket, key)| is_bucket(bucket) && is_key(key));
        let usable = usable.map(|(bucket, key)| (bucket.to_string(), key.to_string()));
        usable.ok_or_else(|| wrong(place, "a string of another form", &self.wanted()))
    }

    fn schema(&self) -> Map<String, Value> {
        let (least, most) = BUCKET_LENGTH;
        // Its first and last character are letters or digits.
        let inside = format!("{{{},{}}}", least - 2, most - 2);
        let pattern = format!(r"^s3://[a-z0-9][a-z0-9.-]{inside}[a-z0-9]/[^\u0000-\u001f\u007f-\u009f]+$");
        let octet = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
        let refused = [
            r"^s3://[^/]*\.\.".to_string(),
            format!(r"^s3://{octet}\.{octet}\.{octet}\.{octet}/"),
            r"^s3://[^/]*/([^\u0000]*/)?\.\.?(/|$)".to_string(),
        ];
        let refused: Vec<Value> = refused.iter().map(|pattern| json!({ "pattern": pattern })).collect();
        let mut schema = TEXT.schema();
        schema.extend(object([("pattern", json!(pattern)), ("not", json!({ "anyOf": refused }))]));
        schema
    }
}

impl Rule for Webhook {
    type Held<'a> = Url;

    fn wanted(&self) -> String {
        "an http or https address without user, query or fragment".into()
    }

    fn read(&self, place: &str, value: Json) -> Result<Url> {
        let text = TEXT.read(place, value)?;
        base_address(&text).map_err(|what| wrong(place, what, &self.wanted()))
    }

    fn schema(&self) -> Map<String, Value> {
        let mut schema = TEXT.schema();
        // Neither what ends a path nor what the host would be looked for elsewhere by.
        let odd = r"?#\\\u0000-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000";
        let pattern = format!("^[hH][tT][tT][pP][sS]?://[^/@{odd}]+(/[^{odd}]*)?$");
        schema.insert("pattern".into(), json!(pattern));
        schema
    }
}

/// The base address that a text is, or what it is instead.
pub(in crate::task) fn base_address(text: &str) -> std::result::Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| "a string of another form")?;
    let plain = url.username().is_empty() && url.password().is_none() && reads_the_same_everywhere(text);
    let whole = url.query().is_none() && url.fragment().is_none();
    let web = matches!(url.scheme(), "http" | "https") && url.has_host();
    (web && plain && whole).then_some(url).ok_or("another address")
}

/// Whether others would take the same part of an address for its host. The URL standard drops tabs and line breaks,
/// takes a backslash for a slash, and forgives missing slashes and an empty user.
fn reads_the_same_everywhere(text: &str) -> bool {
    let odd = |character: char| character == '\\' || character.is_whitespace() || character.is_control();
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let authority = rest.split('/').next().unwrap_or_default();
    // Else the slashes stand later, and what is before them is the host.
    let at_once = ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    at_once && !text.contains(odd) && !authority.is_empty() && !authority.contains('@')
}
