use super::*;
use crate::{acker::Acks, entry_builder::EntryBuilder, message::Message, metrics::Metrics};

fn poison(headers: FieldTable) -> Poison {
    let mut delivery = lapin::message::Delivery::mock(1, "ex".into(), "key".into(), false, vec![0xff]);
    delivery.properties = BasicProperties::default().with_headers(headers);
    Message::accept(delivery, None, &Acks::default(), &Metrics::default(), &EntryBuilder::default()).unwrap_err()
}

fn buried(headers: FieldTable, frame_max: usize) -> FieldTable {
    properties("q", &poison(headers), frame_max).headers().clone().unwrap()
}

#[test]
fn ours_come_beside_what_was_there() {
    let mut original = FieldTable::default();
    original.insert("kept".into(), AMQPValue::FieldTable(FieldTable::default()));
    original.insert(BROKER_DELIVERY_COUNT.into(), AMQPValue::LongLongInt(7));
    let got = buried(original.clone(), 131_072);
    let get = |name: &str| got.inner().get(name).cloned();
    assert_eq!(get("kept"), Some(AMQPValue::FieldTable(FieldTable::default())));
    assert_eq!(get(DELIVERY_COUNT), Some(AMQPValue::LongLongInt(7)));
    assert_eq!(get(EXCHANGE), Some(AMQPValue::LongString("ex".into())));
    let since_2020 = |value| matches!(value, Some(AMQPValue::Timestamp(at)) if at > 1_577_836_800);
    assert!(since_2020(get(TIME)) && since_2020(get(RECEIVED_AT)));
    assert_eq!(get(HEADERS_DROPPED), None);
}

#[test]
fn the_count_goes_on_and_nonsense_counts_as_none() {
    for (before, after) in [
        (None, 1),
        (Some(AMQPValue::LongLongInt(1)), 2),
        (Some(AMQPValue::ShortShortUInt(255)), 256),
        (Some(AMQPValue::LongLongInt(i64::MAX)), i64::MAX),
        (Some(AMQPValue::LongLongInt(-5)), 1),
        (Some(AMQPValue::LongString("many".into())), 1),
        (Some(AMQPValue::Void), 1),
    ] {
        let mut original = FieldTable::default();
        before.clone().map(|value| original.insert(COUNT.into(), value));
        assert_eq!(buried(original, 0).inner().get(COUNT), Some(&AMQPValue::LongLongInt(after)), "{before:?}");
    }
}

#[test]
fn headers_that_do_not_fit_into_a_frame_are_left_out() {
    for (bytes, dropped) in [(1_000, false), (3_000, false), (4_000, true), (200_000, true)] {
        let mut original = FieldTable::default();
        original.insert("big".into(), AMQPValue::LongString("x".repeat(bytes).into()));
        let got = buried(original, 4_096);
        assert_eq!(got.contains_key(HEADERS_DROPPED), dropped, "{bytes}");
        assert_eq!(got.contains_key("big"), !dropped, "{bytes}");
        assert!(got.contains_key(REASON));
    }
}

#[test]
fn what_would_route_copies_elsewhere_is_kept_under_another_name() {
    let keys = AMQPValue::FieldArray(vec![AMQPValue::LongString("elsewhere".into())].into());
    let mut original = FieldTable::default();
    for name in ["CC", "BCC", "cc"] {
        original.insert(name.into(), keys.clone());
    }
    let got = buried(original, 0);
    for (name, want) in [("CC", false), ("BCC", false), ("cc", true), (CC, true), (BCC, true)] {
        assert_eq!(got.inner().get(name), want.then_some(&keys), "{name}");
    }
}
