//! Who may talk to the page's server: pages that it has served itself, reached by its own address. Refuses names that lead here by
//! rebinding, and what other sites' pages send.

use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{net::SocketAddr, sync::Arc};

/// What every answer carries: nothing is loaded from elsewhere, run inline, framed or guessed.
const HEADERS: [(HeaderName, &str); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
];

/// The names under which the server may be reached.
#[derive(Debug, Clone)]
pub(super) struct Names(Arc<[String; 2]>);

impl Names {
    pub(super) fn of(addr: SocketAddr) -> Self {
        Self(Arc::new([addr.to_string(), format!("localhost:{}", addr.port())]))
    }

    /// Whether a request comes from a page of ours. What changes something must say where it comes from.
    fn allow(&self, method: &Method, headers: &HeaderMap) -> bool {
        let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let Some(host) = text(header::HOST).filter(|host| self.0.iter().any(|name| name == host)) else {
            return false;
        };
        match text(header::ORIGIN) {
            Some(origin) => origin.strip_prefix("http://") == Some(host),
            None => *method == Method::GET || *method == Method::HEAD,
        }
    }
}

/// Lets a request through, or answers 403.
pub(super) async fn guard(State(names): State<Names>, request: Request, next: Next) -> Response {
    let mut response = if names.allow(request.method(), request.headers()) {
        next.run(request).await
    } else {
        (StatusCode::FORBIDDEN, "this page is for 127.0.0.1 alone\n").into_response()
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_pages_at_our_own_address_are_served() {
        let names = Names::of(([127, 0, 0, 1], 80).into());
        let cases = [
            ("GET", "127.0.0.1:80", None, true),
            ("GET", "localhost:80", None, true),
            ("POST", "localhost:80", Some("http://localhost:80"), true),
            ("POST", "localhost:80", None, false),
            ("POST", "localhost:80", Some("http://127.0.0.1:80"), false),
            ("POST", "127.0.0.1:80", Some("null"), false),
            ("POST", "127.0.0.1:80", Some("https://127.0.0.1:80"), false),
            ("POST", "127.0.0.1:80", Some("http://evil.example"), false),
            ("GET", "127.0.0.1:80", Some("http://evil.example"), false),
            ("GET", "evil.example:80", None, false),
            ("GET", "127.0.0.1:81", None, false),
            ("GET", "", None, false),
        ];
        for (method, host, origin, expected) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            let allowed = names.allow(&method.parse().unwrap(), &headers);
            assert_eq!(allowed, expected, "{method} {host} {origin:?}");
        }
        assert!(!names.allow(&Method::GET, &HeaderMap::new()));
    }
}
