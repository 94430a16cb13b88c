//! The marker of a cancelled task: an object in the pictures' bucket.
//!
//! It holds the time at which it expires, so that an id can be used again. S3 deletes nothing by such a time: a lifecycle rule for
//! `cancelled/` does.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds for which a marker holds unless it is said otherwise: four days.
pub const DEFAULT_EXPIRY: u32 = 345_600;
/// The most seconds: 14 days, as long as SQS keeps a message.
pub const MAX_EXPIRY: u32 = 1_209_600;
/// More bytes than a marker has.
pub const MARKER_BYTES: usize = 64;

/// What a marker begins with.
const EXPIRES: &str = "expires ";

/// The key of a task's marker.
///
/// ```
/// assert_eq!(cancellation::key(500), "cancelled/gen_500");
/// ```
pub fn key(generation_id: i64) -> String {
    format!("cancelled/gen_{generation_id}")
}

/// The content of a marker that holds from now on for so long.
pub fn marker(lifetime: Duration) -> String {
    format!("{EXPIRES}{}\n", now().saturating_add(lifetime.as_secs()))
}

/// When a marker expires, in seconds of Unix time. None if this is no marker.
pub fn expiry(marker: &[u8]) -> Option<u64> {
    std::str::from_utf8(marker).ok()?.strip_prefix(EXPIRES)?.trim_end().parse().ok()
}

/// Whether a marker cancels nothing any more. None if this is no marker.
///
/// ```
/// use std::time::Duration;
///
/// let marker = cancellation::marker(Duration::from_secs(60));
/// assert_eq!(cancellation::is_expired(marker.as_bytes()), Some(false));
/// assert_eq!(cancellation::is_expired(b"expires 1\n"), Some(true));
/// assert_eq!(cancellation::is_expired(b"expires never\n"), None);
/// ```
pub fn is_expired(marker: &[u8]) -> Option<bool> {
    expiry(marker).map(|expires| now() >= expires)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_holds_until_it_expires() {
        let day = Duration::from_secs(86_400);
        let marker = marker(day);
        let expires = expiry(marker.as_bytes()).unwrap();
        assert!((now() + 86_000..=now() + 86_400).contains(&expires) && marker.len() < MARKER_BYTES, "{marker}");
        assert_eq!(is_expired(super::marker(Duration::ZERO).as_bytes()), Some(true));
        assert!(super::marker(Duration::MAX).len() < MARKER_BYTES);
        for other in ["", "7", "expires", "expires ", "expires never\n", "expires -1\n", "Expires 1\n"] {
            assert_eq!((expiry(other.as_bytes()), is_expired(other.as_bytes())), (None, None), "{other}");
        }
        assert_eq!(expiry(b"expires \xff\n"), None);
    }
}
