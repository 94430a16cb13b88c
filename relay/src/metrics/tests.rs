use super::*;

/// The value of a line of the text.
fn value(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn shown(metrics: &Metrics, broker_ready: bool, sqs_ready: bool) -> String {
    encode([(metrics, broker_ready, sqs_ready)].into_iter()).unwrap()
}

#[test]
fn a_second_queue_has_metrics_of_its_own_behind_those_of_the_first() {
    let (tasks, cancels) = (Metrics::default(), Metrics::of_cancels());
    let received = [tasks.receive(None), cancels.receive(None), cancels.receive(None)];
    received[1].sent();
    let text = encode([(&tasks, true, true), (&cancels, true, false)].into_iter()).unwrap();
    for (name, count) in [
        ("received_total", 1.0),
        ("cancel_received_total", 2.0),
        ("cancel_stored_total", 1.0),
        ("cancel_unacked_messages", 2.0),
        ("cancel_broker_ready", 1.0),
        ("cancel_s3_ready", 0.0),
        ("sqs_ready", 1.0),
        ("sent_total", 0.0),
        ("cancel_retries_total{cause=\"other\"}", 0.0),
    ] {
        assert_eq!(value(&text, &format!("relay_{name}")), Some(count), "{name} in\n{text}");
    }
    let names = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| Some(line.strip_prefix("# TYPE ")?.to_owned())).collect()
    };
    assert!(names(&text).starts_with(&names(&shown(&tasks, true, true))), "{text}");
    assert_eq!(text.matches("# EOF").count(), 1);
    let mut types: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
    let count = types.len();
    types.sort_unstable();
    types.dedup();
    assert_eq!(types.len(), count, "a metric is there twice:\n{text}");
}

#[test]
fn the_text_has_every_metric_and_every_line_can_be_read() {
    let metrics = Metrics::default();
    let text = shown(&metrics, true, false);
    for name in [
        "received_total",
        "sent_total",
        "acked_total",
        "retries_total{cause=\"throttled\"}",
        "returned_dead_letters_total",
        "held_messages",
        "reconnects_total",
        "in_flight_batches",
        "unacked_messages",
        "batch_entries_count",
        "batch_bytes_count",
        "sqs_request_duration_seconds_count",
        "oldest_unacked_age_seconds",
        "delivery_to_ack_seconds_count",
        "end_to_end_seconds_count",
        "sqs_ready",
    ] {
        assert_eq!(value(&text, &format!("relay_{name}")), Some(0.0), "{name} in\n{text}");
    }
    assert_eq!(value(&text, "relay_broker_ready"), Some(1.0));
    assert_eq!(value(&text, &format!("relay_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))), Some(1.0));
    assert!(text.ends_with("# EOF\n"), "{text}");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        assert!(line.rsplit(' ').next().unwrap().parse::<f64>().is_ok(), "{line}");
    }
}

#[test]
fn a_message_is_counted_along_its_way() {
    let metrics = Metrics::default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let [first, second, third] = [Some(now - 60), None, Some(u64::MAX)].map(|published| metrics.receive(published));
    let batch = metrics.start_batch(3, 300);
    let text = shown(&metrics, true, true);
    assert_eq!(value(&text, "relay_unacked_messages"), Some(3.0));
    assert_eq!(value(&text, "relay_in_flight_batches"), Some(1.0));
    assert!(value(&text, "relay_oldest_unacked_age_seconds").unwrap() > 0.0);
    drop((second.held(), third.held()));
    let held = third.held();
    assert_eq!(value(&shown(&metrics, true, true), "relay_held_messages"), Some(1.0));
    drop(held);
    batch.answered();
    first.sent();
    first.acked();
    second.retried(&RetryCause::new(cause::THROTTLED, "later"));
    second.dead_lettered(&PoisonReason::Rejected("anything at all".to_owned()));
    second.acked();
    third.sent();
    let text = shown(&metrics, true, true);
    for (name, want) in [
        ("received_total", 3.0),
        ("sent_total", 2.0),
        ("acked_total", 2.0),
        ("dead_lettered_total{reason=\"rejected-by-sqs\"}", 1.0),
        ("returned_dead_letters_total", 3.0),
        ("held_messages", 0.0),
        ("retries_total{cause=\"throttled\"}", 1.0),
        ("in_flight_batches", 0.0),
        ("unacked_messages", 1.0),
        ("batch_entries_sum", 3.0),
        ("batch_bytes_sum", 300.0),
        ("sqs_request_duration_seconds_count", 1.0),
        ("delivery_to_ack_seconds_count", 2.0),
        // Of the two that SQS accepted, one had no plausible timestamp.
        ("end_to_end_seconds_count", 1.0),
    ] {
        assert_eq!(value(&text, &format!("relay_{name}")), Some(want), "{name} in\n{text}");
    }
    // A dropped message no longer counts, and was not acknowledged.
    drop(third);
    let text = shown(&metrics, true, true);
    assert_eq!(value(&text, "relay_unacked_messages"), Some(0.0));
    assert_eq!(value(&text, "relay_oldest_unacked_age_seconds"), Some(0.0));
    assert_eq!(value(&text, "relay_acked_total"), Some(2.0));
}

#[test]
fn a_dropped_batch_is_not_in_flight_and_has_no_duration() {
    let metrics = Metrics::default();
    drop(metrics.start_batch(1, 1));
    let text = shown(&metrics, true, true);
    assert_eq!(value(&text, "relay_in_flight_batches"), Some(0.0));
    assert_eq!(value(&text, "relay_sqs_request_duration_seconds_count"), Some(0.0));
}

#[test]
fn only_the_first_consumer_is_no_reconnect() {
    let metrics = Metrics::default();
    for want in [0.0, 1.0, 2.0] {
        metrics.consuming();
        assert_eq!(value(&shown(&metrics, true, true), "relay_reconnects_total"), Some(want));
    }
}

#[test]
fn implausible_timestamps_have_no_age() {
    let now = UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    for (published, want) in [
        (1_800_000_000, Some(0)),
        (1_799_999_990, Some(10)),
        (1_800_000_005, Some(0)),
        (1_800_000_006, None),
        (1_800_000_000 - MAX_AGE.as_secs(), Some(MAX_AGE.as_secs())),
        (1_800_000_000 - MAX_AGE.as_secs() - 1, None),
        (0, None),
        (1_800_000_000_000, None),
    ] {
        let got = age(UNIX_EPOCH + Duration::from_secs(published), now);
        assert_eq!(got, want.map(Duration::from_secs), "{published}");
    }
}
