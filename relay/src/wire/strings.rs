//! Finds the short strings of deliveries, and repairs those that are not UTF-8 in place, so that no length changes.
//!
//! The layout is that of AMQP 0-9-1, sections 4.2.3 to 4.2.6, with the field types of RabbitMQ
//! (www.rabbitmq.com/amqp-0-9-1-errata). From a value that ends too early or has an unknown type on, everything is left
//! as it is.

/// Class and method of `basic.deliver`.
const DELIVER: [u8; 4] = [0, 60, 0, 60];
/// Class, weight and the body's size.
const BEFORE_FLAGS: usize = 12;
/// The content header's properties, in the order of their flags from the highest bit down, with their types.
const PROPERTIES: [(&str, Type); 14] = [
    ("content-type", Type::String),
    ("content-encoding", Type::String),
    ("headers", Type::Table),
    ("delivery-mode", Type::Bytes(1)),
    ("priority", Type::Bytes(1)),
    ("correlation-id", Type::String),
    ("reply-to", Type::String),
    ("expiration", Type::String),
    ("message-id", Type::String),
    ("timestamp", Type::Bytes(8)),
    ("type", Type::String),
    ("user-id", Type::String),
    ("app-id", Type::String),
    ("cluster-id", Type::String),
];
/// More than these could make a dead letter's headers too large for a frame.
const MAX_REPORTED: usize = 3;

#[derive(Debug, Clone, Copy)]
enum Type {
    String,
    Table,
    Bytes(usize),
}

/// What a method frame says about a delivery.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DeliverFrame {
    /// Its tag; `None` for every other method.
    pub(super) tag: Option<u64>,
    /// What was repaired, in words.
    pub(super) repaired: Vec<String>,
}

/// Whether a method frame brings a delivery.
pub(super) fn is_delivery(payload: &[u8]) -> bool {
    payload.starts_with(&DELIVER)
}

/// Repairs the payload of a method frame.
pub(super) fn repair_method(payload: &mut [u8]) -> DeliverFrame {
    if !is_delivery(payload) {
        return DeliverFrame::default();
    }
    let mut cursor = Cursor::new(payload, DELIVER.len());
    let tag = cursor.delivery();
    DeliverFrame { tag, repaired: cursor.report() }
}

/// Repairs the payload of a content header frame, and returns what it repaired.
pub(super) fn repair_content_header(payload: &mut [u8]) -> Vec<String> {
    let mut cursor = Cursor::new(payload, BEFORE_FLAGS);
    // What ends too early is left to the client.
    let _ = cursor.properties();
    cursor.report()
}

/// A position in a payload. Every step is `None` if the payload ends too early.
struct Cursor<'a> {
    payload: &'a mut [u8],
    at: usize,
    repaired: Vec<String>,
    count: usize,
}

impl<'a> Cursor<'a> {
    fn new(payload: &'a mut [u8], at: usize) -> Self {
        Self { payload, at, repaired: vec![], count: 0 }
    }

    /// The arguments of `basic.deliver`.
    fn delivery(&mut self) -> Option<u64> {
        self.string("consumer tag")?;
        let tag = u64::from_be_bytes(self.bytes()?);
        let [_redelivered] = self.bytes()?;
        self.string("exchange");
        self.string("routing key");
        Some(tag)
    }

    fn properties(&mut self) -> Option<()> {
        let flags = u16::from_be_bytes(self.bytes()?);
        for (bit, (name, kind)) in PROPERTIES.into_iter().enumerate() {
            if flags & (0x8000 >> bit) != 0 {
                match kind {
                    Type::String => self.string(name)?,
                    Type::Table => self.table()?,
                    Type::Bytes(count) => self.skip(count)?,
                }
            }
        }
        Some(())
    }

    /// A table with everything in it. Not by recursion: headers can be nested some thousand levels deep.
    fn table(&mut self) -> Option<()> {
        let end = self.end()?;
        let mut open = vec![(end, true)];
        while let Some(&(end, named)) = open.last() {
            if self.at >= end {
                open.pop();
                continue;
            }
            if named {
                self.string("header name")?;
            }
            let [kind] = self.bytes()?;
            match kind {
                b't' | b'b' | b'B' => self.skip(1)?,
                b's' | b'U' | b'u' => self.skip(2)?,
                b'I' | b'i' | b'f' => self.skip(4)?,
                b'L' | b'l' | b'd' | b'T' => self.skip(8)?,
                b'D' => self.skip(5)?,
                b'S' | b'x' => self.at = self.end()?,
                b'V' => {}
                b'F' | b'A' => {
                    let inner = self.end()?;
                    open.push((inner, kind == b'F'));
                }
                _ => return None,
            }
        }
        Some(())
    }

    /// Reads a length. Returns the position where the value after it ends.
    fn end(&mut self) -> Option<usize> {
        let length = u32::from_be_bytes(self.bytes()?) as usize;
        self.at.checked_add(length).filter(|end| *end <= self.payload.len())
    }

    fn string(&mut self, name: &str) -> Option<()> {
        let [length] = self.bytes()?;
        let end = self.at + usize::from(length);
        let text = self.payload.get_mut(self.at..end)?;
        self.at = end;
        if std::str::from_utf8(text).is_err() {
            self.count += 1;
            if self.repaired.len() < MAX_REPORTED {
                self.repaired.push(format!("{name} {}", hex::encode(&*text)));
            }
            replace_invalid_utf8(text);
        }
        Some(())
    }

    fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let bytes = *self.payload.get(self.at..)?.first_chunk()?;
        self.at += N;
        Some(bytes)
    }

    fn skip(&mut self, count: usize) -> Option<()> {
        self.at = self.at.checked_add(count).filter(|at| *at <= self.payload.len())?;
        Some(())
    }

    fn report(mut self) -> Vec<String> {
        let more = self.count - self.repaired.len();
        if more > 0 {
            self.repaired.push(format!("{more} more"));
        }
        self.repaired
    }
}

/// Replaces each byte that belongs to no character by a question mark.
fn replace_invalid_utf8(text: &mut [u8]) {
    let mut at = 0;
    while let Some(err) = text.get(at..).and_then(|rest| std::str::from_utf8(rest).err()) {
        let from = at + err.valid_up_to();
        at = err.error_len().map_or(text.len(), |length| from + length);
        text[from..at].fill(b'?');
    }
}

#[cfg(test)]
mod tests {
    use lapin::types::parsing::{parse_field_table, parse_short_string};

    use super::*;

    /// A short string.
    fn short(text: &[u8]) -> Vec<u8> {
        [&[text.len() as u8], text].concat()
    }

    /// A long string, table or array: its length and its bytes.
    fn long(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes(), bytes].concat()
    }

    fn content_header_of(flags: u16, properties: &[u8]) -> Vec<u8> {
        [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3][..], &flags.to_be_bytes(), properties].concat()
    }

    #[test]
    fn each_byte_that_is_no_character_becomes_a_question_mark() {
        for (text, repaired) in [
            (&b"\xff\xfe"[..], &b"??"[..]),
            (b"a\xffb", b"a?b"),
            (b"\xc3\xa4\xc3", b"\xc3\xa4?"),
            (b"\xed\xa0\x80", b"???"),
            (b"\xf0\x9f\x8e", b"???"),
            (b"\xf0\x9f\x8e\xa8\x80", b"\xf0\x9f\x8e\xa8?"),
        ] {
            let mut bytes = text.to_vec();
            replace_invalid_utf8(&mut bytes);
            assert_eq!(bytes, repaired, "{text:?}");
        }
    }

    #[test]
    fn a_delivery_has_its_tag_and_what_was_repaired() {
        let deliver = |exchange: &[u8], key: &[u8]| {
            [&DELIVER[..], &short(b"relay"), &7_u64.to_be_bytes(), &[1], &short(exchange), &short(key)].concat()
        };
        for (exchange, key, repaired, report) in [
            (&b""[..], &b"tasks"[..], &b"tasks"[..], &[][..]),
            (b"\xc3\xa4", b"\xff", b"?", &["routing key ff"]),
            (b"x\x80", b"tasks", b"tasks", &["exchange 7880"]),
        ] {
            let mut payload = deliver(exchange, key);
            let delivery = repair_method(&mut payload);
            assert_eq!((delivery.tag, delivery.repaired), (Some(7), report.iter().map(ToString::to_string).collect()));
            assert!(payload.ends_with(&short(repaired)), "{payload:?}");
        }
        let mut other = [&[0, 60, 0, 50][..], &short(b"\xff")].concat();
        let before = other.clone();
        assert_eq!(repair_method(&mut other), DeliverFrame::default());
        assert_eq!(other, before, "only deliveries are looked at");
    }

    #[test]
    fn every_property_that_is_a_string_is_repaired() {
        for (bit, (name, kind)) in PROPERTIES.into_iter().enumerate() {
            if matches!(kind, Type::String) {
                let mut payload = content_header_of(0x8000 >> bit, &short(b"\xff\xfe"));
                assert_eq!(repair_content_header(&mut payload), [format!("{name} fffe")]);
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
        assert_eq!(repair_content_header(&mut payload)[3], "7 more");
        assert_eq!(payload.iter().filter(|byte| **byte == b'?').count(), 10);
    }

    #[test]
    fn names_are_repaired_at_every_depth_and_values_never() {
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
        assert_eq!(repair_content_header(&mut payload), ["header name ff", "header name c3", "header name 6c61737480"]);
        // The client's own parser decides.
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
        assert_eq!(repair_content_header(&mut payload), ["header name ff"]);
    }

    #[test]
    fn what_ends_too_early_or_is_unknown_is_left_to_the_client() {
        let table = long(&[&short(b"name")[..], b"Z\xff"].concat());
        let whole = content_header_of(0x2080, &[&table[..], &short(b"\xff")].concat());
        for length in 0..=whole.len() {
            let mut payload = whole[..length].to_vec();
            assert_eq!(repair_content_header(&mut payload), [] as [String; 0]);
            assert_eq!(payload, whole[..length]);
        }
    }
}
