//! What the studio's relay and function are set to beyond their defaults, each with its reason. The page shows this list: all of it
//! is there so that something can be seen.

use crate::aws::IMAGES;
use serde::Serialize;

/// The queue for messages that cancel tasks.
pub const CANCELS: &str = "image_generation.cancel";

/// The bucket of sketches that tasks may begin from.
pub const SKETCHES: &str = "stylelicense-sketches";

/// A variable of a program's environment.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Setting {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: &'static str,
    /// What it shows on the page.
    pub why: &'static str,
}

/// Those of the relay.
pub const RELAY: [Setting; 2] = [
    Setting {
        name: "AMQP_CANCEL_QUEUE",
        value: CANCELS,
        why: "Cancelling has a queue of its own, so that it does not wait behind the tasks.",
    },
    Setting {
        name: "RELAY_CANCEL_BUCKET",
        value: IMAGES,
        why: "The relay stores a marker here for each cancelled task. The function looks for it before and while it paints.",
    },
];

/// Those of the function.
pub const FUNCTION: [Setting; 9] = [
    Setting {
        name: "EASEL_WEBHOOK_DETAIL",
        value: "full",
        why: "The webhook complete tells scheduler, size, model, LoRAs, times and warnings. The chart of a task shows its times.",
    },
    Setting {
        name: "EASEL_PROGRESS",
        value: "every:10",
        why: "Progress at ten marks instead of five. A cancelled task is looked for at each.",
    },
    Setting {
        name: "EASEL_PROGRESS_PREVIEW",
        value: "true",
        why: "Each mark of progress after the first step brings a small picture of the painting.",
    },
    Setting {
        name: "EASEL_SAFETY",
        value: "flag",
        why: "The model brings a safety checker. What it flags is told, but not made black: then there would be no previews.",
    },
    Setting {
        name: "EASEL_CANCELLED_WEBHOOK",
        value: "true",
        why: "The webhook cancelled tells the backend when a task has stopped.",
    },
    Setting {
        name: "EASEL_RESULT_URLS",
        value: "presigned:3600",
        why: "Pictures are private: their address is signed and works for an hour.",
    },
    Setting {
        name: "EASEL_IMAGE_BUCKETS",
        value: SKETCHES,
        why: "Tasks may begin from a sketch in this bucket, to which the page's server adds those that are chosen here. By default there is none.",
    },
    Setting { name: "EASEL_ERROR_CODES", value: "fine", why: "Each kind of failure has a code of its own." },
    Setting {
        name: "EASEL_CLAIM_LEASE",
        value: "3",
        why: "A function that was killed keeps the next one from its task for three seconds at most.",
    },
];
