//! Addresses on the command line: what each must be is said where it is not. Asks nobody whether they answer.

use std::net::SocketAddr;
use url::Url;

/// Where to listen. A name would be looked up, and mean several.
///
/// # Errors
/// It is none, and what it must be.
pub fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "must be an IP address and a port, as in 0.0.0.0:8080".into())
}

/// A whole address.
///
/// # Errors
/// It is none, and what it must be.
pub fn web_url(text: &str) -> Result<Url, String> {
    Url::parse(text).map_err(|error| format!("must be a whole address, as https://example.org is: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_address_must_be_is_said() {
        assert!(socket("[::1]:8080").is_ok() && web_url("https://example.org/pictures").is_ok());
        assert!(socket("localhost:8080").is_err_and(|error| error.contains("0.0.0.0:8080")));
        assert!(web_url("example.org").is_err_and(|error| error.contains("https://")));
    }
}
