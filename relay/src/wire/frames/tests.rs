use proptest::prelude::*;

use super::*;
use prometheus_client::metrics::gauge::Gauge;

fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    [&[kind][..], &channel.to_be_bytes(), &(payload.len() as u32).to_be_bytes(), payload, b"\xce"].concat()
}

/// A delivery with a message-id and a body.
fn delivery(channel: u16, tag: u64, key: &[u8], id: &[u8], body: &[u8]) -> Vec<u8> {
    let short = |text: &[u8]| [&[text.len() as u8], text].concat();
    let method = [&[0, 60, 0, 60][..], &short(b"relay"), &tag.to_be_bytes(), &[0], &short(b""), &short(key)].concat();
    let size = (body.len() as u64).to_be_bytes();
    let header = [&[0, 60, 0, 0][..], &size, &0x0080_u16.to_be_bytes(), &short(id)].concat();
    [frame(METHOD, channel, &method), frame(CONTENT_HEADER, channel, &header), frame(BODY, channel, body)].concat()
}

/// What comes out if the bytes come in pieces of these sizes, repeatedly.
fn through(bytes: &[u8], pieces: &[usize], notes: &ConnectionNotes) -> Vec<u8> {
    let (mut frames, mut out, mut rest) = (Frames::new(notes.clone()), vec![], bytes);
    let mut buffer = [0; 1000];
    for piece in pieces.iter().cycle() {
        let count = (*piece).min(rest.len());
        let (now, later) = rest.split_at(count);
        rest = later;
        frames.spare()[..count].copy_from_slice(now);
        frames.fill(count);
        loop {
            match frames.read(&mut buffer) {
                0 => break,
                given => out.extend_from_slice(&buffer[..given]),
            }
        }
        if rest.is_empty() {
            return out;
        }
    }
    unreachable!("there is at least one piece")
}

proptest! {
    #[test]
    fn all_bytes_come_out_however_they_are_cut(
        deliveries in prop::collection::vec((1..4_u16, "\\PC{0,40}", "\\PC{0,40}", prop::collection::vec(any::<u8>(), 0..3000)), 0..12),
        pieces in prop::collection::vec(1..4000_usize, 1..6),
        tail in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let notes = ConnectionNotes::default();
        let frames = (1..).zip(&deliveries).flat_map(|(tag, (channel, key, id, body))| {
            delivery(*channel, tag, key.as_bytes(), id.as_bytes(), body)
        });
        let whole: Vec<u8> = frames.collect();
        prop_assert_eq!(through(&whole, &pieces, &notes), whole.as_slice());
        // Bytes that are no frame may be held back as the beginning of one, and are never changed.
        let with_tail = [&whole[..], &tail].concat();
        let out = through(&with_tail, &pieces, &notes);
        prop_assert!(out.len() >= whole.len() && with_tail.starts_with(&out));
        prop_assert!((1..20).all(|tag| (1..4).all(|channel| notes.take(channel, tag).repaired.is_none())));
    }

    #[test]
    fn a_repaired_delivery_is_noted_under_its_channel_and_tag(pieces in prop::collection::vec(1..400_usize, 1..6)) {
        let notes = ConnectionNotes::default();
        let bytes = [
            delivery(1, 5, b"tasks", b"fine", b"\xff\xff"),
            delivery(2, 5, b"tasks", b"\xff", b"body"),
            delivery(1, 6, b"\xfe", b"\xfd", b""),
            delivery(1, 7, b"tasks", b"fine", b"body"),
        ].concat();
        let repaired = [
            delivery(1, 5, b"tasks", b"fine", b"\xff\xff"),
            delivery(2, 5, b"tasks", b"?", b"body"),
            delivery(1, 6, b"?", b"?", b""),
            delivery(1, 7, b"tasks", b"fine", b"body"),
        ].concat();
        prop_assert_eq!(through(&bytes, &pieces, &notes), repaired);
        let repaired = |channel, tag| notes.take(channel, tag).repaired;
        prop_assert_eq!(repaired(2, 5), Some("message-id ff".to_owned()));
        prop_assert_eq!(repaired(1, 6), Some("routing key fe, message-id fd".to_owned()));
        prop_assert!(repaired(1, 6).is_none() && repaired(1, 5).is_none() && repaired(1, 7).is_none());
    }
}

#[test]
fn bytes_that_are_no_amqp_pass_unchanged() {
    let notes = ConnectionNotes::default();
    for bytes in
        [&b"AMQP\x00\x00\x09\x01"[..], b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x01\x00\x00\xff\xff\xff\xff\xff"]
    {
        assert_eq!(through(bytes, &[3], &notes), bytes);
    }
}

#[test]
fn a_large_frame_leaves_no_large_buffer_behind() {
    let mut frames = Frames::new(ConnectionNotes::default());
    let large = frame(METHOD, 1, &vec![0; 8 * READ_BYTES]);
    for piece in large.chunks(READ_BYTES) {
        frames.spare()[..piece.len()].copy_from_slice(piece);
        frames.fill(piece.len());
    }
    let mut out = vec![0; large.len()];
    assert_eq!(frames.read(&mut out), large.len());
    assert!(frames.spare().len() <= READ_BYTES);
}

/// All that can be read now.
fn drain(frames: &mut Frames) -> Vec<u8> {
    let mut out = vec![0; 10_000];
    let given = frames.read(&mut out);
    out.truncate(given);
    out
}

fn feed(frames: &mut Frames, bytes: &[u8]) {
    frames.spare()[..bytes.len()].copy_from_slice(bytes);
    frames.fill(bytes.len());
}

#[test]
fn a_delivery_waits_for_room_and_what_comes_before_it_passes() {
    let context = Context::from_waker(std::task::Waker::noop());
    let gauge = Gauge::default();
    let notes = ConnectionNotes::within(Budget::new(10, gauge.clone()));
    let mut frames = Frames::new(notes.clone());
    let [first, second, third] = [1, 2, 3].map(|tag| delivery(1, tag, b"key", b"id", b"0123456789"));
    let answer = frame(METHOD, 1, &[0, 60, 0, 31, 0]);
    feed(&mut frames, &[&first[..], &answer, &second, &third, &answer].concat());
    assert_eq!(drain(&mut frames), [&first[..], &answer].concat());
    assert!(frames.is_waiting() && frames.poll_delivery(&context).is_pending());
    frames.insert_heartbeat();
    assert_eq!(drain(&mut frames), HEARTBEAT_FRAME);
    let held = notes.take(1, 1).held.unwrap();
    assert!(gauge.get() > 10 && frames.poll_delivery(&context).is_pending());
    drop(held);
    assert!(frames.poll_delivery(&context).is_ready() && frames.is_waiting());
    assert_eq!(drain(&mut frames), second, "one, and the next waits again");
    // No more deliveries are wanted: those left are left out, and answers get through.
    notes.end();
    assert!(frames.poll_delivery(&context).is_ready() && !frames.is_waiting());
    assert_eq!(drain(&mut frames), answer);
    for piece in [&delivery(1, 4, b"key", b"id", b"body")[..], &answer].concat().chunks(3) {
        feed(&mut frames, piece);
    }
    assert_eq!(drain(&mut frames), answer);
}

#[test]
fn a_delivery_that_is_half_read_at_the_end_is_read_whole() {
    let notes = ConnectionNotes::default();
    let mut frames = Frames::new(notes.clone());
    let [first, second] = [1, 2].map(|tag| delivery(1, tag, b"key", b"id", b"0123456789"));
    let (begin, end) = first.split_at(first.len() - 5);
    feed(&mut frames, begin);
    notes.end();
    feed(&mut frames, &[end, &second].concat());
    assert_eq!(drain(&mut frames), first);
    assert!(notes.take(1, 2).held.is_none());
}

#[test]
fn the_brokers_frame_max_is_noted_and_passes_unchanged() {
    for (method, want) in [
        (vec![0, 10, 0, 30, 7, 255, 0, 0, 16, 0, 0, 60], Some(4096)),
        (vec![0, 10, 0, 30, 0, 0, 0, 0, 0, 0, 0, 0], None),
        (vec![0, 10, 0, 30, 7], None),
        (vec![0, 10, 0, 41, 7, 255, 0, 0, 16, 0], None),
    ] {
        let (notes, whole) = (ConnectionNotes::default(), frame(METHOD, 0, &method));
        assert_eq!(through(&whole, &[5], &notes), whole);
        assert_eq!(notes.frame_max(), want, "{method:?}");
    }
}
