//! Which IP addresses are public, by IANA's registries of special-purpose addresses.
//!
//! An IPv6 address outside the blocks that are allocated today is not public. One that embeds an IPv4 address is judged by that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Base address, prefix length, kind.
type Block<T> = (T, u32, &'static str);

const V4: [Block<Ipv4Addr>; 17] = [
    // Azure's platform address looks public, but serves credentials to every machine there.
    (Ipv4Addr::new(168, 63, 129, 16), 32, "a metadata"),
    (Ipv4Addr::new(100, 100, 100, 200), 32, "a metadata"),
    (Ipv4Addr::new(0, 0, 0, 0), 8, "an unspecified"),
    (Ipv4Addr::new(10, 0, 0, 0), 8, "a private"),
    (Ipv4Addr::new(100, 64, 0, 0), 10, "a shared (carrier-grade NAT)"),
    (Ipv4Addr::new(127, 0, 0, 0), 8, "a loopback"),
    (Ipv4Addr::new(169, 254, 0, 0), 16, "a link-local"),
    (Ipv4Addr::new(172, 16, 0, 0), 12, "a private"),
    (Ipv4Addr::new(192, 0, 0, 0), 24, "a reserved"),
    (Ipv4Addr::new(192, 0, 2, 0), 24, "a documentation"),
    (Ipv4Addr::new(192, 88, 99, 0), 24, "a reserved"),
    (Ipv4Addr::new(192, 168, 0, 0), 16, "a private"),
    (Ipv4Addr::new(198, 18, 0, 0), 15, "a benchmark"),
    (Ipv4Addr::new(198, 51, 100, 0), 24, "a documentation"),
    (Ipv4Addr::new(203, 0, 113, 0), 24, "a documentation"),
    (Ipv4Addr::new(224, 0, 0, 0), 4, "a multicast"),
    (Ipv4Addr::new(240, 0, 0, 0), 4, "a reserved"),
];

const V6: [Block<Ipv6Addr>; 9] = [
    (Ipv6Addr::UNSPECIFIED, 128, "an unspecified"),
    (Ipv6Addr::LOCALHOST, 128, "a loopback"),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7, "a unique-local"),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10, "a link-local"),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8, "a multicast"),
    // Teredo, benchmarks, ORCHID and other protocols.
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23, "a reserved"),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32, "a documentation"),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20, "a documentation"),
    (Ipv6Addr::new(0x64, 0xff9b, 1, 0, 0, 0, 0, 0), 48, "a private"),
];

/// The kind of an address that is not public: "a loopback", "a private" …
pub(super) fn special(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => special_v4(address),
        IpAddr::V6(address) => special_v6(address),
    }
}

fn special_v4(address: Ipv4Addr) -> Option<&'static str> {
    let within = |(base, length, _): &&Block<Ipv4Addr>| (address.to_bits() ^ base.to_bits()) >> (32 - length) == 0;
    V4.iter().find(within).map(|(_, _, kind)| *kind)
}

fn special_v6(address: Ipv6Addr) -> Option<&'static str> {
    let within = |(base, length, _): &&Block<Ipv6Addr>| (address.to_bits() ^ base.to_bits()) >> (128 - length) == 0;
    if let Some((_, _, kind)) = V6.iter().find(within) {
        return Some(kind);
    }
    let [a, b, c, d, e, f, g, h] = address.segments();
    let embedded = |high: u16, low: u16| special_v4(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    // ISATAP, under any prefix, with the bit for globally unique set or not.
    let isatap = if matches!([e, f], [0 | 0x200, 0x5efe]) { embedded(g, h) } else { None };
    isatap.or_else(|| match [a, b, c, d, e, f] {
        // IPv4-mapped and NAT64.
        [0, 0, 0, 0, 0, 0xffff] | [0x64, 0xff9b, 0, 0, 0, 0] => embedded(g, h),
        // IPv4-compatible, deprecated.
        [0, 0, 0, 0, 0, 0] => Some(embedded(g, h).unwrap_or("a reserved")),
        // 6to4.
        [0x2002, high, low, ..] => embedded(high, low),
        _ if a >> 13 == 1 => None,
        _ => Some("a reserved"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every form in which an IPv6 address embeds this IPv4 address.
    fn forms(embedded: Ipv4Addr) -> Vec<(&'static str, Ipv6Addr)> {
        let (high, low) = ((embedded.to_bits() >> 16) as u16, embedded.to_bits() as u16);
        let public = Ipv4Addr::new(93, 184, 215, 14).to_bits();
        let (public_high, public_low) = ((public >> 16) as u16, public as u16);
        vec![
            ("IPv4-mapped", Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, high, low)),
            ("NAT64", Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, high, low)),
            ("6to4", Ipv6Addr::new(0x2002, high, low, 0, 0, 0, 0, 1)),
            ("ISATAP, not unique", Ipv6Addr::new(0x2600, 0, 0, 0, 0, 0x5efe, high, low)),
            ("ISATAP, unique", Ipv6Addr::new(0x2600, 0, 0, 0, 0x200, 0x5efe, high, low)),
            ("ISATAP in 6to4", Ipv6Addr::new(0x2002, public_high, public_low, 0, 0, 0x5efe, high, low)),
        ]
    }

    #[test]
    fn an_ipv6_address_is_what_the_ipv4_address_in_it_is() {
        for (embedded, kind) in [
            ("127.0.0.1", Some("a loopback")),
            ("169.254.169.254", Some("a link-local")),
            ("10.0.0.1", Some("a private")),
            ("168.63.129.16", Some("a metadata")),
            ("93.184.215.14", None),
        ] {
            for (form, address) in forms(embedded.parse().unwrap()) {
                assert_eq!(special(address.into()), kind, "{form}: {address}");
            }
        }
    }

    #[test]
    fn forms_that_nobody_needs_are_refused_whatever_they_carry() {
        for (form, address) in [
            ("IPv4-compatible", "::5db8:d70e"),
            ("IPv4-translated", "::ffff:0:5db8:d70e"),
            ("NAT64 of a local prefix", "64:ff9b:1::5db8:d70e"),
            ("Teredo", "2001:0:5db8:d70e:8000:63bf:a247:28f1"),
        ] {
            assert!(special(address.parse::<Ipv6Addr>().unwrap().into()).is_some(), "{form}: {address}");
        }
    }
}
