use lapin::types::parsing::{parse_field_table, parse_short_string};

use super::*;

/// A short string.
fn short(text: &[u8]) -> Vec<u8> {
    [&[text.len() as u8], text].concat()
}

/// A length and what has it.
fn long(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
}

fn content_header_of(flags: u16, properties: &[u8]) -> Vec<u8> {
    [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3][..], &flags.to_be_bytes(), properties].concat()
}

#[test]
fn each_byte_that_is_no_character_becomes_a_question_mark() {
    for (text, mended) in [
        (&b"\xff\xfe"[..], &b"??"[..]),
        (b"a\xffb", b"a?b"),
        (b"\xc3\xa4\xc3", b"\xc3\xa4?"),
        (b"\xed\xa0\x80", b"???"),
        (b"\xf0\x9f\x8e", b"???"),
        (b"\xf0\x9f\x8e\xa8\x80", b"\xf0\x9f\x8e\xa8?"),
    ] {
        let mut bytes = text.to_vec();
        mend(&mut bytes);
        assert_eq!(bytes, mended, "{text:?}");
    }
}

#[test]
fn a_delivery_says_its_tag_and_what_was_mended() {
    let deliver = |exchange: &[u8], key: &[u8]| {
        [&DELIVER[..], &short(b"relay"), &7_u64.to_be_bytes(), &[1], &short(exchange), &short(key)].concat()
    };
    for (exchange, key, mended, told) in [
        (&b""[..], &b"tasks"[..], &b"tasks"[..], &[][..]),
        (b"\xc3\xa4", b"\xff", b"?", &["routing key ff"]),
        (b"x\x80", b"tasks", b"tasks", &["exchange 7880"]),
    ] {
        let mut payload = deliver(exchange, key);
        let delivery = method(&mut payload);
        assert_eq!((delivery.tag, delivery.mended), (Some(7), told.iter().map(ToString::to_string).collect()));
        assert!(payload.ends_with(&short(mended)), "{payload:?}");
    }
    let mut other = [&[0, 60, 0, 50][..], &short(b"\xff")].concat();
    let before = other.clone();
    assert_eq!(method(&mut other), Delivery::default());
    assert_eq!(other, before, "only deliveries are looked at");
}

#[test]
fn every_property_that_is_a_string_is_mended() {
    for (bit, (name, kind)) in PROPERTIES.into_iter().enumerate() {
        if matches!(kind, Type::String) {
            let mut payload = content_header_of(0x8000 >> bit, &short(b"\xff\xfe"));
            assert_eq!(content_header(&mut payload), [format!("{name} fffe")]);
            assert!(payload.ends_with(&short(b"??")), "{name}");
        }
    }
    let all: Vec<u8> = PROPERTIES
        .into_iter()
        .flat_map(|(_, kind)| match kind {
            Type::String => short(b"\xff"),
            Type::Table => long(b""),
            Type::Bytes(count) => vec![0xff; count],
        })
        .collect();
    let mut payload = content_header_of(0xfffc, &all);
    assert_eq!(content_header(&mut payload)[3], "7 more");
    assert_eq!(payload.iter().filter(|byte| **byte == b'?').count(), 10);
}

#[test]
fn names_are_mended_at_every_depth_and_values_never() {
    let value = |kind: u8, bytes: &[u8]| [&[kind][..], bytes].concat();
    let odd = [&short(b"\xff")[..], b"V"].concat();
    let array = [value(b'S', &long(b"\xff\xfe")), value(b'F', &long(&odd)), value(b'x', &long(b"\x80"))].concat();
    let plain: Vec<u8> = [(b't', 1), (b'b', 1), (b'B', 1), (b's', 2), (b'U', 2), (b'u', 2), (b'I', 4), (b'i', 4)]
        .into_iter()
        .chain([(b'f', 4), (b'L', 8), (b'l', 8), (b'd', 8), (b'T', 8), (b'D', 5), (b'V', 0)])
        .flat_map(|(kind, count)| [short(&[kind]), value(kind, &vec![0xff; count])].concat())
        .collect();
    let inner = [plain, short(b"array"), value(b'A', &long(&array)), short(b"\xc3"), value(b'V', b"")].concat();
    let table = long(&[short(b"inner"), value(b'F', &long(&inner)), short(b"last\x80"), value(b'V', b"")].concat());
    let mut payload = content_header_of(0x2080, &[&table[..], &short(b"id")].concat());
    assert_eq!(content_header(&mut payload), ["header name ff", "header name c3", "header name 6c61737480"]);
    // The client's own parser is the judge.
    let (rest, headers) = parse_field_table(&payload[14..]).unwrap();
    assert!(headers.contains_key("last?") && headers.contains_key("inner"), "{headers:?}");
    assert_eq!(parse_short_string(rest).unwrap().1.as_str(), "id");
    assert_eq!(payload.windows(4).filter(|bytes| *bytes == b"\x02\xff\xfeF").count(), 1, "values stay as they are");
}

#[test]
fn deep_nesting_needs_no_stack() {
    let mut table = long(&[&short(b"\xff")[..], b"V"].concat());
    for _ in 0..20_000 {
        table = long(&[&short(b"")[..], b"F", &table].concat());
    }
    let mut payload = content_header_of(0x2000, &table);
    assert_eq!(content_header(&mut payload), ["header name ff"]);
}

#[test]
fn what_ends_too_early_or_is_unknown_is_left_to_the_client() {
    let table = long(&[&short(b"name")[..], b"Z\xff"].concat());
    let whole = content_header_of(0x2080, &[&table[..], &short(b"\xff")].concat());
    for length in 0..=whole.len() {
        let mut payload = whole[..length].to_vec();
        assert_eq!(content_header(&mut payload), [] as [String; 0]);
        assert_eq!(payload, whole[..length]);
    }
}
