//! Checks that the backend, the buckets and the size of a task are allowed.
//!
//! A task that is not admitted becomes an [`InvalidTask`], as if the field were malformed. A forbidden webhook address is taken out of
//! it, so that nothing is sent there.

use crate::{
    task::{InvalidTask, SizeLimits, Task, buckets::BucketPattern},
    webhook::network::{Guard, HostPattern},
};
use clap::Args;

/// What a task may reach.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "What a task may reach")]
pub struct SafetyConfig {
    /// Hosts that webhooks may go to, and no others: api.example.org, or .example.org for all under it; :port narrows an entry
    /// down [default: every host with a public address]
    #[arg(long, env = "EASEL_WEBHOOK_HOSTS", value_name = "HOST,…", value_delimiter = ',')]
    pub webhook_hosts: Vec<HostPattern>,
    /// Let webhooks go to private, loopback and link-local addresses too, if there is no --webhook-hosts.
    #[arg(long, env = "EASEL_ALLOW_PRIVATE_WEBHOOKS")]
    pub allow_private_webhooks: bool,
    /// Buckets that LoRAs and textual inversions may come from, and no others; *-loras means all that end so [default: every bucket that may be read]
    #[arg(long, env = "EASEL_LORA_BUCKETS", value_name = "BUCKET,…", value_delimiter = ',')]
    pub lora_buckets: Vec<BucketPattern>,
    /// Buckets that pictures to begin from may come from, and no others; *-uploads means all that end so [default: none, so that no task may name a picture]
    #[arg(long, env = "EASEL_IMAGE_BUCKETS", value_name = "BUCKET,…", value_delimiter = ',')]
    pub image_buckets: Vec<BucketPattern>,
}

impl SafetyConfig {
    /// The guard of the webhooks.
    pub fn guard(&self) -> Guard {
        Guard::new(&self.webhook_hosts, self.allow_private_webhooks)
    }
}

/// What tasks may reach.
#[derive(Clone)]
pub struct Admission {
    guard: Guard,
    buckets: Vec<BucketPattern>,
    image_buckets: Vec<BucketPattern>,
    sizes: SizeLimits,
}

impl Admission {
    /// By the options.
    pub fn new(config: &SafetyConfig, sizes: &SizeLimits) -> Self {
        let (buckets, image_buckets) = (config.lora_buckets.clone(), config.image_buckets.clone());
        Self { guard: config.guard(), buckets, image_buckets, sizes: sizes.clone() }
    }

    /// The guard of the webhooks.
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Lets a task through.
    ///
    /// # Errors
    /// The task was invalid already, or names a host or bucket that is not allowed, or has a size that is not.
    pub async fn admit(&self, parsed: Result<Task, Box<InvalidTask>>) -> Result<Task, Box<InvalidTask>> {
        match parsed {
            Ok(task) => match self.guard.check_ahead(&task.webhook_url).await {
                Ok(()) => self.check_size(task).and_then(|task| self.check_buckets(task)),
                Err(refused) => Err(Box::new(InvalidTask {
                    reason: refused.to_string(),
                    generation_id: Some(task.generation_id),
                    webhook_url: None,
                })),
            },
            Err(mut invalid) => {
                if let Some(url) = &invalid.webhook_url
                    && let Err(refused) = self.guard.check_ahead(url).await
                {
                    invalid.reason = format!("{}; {refused}", invalid.reason);
                    invalid.webhook_url = None;
                }
                Err(invalid)
            }
        }
    }

    /// The sizes of aspect ratios are always allowed.
    fn check_size(&self, task: Task) -> Result<Task, Box<InvalidTask>> {
        match self.sizes.admit((task.width, task.height)) {
            Err(reason) if task.own_size => Err(Box::new(InvalidTask {
                reason,
                generation_id: Some(task.generation_id),
                webhook_url: Some(task.webhook_url),
            })),
            _ => Ok(task),
        }
    }

    fn check_buckets(&self, task: Task) -> Result<Task, Box<InvalidTask>> {
        let listed = |bucket: &str| self.buckets.is_empty() || self.buckets.iter().any(|entry| entry.matches(bucket));
        let lora = task.loras.iter().position(|lora| !listed(&lora.bucket)).map(|index| match index.checked_sub(1) {
            None => "lora_model_url".to_string(),
            Some(index) => format!("loras[{index}].lora_model_url"),
        });
        let inversion = || task.inversions.iter().position(|inversion| !listed(&inversion.bucket));
        match lora.or_else(|| inversion().map(|index| format!("textual_inversions[{index}].url"))) {
            None => self.check_image_bucket(task),
            Some(field) => {
                let reason =
                    format!("`{field}` names a bucket that is not among those of --lora-buckets (EASEL_LORA_BUCKETS)");
                let (generation_id, webhook_url) = (Some(task.generation_id), Some(task.webhook_url));
                Err(Box::new(InvalidTask { reason, generation_id, webhook_url }))
            }
        }
    }
}

impl Admission {
    /// Without a list no bucket is allowed: what may be read, the pictures of others among it, must not come out as another picture.
    fn check_image_bucket(&self, task: Task) -> Result<Task, Box<InvalidTask>> {
        let listed = |bucket: &str| self.image_buckets.iter().any(|entry| entry.matches(bucket));
        if task.image.as_ref().is_none_or(|image| listed(&image.bucket)) {
            return Ok(task);
        }
        let reason = "`image_url` names a bucket that is not among those of --image-buckets (EASEL_IMAGE_BUCKETS), which by default are none";
        let (generation_id, webhook_url) = (Some(task.generation_id), Some(task.webhook_url));
        Err(Box::new(InvalidTask { reason: reason.into(), generation_id, webhook_url }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    async fn admit(buckets: &[&str], first: &str, second: &str, third: &str) -> Result<Task, Box<InvalidTask>> {
        let lora_buckets = buckets.iter().map(|bucket| bucket.parse().unwrap()).collect();
        let config = SafetyConfig { lora_buckets, allow_private_webhooks: true, ..SafetyConfig::default() };
        let body = json!({
            "generation_id": 1, "style_id": 1, "lora_model_url": first, "prompt_tags": ["x"], "artist_name": "Ada",
            "webhook_url": "http://localhost", "loras": [{ "lora_model_url": second }],
            "textual_inversions": [{ "url": third }],
        });
        Admission::new(&config, &SizeLimits::default()).admit(Task::parse(&body.to_string())).await
    }

    #[tokio::test]
    async fn loras_come_from_listed_buckets_only_and_else_the_backend_can_be_notified() {
        let (good, ending, other) = ("s3://styles/k", "s3://anna-loras/k", "s3://other/k");
        assert!(admit(&[], other, other, other).await.is_ok(), "no list");
        assert!(admit(&["styles", "*-loras"], good, ending, ending).await.is_ok());
        for (first, second, third, field) in [
            (other, good, good, "`lora_model_url`"),
            (good, other, other, "`loras[0].lora_model_url`"),
            (good, good, other, "`textual_inversions[0].url`"),
        ] {
            let invalid = admit(&["styles", "*-loras"], first, second, third).await.unwrap_err();
            assert!(invalid.reason.starts_with(field) && invalid.reason.contains("EASEL_LORA_BUCKETS"), "{invalid}");
            assert_eq!((invalid.generation_id, invalid.webhook_url.is_some()), (Some(1), true));
        }
    }

    #[tokio::test]
    async fn pictures_come_from_listed_buckets_only_and_from_none_without_a_list() {
        let admit = async |names: &[&str], image: &str| {
            let buckets = |names: &[&str]| names.iter().map(|bucket| bucket.parse().unwrap()).collect();
            // A bucket of LoRAs is none of pictures.
            let (lora_buckets, image_buckets) = (buckets(&["styles"]), buckets(names));
            let config =
                SafetyConfig { lora_buckets, image_buckets, allow_private_webhooks: true, ..SafetyConfig::default() };
            let body = json!({
                "generation_id": 1, "style_id": 1, "lora_model_url": "s3://styles/k", "prompt_tags": ["x"], "artist_name": "Ada",
                "webhook_url": "http://localhost", "image_url": image,
            });
            Admission::new(&config, &SizeLimits::default()).admit(Task::parse(&body.to_string())).await
        };
        for (buckets, image) in [(&["uploads"][..], "s3://uploads/k"), (&["other", "*-uploads"], "s3://anna-uploads/k")]
        {
            assert!(admit(buckets, image).await.is_ok(), "{image}");
        }
        for (buckets, image) in [
            (&[][..], "s3://uploads/k"),
            (&[], "s3://styles/k"),
            (&["uploads"], "s3://styles/k"),
            (&["uploads"], "s3://uploads2/k"),
        ] {
            let invalid = admit(buckets, image).await.unwrap_err();
            assert!(invalid.reason.starts_with("`image_url` names a bucket"), "{invalid}");
            assert!(invalid.reason.contains("EASEL_IMAGE_BUCKETS"), "{invalid}");
            assert_eq!((invalid.generation_id, invalid.webhook_url.is_some()), (Some(1), true));
        }
    }

    #[tokio::test]
    async fn own_sizes_are_within_the_operators_limits_and_those_of_ratios_always_are() {
        let usual = SafetyConfig { allow_private_webhooks: true, ..SafetyConfig::default() };
        let small = SizeLimits { min_side: 64, max_side: 256, max_pixels: 64 * 128 };
        let admit = async |change: serde_json::Value| {
            let mut body = json!({
                "generation_id": 1, "style_id": 1, "lora_model_url": "s3://bucket/k", "prompt_tags": ["x"], "artist_name": "Ada",
                "webhook_url": "http://localhost",
            });
            body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            Admission::new(&usual, &small).admit(Task::parse(&body.to_string())).await
        };
        let admitted = admit(json!({ "width": 64, "height": 128 })).await.unwrap();
        assert_eq!((admitted.width, admitted.height), (64, 128));
        let invalid = admit(json!({ "width": 64, "height": 264 })).await.unwrap_err();
        assert!(invalid.reason.starts_with("`height` is 264, must be from 64 to 256"), "{invalid}");
        assert_eq!((invalid.generation_id, invalid.webhook_url.is_some()), (Some(1), true));
        assert!(admit(json!({ "aspect_ratio": "1:2" })).await.is_ok());
        assert!(admit(json!({ "aspect_ratio": "1:2", "width": 512, "height": 1024 })).await.is_err());
    }

    #[tokio::test]
    async fn an_invalid_task_is_reported_to_no_forbidden_host() {
        let admission = Admission::new(&SafetyConfig::default(), &SizeLimits::default());
        for change in [json!({}), json!({ "generation_id": 1, "webhook_url": "http://127.0.0.1:1" })] {
            assert_eq!(admission.admit(Task::parse(&change.to_string())).await.unwrap_err().webhook_url, None);
        }
    }
}
