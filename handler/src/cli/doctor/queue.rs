//! Checks the queue: that it exists, that its visibility timeout is long enough, and that its maxReceiveCount is ours.

use super::{DoctorConfig, Finding, answer};
use crate::entry::sqs::Queue;
use aws_config::SdkConfig;
use aws_sdk_sqs::types::QueueAttributeName::{RedrivePolicy, VisibilityTimeout};
use serde_json::Value;

/// AWS recommends a visibility timeout of so many times the function's timeout.
const VISIBILITY_FACTOR: u32 = 6;

pub(super) async fn check(config: &DoctorConfig, aws: &SdkConfig) -> Vec<Finding> {
    let Some(url) = &config.sqs_queue_url else {
        return vec![Finding::warn("sqs.queue", "not looked at; give it by --sqs-queue-url (SQS_QUEUE_URL)")];
    };
    let what = format!("sqs.queue {url}");
    let advice =
        "check --sqs-queue-url (SQS_QUEUE_URL), the region and the credentials, which need sqs:GetQueueAttributes";
    let attributes = match answer(Queue::new(aws, url).attributes()).await.flatten() {
        Ok(attributes) => attributes,
        Err(error) => return vec![Finding::fail(what, format!("{error}; {advice}"))],
    };
    let visibility = attributes.get(&VisibilityTimeout).and_then(|text| text.parse().ok());
    let policy = attributes.get(&RedrivePolicy).map(String::as_str);
    vec![
        Finding::ok(what, ""),
        visibility_timeout(visibility, config.function_timeout),
        redrive_policy(policy, config.service.work.max_receive_count),
    ]
}

/// Whether the visibility timeout outlasts the function's timeout.
fn visibility_timeout(visibility: Option<u32>, function: Option<u32>) -> Finding {
    let what = "sqs.visibility-timeout";
    let Some(visibility) = visibility else {
        return Finding::warn(what, "the queue does not say it; look at it yourself");
    };
    let Some(function) = function else {
        return Finding::ok(
            what,
            format!("{visibility} s; a worker sets its own, a function's is held to --function-timeout"),
        );
    };
    let recommended = function.saturating_mul(VISIBILITY_FACTOR);
    let shown = format!("{visibility} s for a function of {function} s");
    if visibility < function {
        Finding::fail(what, format!("{shown}: a task comes again while it is worked on; set it to {recommended} s"))
    } else if visibility < recommended {
        Finding::warn(what, format!("{shown}: AWS wants {VISIBILITY_FACTOR} times as long; set it to {recommended} s"))
    } else {
        Finding::ok(what, shown)
    }
}

/// Whether the queue and we agree on the last receive.
fn redrive_policy(policy: Option<&str>, ours: u32) -> Finding {
    let what = "sqs.redrive-policy";
    let option = "--max-receive-count (EASEL_MAX_RECEIVE_COUNT)";
    let Some(policy) = policy else {
        let advice = format!("give the queue one with a dead-letter queue and maxReceiveCount {ours}");
        return Finding::warn(what, format!("none: a message that is no task comes again until it expires; {advice}"));
    };
    let count = serde_json::from_str(policy).ok().and_then(|policy: Value| match &policy["maxReceiveCount"] {
        Value::String(text) => text.parse::<u64>().ok(),
        number => number.as_u64(),
    });
    match count {
        None => Finding::warn(what, "has no maxReceiveCount that can be read; look at it yourself"),
        Some(count) if count == u64::from(ours) => Finding::ok(what, format!("maxReceiveCount {count}")),
        Some(count) if count < u64::from(ours) => Finding::fail(
            what,
            format!(
                "maxReceiveCount {count} is less than {option} {ours}: the backend is never told of a failure; make them \
                 the same"
            ),
        ),
        Some(count) => Finding::warn(
            what,
            format!(
                "maxReceiveCount {count} is more than {option} {ours}: tasks are given up early; make them the same"
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_must_outlast_the_function_and_give_up_when_we_do() {
        let line = |finding: Finding| finding.to_string();
        for (visibility, function, start) in [
            (Some(900), Some(150), "ok  "),
            (Some(899), Some(150), "warn"),
            (Some(149), Some(150), "FAIL"),
            (Some(30), None, "ok  "),
            (None, Some(150), "warn"),
        ] {
            let line = line(visibility_timeout(visibility, function));
            assert!(line.starts_with(start), "{line}");
        }
        for (policy, start) in [
            (None, "warn"),
            (Some(r#"{"maxReceiveCount":3}"#), "ok  "),
            (Some(r#"{"maxReceiveCount":"3"}"#), "ok  "),
            (Some(r#"{"maxReceiveCount":2}"#), "FAIL"),
            (Some(r#"{"maxReceiveCount":4}"#), "warn"),
            (Some("?"), "warn"),
        ] {
            let line = line(redrive_policy(policy, 3));
            assert!(line.starts_with(start), "{line}");
        }
    }
}
