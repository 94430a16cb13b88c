//! HTTP clients.

use reqwest::{Client, ClientBuilder};
use rustls::crypto::ring;

/// A new HTTP client's settings. Its TLS is ring's, which reqwest has to be told once per process.
pub fn http_client() -> ClientBuilder {
    // Only the first call installs it; the others find it there.
    let _ = ring::default_provider().install_default();
    #[expect(clippy::disallowed_methods, reason = "the one place that makes clients")]
    Client::builder()
}
