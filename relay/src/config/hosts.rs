//! `--amqp-url`: one URL, or several of one broker. The password of none is ever shown.
//!
//! Refuses to repeat a value in an error: it says which entry, by its number.

use std::fmt;

use lapin::uri::AMQPUri;
use url::{Host, Url};

use super::{ConfigError, invalid};
use crate::amqp::SMALLEST_FRAME;

const OPTION: &str = "--amqp-url";
const FORM: &str = "it must be amqp://user:password@host:port/vhost or amqps://…";

/// URLs with passwords in them. They are checked after parsing, because the parser of options repeats a bad value.
#[derive(Clone)]
pub struct AmqpUrl(String);

impl AmqpUrl {
    /// Every host. The first entry is a URL; a later one may be only host:port, the rest of it as in the first.
    pub(super) fn parse(&self) -> Result<Vec<AMQPUri>, ConfigError> {
        let mut hosts: Vec<AMQPUri> = Vec::new();
        let entries = split(&self.0);
        for (index, entry) in entries.iter().enumerate() {
            let parsed = match hosts.first() {
                Some(first) if !entry.contains("://") => inherit(first, entry),
                _ => parse(entry),
            };
            let place = if entries.len() > 1 { format!("entry {} ", index + 1) } else { String::new() };
            hosts.push(parsed.map_err(|problem| invalid(OPTION, format!("{place}{problem}; {FORM}")))?);
        }
        Ok(hosts)
    }
}

impl From<String> for AmqpUrl {
    fn from(url: String) -> Self {
        Self(url)
    }
}

impl fmt::Debug for AmqpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without a scheme nobody knows where the password begins.
        f.write_str(&if self.0.contains("://") { redact(&self.0) } else { "***".to_owned() })
    }
}

/// Cuts at commas, but not at one in a password: there, an `@` still comes before the next URL begins.
fn split(list: &str) -> Vec<String> {
    let mut entries: Vec<Vec<&str>> = Vec::new();
    for piece in list.split(',') {
        let url = entries.iter().rposition(|entry| entry.first().is_some_and(|piece| piece.contains("://")));
        match url {
            Some(url) if !piece.contains("://") && piece.contains('@') => {
                let cut: Vec<&str> = entries.drain(url + 1..).flatten().collect();
                entries[url].extend(cut);
                entries[url].push(piece);
            }
            _ => entries.push(vec![piece]),
        }
    }
    entries.into_iter().map(|pieces| pieces.join(",").trim().to_owned()).collect()
}

fn parse(entry: &str) -> Result<AMQPUri, String> {
    let url = Url::parse(entry).map_err(|err| format!("is no URL: {err}"))?;
    // The client repeats the whole URL in some of its errors.
    let mut uri: AMQPUri = entry.parse().map_err(|err: String| redact(&err.replace(entry, "***")))?;
    // The client takes an IPv6 address for no host at all and would connect to localhost.
    match url.host() {
        Some(Host::Ipv6(address)) => uri.authority.host = address.to_string(),
        Some(_) => {}
        None => return Err("names no host".to_owned()),
    }
    // Read literally, a lone slash is the virtual host with the empty name. Nobody has one.
    if uri.vhost.is_empty() {
        uri.vhost = "/".to_owned();
    }
    if uri.query.heartbeat == Some(0) {
        return Err("has heartbeat=0: a dead connection would never be noticed".to_owned());
    }
    if let Some(bytes @ 1..SMALLEST_FRAME) = uri.query.frame_max {
        return Err(format!("has frame_max={bytes}: AMQP clients need {SMALLEST_FRAME}; leave it out"));
    }
    Ok(uri)
}

fn inherit(first: &AMQPUri, entry: &str) -> Result<AMQPUri, String> {
    let url = Url::parse(&format!("amqp://{entry}")).map_err(|err| format!("is neither a URL nor host:port: {err}"))?;
    let bare = url.username().is_empty() && url.password().is_none() && url.path().trim_matches('/').is_empty();
    if !bare || url.query().is_some() || url.fragment().is_some() {
        return Err("is neither a URL nor host:port".to_owned());
    }
    let mut uri = first.clone();
    uri.authority.host = match url.host() {
        Some(Host::Ipv6(address)) => address.to_string(),
        Some(host) => host.to_string(),
        None => return Err("names no host".to_owned()),
    };
    uri.authority.port = url.port().unwrap_or_else(|| first.scheme.default_port());
    Ok(uri)
}

/// Hides everything from the first `://` to the last `@`: a password may hold any character.
pub(super) fn redact(text: &str) -> String {
    match (text.find("://"), text.rfind('@')) {
        (Some(start), Some(end)) if start < end => format!("{}://***{}", &text[..start], &text[end..]),
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(list: &str) -> Vec<String> {
        let hosts = AmqpUrl::from(list.to_owned()).parse().expect(list);
        let show = |uri: &AMQPUri| {
            let (user, host) = (&uri.authority.userinfo, &uri.authority.host);
            let (scheme, port, vhost) = (uri.scheme.clone(), uri.authority.port, &uri.vhost);
            format!("{scheme}|{}|{}|{host}|{port}|{vhost}", user.username, user.password)
        };
        hosts.iter().map(show).collect()
    }

    #[test]
    fn urls_mean_what_people_expect() {
        for (list, wanted) in [
            ("amqp://h", vec!["amqp|guest|guest|h|5672|/"]),
            ("amqp://h/", vec!["amqp|guest|guest|h|5672|/"]),
            ("amqp://h/%2f", vec!["amqp|guest|guest|h|5672|/"]),
            ("amqp://h:1/v", vec!["amqp|guest|guest|h|1|v"]),
            ("amqp://127.0.0.1/v", vec!["amqp|guest|guest|127.0.0.1|5672|v"]),
            ("amqp://[::1]:5672", vec!["amqp|guest|guest|::1|5672|/"]),
            ("amqps://u:p@a/v,b:1,[::2]", vec!["amqps|u|p|a|5671|v", "amqps|u|p|b|1|v", "amqps|u|p|::2|5671|v"]),
            ("amqp://u:p@a, amqp://w:q@b/v", vec!["amqp|u|p|a|5672|/", "amqp|w|q|b|5672|v"]),
            ("amqp://u:p,q,r@a,b", vec!["amqp|u|p,q,r|a|5672|/", "amqp|u|p,q,r|b|5672|/"]),
            (
                "amqp://a:1,b:2,amqp://u:p,q@c",
                vec!["amqp|guest|guest|a|1|/", "amqp|guest|guest|b|2|/", "amqp|u|p,q|c|5672|/"],
            ),
        ] {
            assert_eq!(hosts(list), wanted, "{list}");
        }
    }

    #[test]
    fn a_bad_entry_is_named_by_its_number_and_shows_no_password() {
        for (list, wanted) in [
            ("amqp://u:secret@a,", "entry 2 "),
            ("amqp://u:secret@a,b:port", "entry 2 is neither a URL nor host:port"),
            ("amqp://u:secret@a,b/v", "entry 2 is neither"),
            ("amqp://u:secret@a,b,http://u:secret@c", "entry 3 "),
            ("amqp://u:secret@a,amqp://u:secret@b:port", "entry 2 is no URL"),
            ("amqp://u:secret@a?heartbeat=0", "heartbeat=0"),
            ("amqp://u:secret@a?frame_max=4096", "frame_max=4096: AMQP clients need 8192"),
            ("u:secret@a", "--amqp-url: "),
            ("amqp:secret", "--amqp-url: "),
        ] {
            let text = AmqpUrl::from(list.to_owned()).parse().expect_err(list).to_string();
            assert!(text.contains(wanted) && text.contains(OPTION), "{list}: {text}");
            assert!(!text.contains("secret"), "{list}: {text}");
            let shown = format!("{:?}", AmqpUrl::from(list.to_owned()));
            assert!(!shown.contains("secret@"), "{shown}");
        }
    }

    #[test]
    fn no_password_of_a_list_is_shown() {
        let shown = format!("{:?}", AmqpUrl::from("amqp://u:secret@a,amqps://v:secret@b,c:1".to_owned()));
        assert_eq!(shown, "amqp://***@b,c:1");
    }
}
