//! Lists of hosts and addresses of webhooks. What the guard allows is checked again, with the standard library alone and on the text of
//! the message: other parsers may read it differently than the URL standard.

use crate::{
    task::Task,
    webhook::{
        address,
        network::{Guard, HostPattern},
    },
};
use serde_json::json;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use url::Url;

/// Whether the address in the second line may be called; the first line lists hosts, separated by commas, or is empty.
pub fn webhook(bytes: &[u8]) -> bool {
    let Some((list, text)) = str::from_utf8(bytes).ok().and_then(|all| all.split_once('\n')) else { return false };
    let entries: Vec<&str> = list.split(',').filter(|_| !list.is_empty()).collect();
    let hosts: Result<Vec<HostPattern>, _> = entries.iter().map(|entry| entry.parse()).collect();
    let Ok(webhook_hosts) = hosts else { return false };
    let guard = Guard::new(&webhook_hosts, false);
    // An invalid task that has a backend to notify.
    let Some(url) =
        Task::parse(&json!({ "webhook_url": text }).to_string()).err().and_then(|invalid| invalid.webhook_url)
    else {
        return false;
    };
    if guard.check(&url).is_err() {
        return false;
    }
    let host = url.host_str().expect("an address without a host was accepted");
    let host = host.strip_suffix('.').unwrap_or(host).to_string();
    same_host_in_the_text(text, &host);
    match entries.as_slice() {
        [] => assert!(is_public(&host), "{text:?} leads to {host}"),
        entries => {
            assert!(entries.iter().any(|entry| matches(entry, &host, &url)), "{text:?}: {host} is not in {list:?}")
        }
    }
    the_token_goes_there(&url);
    true
}

/// If nothing is encoded, every parser finds the host between the slashes.
fn same_host_in_the_text(text: &str, host: &str) {
    let (scheme, rest) = text.split_once("://").expect("an address without a scheme was accepted");
    assert!(["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()), "{text:?}");
    let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or_default();
    assert!(!authority.contains('@'), "{text:?} has a user");
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._[]:".contains(&byte);
    if authority.bytes().all(is_plain) && host.parse::<Ipv4Addr>().is_err() {
        let name = match authority.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => authority,
        };
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let as_address = |text: &str| text.trim_matches(['[', ']']).parse::<Ipv6Addr>().ok();
        assert!(
            name == host || as_address(&name).is_some() && as_address(&name) == as_address(host),
            "{text:?} is {host}"
        );
    }
}

/// Whether an entry of the list matches a host. Only plain entries are checked; others are up to the URL standard.
fn matches(entry: &str, host: &str, url: &Url) -> bool {
    let entry = entry.trim().to_lowercase();
    if !entry.is_ascii() || entry.split('.').any(|label| label.starts_with("xn--")) {
        return true;
    }
    let (name, port) = match entry.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port.parse::<u16>().ok()),
        _ => (entry.as_str(), None),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let address = |text: &str| text.trim_matches(['[', ']']).parse::<IpAddr>().ok();
    let same = match (name.strip_prefix('.'), address(name), address(host)) {
        (Some(domain), ..) => host.len() > domain.len() + 1 && host.ends_with(&format!(".{domain}")),
        (None, Some(listed), Some(found)) => listed == found,
        // An entry may write IPv4 as a number, which is up to the URL standard, too.
        (None, None, Some(IpAddr::V4(_))) => name.starts_with(|first: char| first.is_ascii_digit()),
        (None, Some(_), None) => false,
        (None, None, _) => name == host,
    };
    same && port.is_none_or(|port| url.port_or_known_default() == Some(port))
}

/// Whether a host may be on the public internet. Names are resolved and checked later.
fn is_public(host: &str) -> bool {
    match host.trim_matches(['[', ']']).parse() {
        Ok(IpAddr::V4(address)) => is_public_v4(address),
        Ok(IpAddr::V6(address)) => is_public_v6(address),
        Err(_) => {
            let last = host.rsplit('.').next().unwrap_or_default();
            let number = !last.is_empty() && last.bytes().all(|byte| byte.is_ascii_digit());
            !number && last != "localhost" && host != "metadata.google.internal" && !host.is_empty()
        }
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_unspecified()
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_broadcast()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        || a >= 240
        || (a, b & 0b1100_0000) == (100, 64)
        || (a, b & 0b1111_1110) == (198, 18)
        || (a, b, c) == (192, 0, 0);
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let carried = |at: usize| {
        let octets = address.octets();
        is_public_v4(Ipv4Addr::new(octets[at], octets[at + 1], octets[at + 2], octets[at + 3]))
    };
    let special = address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address.is_unique_local()
        || address.is_unicast_link_local();
    match address.segments() {
        _ if special => false,
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => carried(12),
        [0x2002, ..] => carried(2),
        [0x2001, second, ..] => second > 0x1ff && second != 0xdb8,
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

fn the_token_goes_there(url: &Url) {
    let called = address(url, "complete");
    assert_eq!(called.origin(), url.origin(), "{url} is called at {called}");
    assert!(called.path().ends_with("/api/webhooks/inference/complete"), "{called}");
    assert!(called.query().is_none() && called.fragment().is_none() && called.username().is_empty(), "{called}");
}
