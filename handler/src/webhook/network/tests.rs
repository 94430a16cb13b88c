//! Ways around the guard. Each must fail before a connection is made.

use super::*;
use crate::{
    job::admission::SafetyConfig,
    webhook::{Backend, Subject, WebhookError, WebhookSecrets},
};
use futures_util::FutureExt;
use serde_json::json;
use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio::net::TcpListener;
use url::Url;

const PUBLIC: &str = "93.184.215.14";

/// Addresses that must be refused without a list. Names resolve as in [`zone`].
const AROUND: &[&str] = &[
    // Loopback and unspecified, in every spelling of IPv4 that URLs know.
    "http://127.0.0.1",
    "http://127.0.0.1:8080/base",
    "https://127.0.0.1.",
    "http://127.1",
    "http://127.0.1",
    "http://2130706433",
    "http://0x7f000001",
    "http://0x7f.1",
    "http://0X7F.0.0.0X1",
    "http://0177.1",
    "http://0177.0.0.01",
    "http://017700000001",
    "http://127.255.255.254",
    "http://0",
    "http://0.0.0.0",
    "http://0.1.2.3",
    // No host at all.
    "http://.",
    "http://./",
    "http://..",
    "http://api..example.org",
    // Encoded, full-width and circled digits, and the other full stops of IDNA.
    "http://%31%32%37.0.0.1",
    "http://127%2e0%2e0%2e1",
    "http://127。0。0。1",
    "http://\u{ff11}\u{ff12}\u{ff17}\u{ff0e}0\u{ff0e}0\u{ff0e}1",
    "http://①②⑦.0.0.1",
    "http://127。1",
    "http://%EF%BC%91%EF%BC%92%EF%BC%97.1",
    "http://127.0.0.1\u{ad}",
    // IPv6, and IPv4 embedded in it.
    "http://[::]",
    "http://[::1]",
    "http://[0:0:0:0:0:0:0:1]:80",
    "http://[::ffff:127.0.0.1]",
    "http://[::ffff:7f00:1]",
    "http://[::ffff:a9fe:a9fe]",
    "http://[::127.0.0.1]",
    "http://[::ffff:0:127.0.0.1]",
    "http://[64:ff9b::7f00:1]",
    "http://[64:ff9b::169.254.169.254]",
    "http://[64:ff9b:1::5db8:d70e]",
    "http://[2002:7f00:1::]",
    "http://[2002:a9fe:a9fe::1]",
    "http://[2002:a00:1::1]",
    "http://[2600::5efe:7f00:1]",
    "http://[2600::200:5efe:7f00:1]",
    "http://[2600:1f18::5efe:169.254.169.254]",
    "http://[2002:5db8:d70e::5efe:a00:1]",
    "http://[2001:0:4136:e378:8000:63bf:3fff:fdd2]",
    "http://[2001:db8::1]",
    "http://[3fff::1]",
    "http://[fe80::1]",
    "http://[fe80::1%25eth0]",
    "http://[febf::1]",
    "http://[fec0::1]",
    "http://[fc00::1]",
    "http://[fd12:3456::1]",
    "http://[ff02::1]",
    "http://[5f00::1]",
    "http://[::1",
    // Metadata services.
    "http://169.254.169.254",
    "http://169.254.170.2",
    "http://0xa9fea9fe",
    "http://2852039166",
    "http://0251.0376.0251.0376",
    "http://[fd00:ec2::254]",
    "http://[fd20:ce::254]",
    "http://100.100.100.200",
    "http://168.63.129.16",
    "http://192.0.0.192",
    "http://metadata.google.internal",
    "http://METADATA.google.internal.",
    "http://metadata",
    "http://instance-data",
    // Other special blocks.
    "http://10.0.0.1",
    "http://172.16.0.1",
    "http://172.31.255.255",
    "http://192.168.1.1",
    "http://100.64.0.1",
    "http://192.0.2.1",
    "http://198.18.0.1",
    "http://198.51.100.1",
    "http://203.0.113.1",
    "http://224.0.0.1",
    "http://240.0.0.1",
    "http://255.255.255.255",
    // Names of this machine.
    "http://localhost",
    "http://LOCALHOST",
    "http://LocalHost.:8000",
    "http://a.localhost",
    "http://a.b.localhost.",
    "http://loc%61lhost",
    "http://\u{ff4c}ocalhost",
    // Names that resolve to addresses that are not public.
    "http://private.test",
    "http://PRIVATE.test.",
    "http://private%2etest",
    "http://mapped.test",
    "http://scoped.test",
    "http://several.test",
    // Ambiguous or malformed addresses.
    "http://good.org@127.0.0.1",
    "http://good.org%40127.0.0.1",
    "http://@good.org",
    "http://good.org\\@127.0.0.1",
    "http:\t//127.0.0.1",
    "ht\ntp://127.0.0.1",
];

/// Addresses that must be refused with `--webhook-hosts good.org,.good.net,port.org:8443,10.0.0.7`.
const AROUND_A_LIST: &[&str] = &[
    "http://evil.org",
    "http://evilgood.org",
    "http://good.org.evil.org",
    "http://good.orgevil",
    "http://www.good.org",
    "http://good.org..",
    "http://.good.org",
    "http://good.net",
    "http://evilgood.net",
    "http://a.good.net.evil.org",
    "http://a.good.net..",
    "http://good.org@evil.org",
    "http://good.org:80@evil.org",
    "http://good.org%40evil.org",
    "http://good.org%2f@evil.org",
    "http://good.org%2fevil.org",
    "http://good.org%00.evil.org",
    "http://good.org%23.evil.org",
    "http://evil.org/good.org",
    "http://evil.org\\good.org",
    "http://evil.org#good.org",
    "http://evil.org?good.org",
    "http://good.org\\@evil.org",
    "http://evil.org\\.good.net",
    "http:evil.org",
    "https://port.org",
    "https://port.org:443",
    "https://port.org:84430",
    "http://10.0.0.8",
    "http://[::ffff:10.0.0.7]",
    "//good.org",
];

fn config(hosts: &[&str], allow_private_webhooks: bool) -> SafetyConfig {
    let webhook_hosts = hosts.iter().map(|host| host.parse().unwrap()).collect();
    SafetyConfig { webhook_hosts, allow_private_webhooks, ..SafetyConfig::default() }
}

/// The addresses of a name.
fn zone(name: &str) -> Vec<&'static str> {
    match name.trim_end_matches('.') {
        "good.org" | "public.test" => vec![PUBLIC],
        "both.test" => vec!["10.0.0.1", PUBLIC, "::1"],
        "mapped.test" => vec!["::ffff:10.0.0.1"],
        "scoped.test" => vec!["fe80::1"],
        "several.test" => vec!["127.0.0.1", "::1", "169.254.169.254"],
        _ => vec!["127.0.0.1"],
    }
}

fn sockets(addresses: &[&str], port: u16) -> Vec<SocketAddr> {
    addresses.iter().map(|address| SocketAddr::new(address.parse::<IpAddr>().unwrap(), port)).collect()
}

fn guard(config: &SafetyConfig) -> Guard {
    config.guard().with_lookup(|name| async move { Ok(sockets(&zone(&name), 0)) }.boxed())
}

/// Whether a task with this address would be accepted.
async fn admitted(guard: &Guard, address: &str) -> bool {
    let body = json!({ "webhook_url": address }).to_string();
    match crate::task::Task::parse(&body).unwrap_err().webhook_url {
        Some(url) => guard.check_ahead(&url).await.is_ok(),
        None => false,
    }
}

#[tokio::test]
async fn without_a_list_no_way_leads_to_what_is_not_public() {
    let guard = guard(&config(&[], false));
    for address in AROUND {
        assert!(!admitted(&guard, address).await, "{address:?}");
    }
    for address in [
        "http://good.org",
        "https://GOOD.org.:8443/base",
        "http://public.test",
        "http://both.test",
        "http://93.184.215.14",
        "http://[2606:2800:21f:cb07:6820:80da:af6b:8b2c]",
        "http://[64:ff9b::5db8:d70e]",
        "http://[2600::5efe:5db8:d70e]",
        "http://172.32.0.1",
        "http://100.128.0.1",
        "http://192.0.1.1",
    ] {
        assert!(admitted(&guard, address).await, "{address:?}");
    }
}

#[tokio::test]
async fn a_list_lets_nothing_else_through() {
    let guard = guard(&config(&["good.org", ".good.net", "port.org:8443", "10.0.0.7"], false));
    for address in AROUND_A_LIST.iter().chain(AROUND) {
        assert!(!admitted(&guard, address).await, "{address:?}");
    }
    for address in [
        "http://good.org",
        "https://GOOD.ORG.:8443/base",
        "http://g%6fod%2eorg",
        "http://good。org",
        "http://a.good.net",
        "http://a.b.GOOD.net:81",
        "https://port.org:8443",
        "http://10.0.0.7:9000",
        "http://0xa.7",
    ] {
        assert!(admitted(&guard, address).await, "{address:?}");
    }
}

#[tokio::test]
async fn private_webhooks_can_be_allowed() {
    let guard = guard(&config(&[], true));
    for address in ["http://127.0.0.1:8000", "http://localhost", "http://private.test", "http://[::1]"] {
        assert!(admitted(&guard, address).await, "{address:?}");
    }
}

#[test]
fn list_entries_are_hosts() {
    for text in
        ["good.org", ".good.org", "good.org:80", "[fd00::1]:8080", "10.0.0.7", "GOOD.org.", " good.org", "bücher.de"]
    {
        assert!(text.parse::<HostPattern>().is_ok(), "{text}");
    }
    for text in [
        "",
        ".",
        "..good.org",
        "*.good.org",
        "good.org:",
        "good.org:0",
        "good.org:65536",
        "http://good.org",
        "good.org/",
        "user@good.org",
        ".10.0.0.7",
        "a b",
        "::1",
        ":80",
        "[::1",
    ] {
        assert!(text.parse::<HostPattern>().is_err(), "{text}");
    }
}

/// A listener on a loopback port that counts connections.
async fn receiver() -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, connections) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counter = connections.clone();
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            counter.fetch_add(1, Ordering::SeqCst);
        }
    });
    (port, connections)
}

fn backend(guard: Guard) -> Backend {
    Backend::new("token".parse().unwrap(), WebhookSecrets::default(), guard).unwrap()
}

fn subject(url: &Url) -> Subject {
    Subject::message(url.clone(), 1, "{}")
}

/// The first answer is public, all later ones are not.
fn rebinding(config: &SafetyConfig) -> Guard {
    let asked = AtomicUsize::new(0);
    config.guard().with_lookup(move |_| {
        let address = if asked.fetch_add(1, Ordering::SeqCst) == 0 { PUBLIC } else { "127.0.0.1" };
        async move { Ok(sockets(&[address], 0)) }.boxed()
    })
}

#[tokio::test]
async fn what_is_connected_to_is_what_was_checked() {
    let (port, connections) = receiver().await;
    let url = Url::parse(&format!("http://rebinding.test:{port}")).unwrap();
    let guard = rebinding(&config(&[], false));
    assert_eq!(guard.check_ahead(&url).await, Ok(()), "the first answer is public");
    let backend = backend(guard);
    let error = backend.failed(&subject(&url), "CODE", "reason", 0, None).await.unwrap_err();
    assert!(matches!(error, WebhookError::Forbidden { refused: Refused::Private("a loopback"), .. }), "{error}");
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn an_address_in_a_hosts_place_is_checked_on_every_webhook() {
    let (port, connections) = receiver().await;
    let backend = backend(config(&[], false).guard());
    for host in ["127.0.0.1", "[::ffff:127.0.0.1]", "localhost"] {
        let url = Url::parse(&format!("http://{host}:{port}")).unwrap();
        let error = backend.failed(&subject(&url), "CODE", "reason", 0, None).await.unwrap_err();
        assert!(matches!(error, WebhookError::Forbidden { .. }), "{host}: {error}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn of_several_addresses_only_public_ones_are_left() {
    let found = guard(&config(&[], false)).resolve("both.test".parse().unwrap()).await.ok().unwrap();
    assert_eq!(found.collect::<Vec<_>>(), sockets(&[PUBLIC], 0));
    let found = guard(&config(&["both.test"], false)).resolve("both.test".parse().unwrap()).await.ok().unwrap();
    assert_eq!(found.count(), 3, "a listed host may be anywhere");
}

#[test]
fn a_refusal_names_field_and_option_and_not_the_host() {
    for (hosts, expected) in [(&["good.org"][..], "--webhook-hosts"), (&[], "--allow-private-webhooks")] {
        let refused = config(hosts, false).guard().check(&Url::parse("http://10.1.2.3").unwrap()).unwrap_err();
        let text = refused.to_string();
        assert!(text.starts_with("`webhook_url` ") && text.contains(expected) && !text.contains("10.1"), "{text}");
    }
}
