use super::*;
use crate::attributes::Value;

#[test]
fn bodies_are_taken_whole_or_refused_with_their_reason() {
    let full = vec![b'x'; MAX_BYTES];
    let over = vec![b'x'; MAX_BYTES + 1];
    let cases: Vec<(&[u8], Option<&str>)> = vec![
        (b"x", None),
        (b"{\"a\":1}\r\n\t", None),
        ("\u{7f}\u{85}\u{d7ff}\u{e000}\u{fffd}\u{10000}\u{10ffff}".as_bytes(), None),
        (&full, None),
        (b"", Some("empty-body")),
        (b"\xff", Some("not-utf8")),
        (b"\xed\xa0\x80", Some("not-utf8")),
        (b"a\0b", Some("illegal-character")),
        (b"\x08", Some("illegal-character")),
        (b"\x0b", Some("illegal-character")),
        (b"\x1f", Some("illegal-character")),
        ("\u{fffe}".as_bytes(), Some("illegal-character")),
        ("\u{ffff}".as_bytes(), Some("illegal-character")),
        (&over, Some("too-large")),
    ];
    for (body, refused) in cases {
        let shown = String::from_utf8_lossy(&body[..body.len().min(16)]);
        match Entry::new(body.to_vec(), MAX_BYTES) {
            Ok(entry) => {
                assert_eq!(refused, None, "{shown:?}");
                assert_eq!(entry.into_body(), body);
            }
            Err((back, reason)) => {
                assert_eq!(Some(reason.as_str()), refused, "{shown:?}");
                assert_eq!(back, body, "the body must come back unchanged");
            }
        }
    }
}

/// The SDK counts nothing: what is too large comes back from SQS.
#[test]
fn size_counts_attributes_as_sqs_does_and_the_last_ones_give_way() {
    // Name, type and value: 2 + 6 + 3, 1 + 6 + 2 and 1 + 6 + 4 bytes.
    let attributes = vec![
        Attribute { name: "id".into(), value: Value::Text("abc".to_owned()) },
        Attribute { name: "n".into(), value: Value::Number("12".to_owned()) },
        Attribute { name: "b".into(), value: Value::Binary(vec![0xff; 4]) },
    ];
    for (room, kept, bytes) in [(31, 3, 31), (30, 2, 20), (20, 2, 20), (19, 1, 11), (11, 1, 11), (10, 0, 0), (0, 0, 0)]
    {
        let body = vec![b'x'; MAX_BYTES - room];
        let entry = Entry::new(body, MAX_BYTES).unwrap().with_attributes(attributes.clone(), MAX_BYTES);
        assert_eq!(entry.attributes(), &attributes[..kept], "{room}");
        assert_eq!(entry.size(), MAX_BYTES - room + bytes, "{room}");
    }
}

#[test]
fn only_a_fifo_queue_keeps_an_order() {
    let entry = || Entry::new(b"x".to_vec(), MAX_BYTES).unwrap();
    let fifo = Ids::Fifo { group: "g".to_owned(), deduplication: "d".to_owned() };
    for (ids, group, deduplication, lane) in [
        (Ids::Standard { group: None }, None, None, None),
        (Ids::Standard { group: Some("g".to_owned()) }, Some("g"), None, None),
        (fifo, Some("g"), Some("d"), Some("g")),
    ] {
        let entry = entry().with_ids(ids);
        assert_eq!((entry.group(), entry.deduplication(), entry.lane()), (group, deduplication, lane));
    }
}

#[test]
fn a_queue_may_take_less_than_sqs_and_a_message_can_still_move_to_the_bucket() {
    let (limit, size) = (SizeLimit::default(), |entry: &Entry| entry.attributes()[0].value.clone());
    assert_eq!((limit.get(), limit.set(1_024), limit.get()), (MAX_BYTES, MAX_BYTES, 1_024));
    assert_eq!((limit.set(usize::MAX), limit.get()), (1_024, MAX_BYTES), "never more than SQS");
    let (back, reason) = Entry::new(vec![b'x'; 1_025], 1_024).unwrap_err();
    assert_eq!((back.len(), &reason), (1_025, &Reason::TooLarge { bytes: 1_025, limit: 1_024 }));
    assert!(reason.to_string().contains("takes 1024: raise its MaximumMessageSize"), "{reason}");
    let attributes: Vec<Attribute> =
        (0..10).map(|n| Attribute { name: format!("n{n}").into(), value: Value::Text("v".to_owned()) }).collect();
    let ids = Ids::Fifo { group: "g".to_owned(), deduplication: "d".to_owned() };
    let entry = Entry::new(vec![b'x'; 900], 1_024).unwrap().with_ids(ids).with_attributes(attributes.clone(), 1_024);
    let moved = entry.moved("b", 1_024);
    assert_eq!((moved.group(), moved.deduplication()), (Some("g"), Some("d")));
    assert_eq!(&moved.attributes()[1..], &attributes[..9], "SQS takes ten");
    assert_eq!(size(&moved), Value::Number("900".to_owned()));
    assert!(moved.size() < 900 && moved.body().contains("payloads/"), "{}", moved.body());
    let again = moved.clone().moved("other", 1_024);
    assert_eq!(again, moved, "it is there already");
    assert_eq!(again.into_body(), vec![b'x'; 900]);
}
