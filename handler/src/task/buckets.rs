//! Names in S3: valid buckets and keys, and patterns of the buckets that LoRAs may come from.
//!
//! Keys like `../x`, which S3 accepts, are invalid: a server that normalizes paths would read another object.

pub use settings::{BUCKET_LENGTH, is_bucket};

use std::str::FromStr;

/// Longest key, in bytes.
pub const MAX_KEY: usize = 1024;

/// A bucket, or `*` and the end of a name for all buckets that end so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BucketPattern {
    /// This one.
    Named(String),
    /// All with this ending.
    Ending(String),
}

impl BucketPattern {
    /// Whether a bucket matches.
    pub fn matches(&self, bucket: &str) -> bool {
        match self {
            Self::Named(name) => bucket == name,
            Self::Ending(ending) => bucket.len() > ending.len() && bucket.ends_with(ending),
        }
    }
}

impl FromStr for BucketPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let usable = match text.strip_prefix('*') {
            // With letters in front it must be a valid name.
            Some(ending) => is_bucket(&format!("aaa{ending}")).then(|| Self::Ending(ending.to_string())),
            None => is_bucket(text).then(|| Self::Named(text.to_string())),
        };
        usable
            .filter(|_| text != "*")
            .ok_or_else(|| "must be a bucket's name, or * and the end of one as in *-loras".into())
    }
}

/// Whether a key is of 1 to 1024 bytes, without control characters and without `.` and `..` between its slashes.
pub fn is_key(key: &str) -> bool {
    let straight = key.split('/').all(|part| part != "." && part != "..");
    (1..=MAX_KEY).contains(&key.len()) && straight && !key.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_the_rules_of_s3() {
        for key in ["k", "models/style 10/ü.safetensors", "a//b", "...", &"k".repeat(1024)] {
            assert!(is_key(key), "{key}");
        }
        for key in ["", "a\nb", "a\0", "..", "../other/k", "a/../../other/k", "a/./b", "a/..", &"k".repeat(1025)] {
            assert!(!is_key(key), "{key:?}");
        }
    }

    #[test]
    fn a_pattern_is_a_name_or_an_ending() {
        let matches = |pattern: &str, bucket| pattern.parse::<BucketPattern>().unwrap().matches(bucket);
        assert!(matches("styles", "styles") && matches("*-loras", "anna-loras") && matches(" *.eu", "styles.eu"));
        for (pattern, bucket) in
            [("styles", "styles2"), ("styles", "my-styles"), ("*-loras", "-loras"), ("*-loras", "x-loras2")]
        {
            assert!(!matches(pattern, bucket), "{pattern} {bucket}");
        }
        for pattern in ["", "*", "-loras", "*-", "a*b", "**-loras", "Styles", "*Loras"] {
            assert!(pattern.parse::<BucketPattern>().is_err(), "{pattern}");
        }
    }
}
