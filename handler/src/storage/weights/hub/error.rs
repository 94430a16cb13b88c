//! Why the hub, or a host that it redirects to, did not give what was asked for.
//!
//! No error shows an address: a signed one opens the file to everybody who reads the log. What the hub says in its error headers is shown
//! shortened, without control characters and without the token.

use super::retries::asked_wait;
use crate::storage::weights::options::PullConfig;
use diffusion::{MAX_NAME, cut};
use reqwest::{StatusCode, header::HeaderMap};
use std::time::{Duration, SystemTime};

/// Why a request failed, by what helps.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum HubError {
    /// Trying again does not help.
    #[error("{0}")]
    Final(String),
    /// The address that the hub signed is refused. It holds for a while only; the hub gives a new one.
    #[error("{0}")]
    Signature(String),
    /// The network, or a server that is overloaded.
    #[error("{reason}")]
    Temporary {
        reason: String,
        /// How long the server asks to wait.
        wait: Option<Duration>,
    },
}

/// Who answers a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Server {
    Hub,
    /// Another host, as `HOST` or `HOST:PORT`.
    Other(String),
}

/// What is asked for, in errors.
pub(super) struct Asked<'a> {
    pub(super) config: &'a PullConfig,
    /// The file or the page.
    pub(super) what: &'a str,
}

impl HubError {
    pub(in super::super) fn temporary(reason: String) -> Self {
        Self::Temporary { reason, wait: None }
    }

    /// The answer broke off.
    pub(super) fn broke_off(server: &Server, what: &str, error: &reqwest::Error) -> Self {
        let reason = reason(error);
        let host = match server {
            Server::Hub => "the hub",
            Server::Other(host) => host,
        };
        Self::temporary(format!("{what}: the connection to {host} broke off ({reason})"))
    }

    /// No answer.
    pub(super) fn unanswered(server: &Server, what: &str, error: &reqwest::Error) -> Self {
        let reason = reason(error);
        let text = match server {
            Server::Hub => {
                format!("{what}: the hub does not answer ({reason}): check the network and --endpoint (HF_ENDPOINT)")
            }
            Server::Other(host) => {
                format!("{what}: {host}, to which the hub redirects, does not answer ({reason}): check the network")
            }
        };
        if error.is_builder() || error.is_redirect() { Self::Final(text) } else { Self::temporary(text) }
    }

    /// The answer has a status of an error.
    pub(super) fn answered(asked: &Asked, server: &Server, status: StatusCode, headers: &HeaderMap) -> Self {
        let number = status.as_u16();
        let told = Told::of(headers, asked.config.token());
        let who = match server {
            Server::Hub => "the hub".to_string(),
            Server::Other(host) => format!("{host}, to which the hub redirects,"),
        };
        let answered = format!("{who} answered {number}{}", told.shown());
        if status.is_server_error() || matches!(number, 408 | 429) {
            let wait = asked_wait(status, headers, SystemTime::now());
            return Self::Temporary { reason: format!("{}: {answered}", asked.what), wait };
        }
        match server {
            Server::Hub => Self::Final(asked.refusal(number, &answered, &told)),
            Server::Other(_) if matches!(number, 400 | 401 | 403) => Self::Signature(format!(
                "{}: {answered}: its signed address was not taken, though the hub had just made it; check what stands between",
                asked.what
            )),
            Server::Other(_) => Self::Final(format!("{}: {answered}", asked.what)),
        }
    }
}

impl Asked<'_> {
    /// What an answer of the hub with status 4xx means, and what to do.
    fn refusal(&self, status: u16, answered: &str, told: &Told) -> String {
        let (what, PullConfig { repo, revision, .. }) = (self.what, self.config);
        let token = match self.config.token() {
            None => "set a token (--token, HF_TOKEN) whose owner has accepted the repository's conditions",
            Some(_) => {
                "the token (--token, HF_TOKEN) does not open it: its owner must accept its conditions, and the token must \
                 be allowed to read it"
            }
        };
        match (told.code.as_deref().unwrap_or_default(), status) {
            ("GatedRepo", _) => format!("{repo} is gated ({answered}): {token}"),
            ("RevisionNotFound", _) => format!("{repo} has no revision {revision} ({answered}): correct --revision"),
            ("RepoNotFound", _) | (_, 401) => {
                format!("{repo} is gated, private or not there ({answered}): check --repo; {token}")
            }
            (_, 403) if told.message.is_none() => {
                format!("{repo} is gated, private or not there ({answered}): check --repo; {token}")
            }
            (_, 403) => format!("the hub refuses {what} of {repo} ({answered}); {token}"),
            (_, 404 | 410) => format!("{repo} at revision {revision}: the hub has no {what} ({answered})"),
            _ => format!("the hub does not give {what} ({answered})"),
        }
    }
}

/// What the error headers say.
struct Told {
    code: Option<String>,
    message: Option<String>,
}

impl Told {
    fn of(headers: &HeaderMap, token: Option<&str>) -> Self {
        let text = |name: &str| {
            let text = String::from_utf8_lossy(headers.get(name)?.as_bytes()).into_owned();
            let text = token.map_or(text.clone(), |token| text.replace(token, "<redacted>"));
            let text: String = text.chars().filter(|character| !character.is_control()).collect();
            Some(cut(text.trim(), MAX_NAME).into_owned()).filter(|text| !text.is_empty())
        };
        Self { code: text("x-error-code"), message: text("x-error-message") }
    }

    fn shown(&self) -> String {
        match (&self.code, &self.message) {
            (None, None) => String::new(),
            (Some(one), None) | (None, Some(one)) => format!(" ({one})"),
            (Some(code), Some(message)) => format!(" ({code}: {message})"),
        }
    }
}

/// The client's error and its causes without addresses.
fn reason(error: &reqwest::Error) -> String {
    let causes = service::chain(error).map(|cause| {
        let text = cause.to_string();
        match cause.downcast_ref::<reqwest::Error>() {
            Some(_) => text.split(" for url (").next().unwrap_or_default().to_string(),
            None => text,
        }
    });
    let mut shown: Vec<String> = Vec::new();
    for cause in causes {
        if !shown.iter().any(|known| known.contains(&cause)) {
            shown.push(cause);
        }
    }
    shown.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use reqwest::header::{HeaderName, HeaderValue};

    #[derive(Parser)]
    struct Options {
        #[command(flatten)]
        pull: PullConfig,
    }

    fn config(token: &str) -> PullConfig {
        Options::parse_from(["pull", "--repo", "a/b", "--to", "/x", "--token", token]).pull
    }

    fn said(token: &str, server: &Server, status: u16, headers: &[(&'static str, &[u8])]) -> HubError {
        let config = config(token);
        let header = |(name, value): &(&'static str, &[u8])| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap())
        };
        let asked = Asked { config: &config, what: "unet/config.json" };
        HubError::answered(&asked, server, StatusCode::from_u16(status).unwrap(), &headers.iter().map(header).collect())
    }

    #[test]
    fn each_answer_says_who_gave_it_and_what_helps() {
        let other = Server::Other("cdn.example".into());
        let gated: &[(&str, &[u8])] = &[("x-error-code", b"GatedRepo"), ("x-error-message", b"Access is restricted.")];
        for (token, server, status, headers, expected) in [
            (
                "",
                &Server::Hub,
                401,
                gated,
                "a/b is gated (the hub answered 401 (GatedRepo: Access is restricted.)): set a",
            ),
            (
                "hf_t",
                &Server::Hub,
                403,
                gated,
                "a/b is gated (the hub answered 403 (GatedRepo: Access is restricted.)): the",
            ),
            (
                "",
                &Server::Hub,
                401,
                &[],
                "a/b is gated, private or not there (the hub answered 401): check --repo; set a",
            ),
            (
                "",
                &Server::Hub,
                403,
                &[],
                "a/b is gated, private or not there (the hub answered 403): check --repo; set a",
            ),
            (
                "hf_t",
                &Server::Hub,
                403,
                &[("x-error-message", b"Access to this resource is disabled.")],
                "the hub refuses unet/config.json of a/b (the hub answered 403 (Access to this resource is disabled.))",
            ),
            (
                "",
                &Server::Hub,
                404,
                &[("x-error-code", b"EntryNotFound")],
                "a/b at revision main: the hub has no unet/config.json (the hub answered 404 (EntryNotFound))",
            ),
            ("", &other, 404, &[], "unet/config.json: cdn.example, to which the hub redirects, answered 404"),
            (
                "",
                &other,
                403,
                &[],
                "unet/config.json: cdn.example, to which the hub redirects, answered 403: its signed",
            ),
        ] {
            let error = said(token, server, status, headers);
            assert!(error.to_string().starts_with(expected), "{error}");
            assert!(!matches!(error, HubError::Temporary { .. }), "{error}");
            assert_eq!(matches!(error, HubError::Signature(_)), *server == other && status == 403, "{error}");
        }
        for status in [408, 429, 500, 502, 503, 504] {
            for server in [&Server::Hub, &other] {
                assert!(matches!(said("", server, status, &[]), HubError::Temporary { wait: None, .. }), "{status}");
            }
        }
    }

    #[test]
    fn what_the_hub_says_is_shown_short_printable_and_without_the_token() {
        let long = [b"\x1b[31mred\x07 hf_secret ".as_slice(), &[b'x'; 1000]].concat();
        let long: Vec<u8> = long.into_iter().filter(|byte| *byte != 0x07 && *byte != 0x1b).chain([0xff]).collect();
        let error = said("hf_secret", &Server::Hub, 401, &[("x-error-message", &long)]).to_string();
        assert!(error.contains("red <redacted> xxx") && error.len() < 600 && !error.contains("hf_secret"), "{error}");
    }
}
