//! SQS and S3 stand-in (moto), and clients for it with made-up credentials.

use crate::{
    paths::{RunDir, tool},
    ports,
    process::{Process, Spec},
    wait,
};
use anyhow::{Context, Result};
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::{primitives::ByteStream, types::ObjectCannedAcl};
use aws_sdk_sqs::{
    config::Credentials,
    types::{Message, MessageSystemAttributeName, QueueAttributeName},
};
use serde_json::json;
use std::time::Duration;

/// The bucket for pictures.
pub const IMAGES: &str = "stylelicense-images";
/// The bucket for LoRAs.
pub const MODELS: &str = "stylelicense-models";
/// The bucket for messages over SQS's limit.
pub const PAYLOADS: &str = "stylelicense-payloads";
/// The region of its queues and buckets.
pub const REGION: &str = "us-east-1";
const START: Duration = Duration::from_secs(120);

/// The stand-in and its clients.
#[derive(Debug)]
pub struct Aws {
    process: Process,
    endpoint: String,
    config: SdkConfig,
    /// SQS client.
    pub sqs: aws_sdk_sqs::Client,
    /// S3 client.
    pub s3: aws_sdk_s3::Client,
}

/// A queue and its dead-letter queue.
#[derive(Debug, Clone)]
pub struct Queue {
    /// The queue's address.
    pub url: String,
    /// Its dead-letter queue's address.
    pub dead_letter_url: String,
    /// Receives after which a message moves to the dead-letter queue.
    pub max_receive_count: u32,
}

impl Queue {
    /// Its ARN.
    pub fn arn(&self) -> String {
        format!("arn:aws:sqs:us-east-1:123456789012:{}", self.url.rsplit('/').next().unwrap_or_default())
    }
}

impl Aws {
    /// Starts the stand-in and makes the buckets.
    ///
    /// # Errors
    /// It is not installed or does not come up.
    pub async fn start(run: &RunDir) -> Result<Self> {
        let port = ports::free()?.to_string();
        let endpoint = format!("http://127.0.0.1:{port}");
        let process = Spec::new("moto", tool("moto_server")?)
            .args(["-H", "127.0.0.1", "-p", &port])
            .env("PYTHONUNBUFFERED", "1")
            .start(run)?;
        let http = crate::http_client()?;
        let status = format!("{endpoint}/moto-api/");
        process.ready(START, async || http.get(&status).send().await.is_ok()).await?;
        let config = aws_config::defaults(BehaviorVersion::latest())
            .http_client(settings::aws_http_client())
            .region(Region::new(REGION))
            .endpoint_url(&endpoint)
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .load()
            .await;
        let s3 = aws_sdk_s3::config::Builder::from(&config).force_path_style(true).build();
        let sqs = aws_sdk_sqs::Client::new(&config);
        let aws = Self { process, endpoint, config, sqs, s3: aws_sdk_s3::Client::from_conf(s3) };
        for bucket in [IMAGES, MODELS, PAYLOADS] {
            aws.s3.create_bucket().bucket(bucket).send().await.context("create bucket")?;
        }
        Ok(aws)
    }

    /// Its URL, for SQS and S3.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Settings of the clients.
    pub fn config(&self) -> &SdkConfig {
        &self.config
    }

    /// The variables for processes that use it.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        vec![
            ("AWS_ENDPOINT_URL", self.endpoint.clone()),
            ("AWS_REGION", REGION.into()),
            ("AWS_ACCESS_KEY_ID", "test".into()),
            ("AWS_SECRET_ACCESS_KEY", "test".into()),
            ("AWS_EC2_METADATA_DISABLED", "true".into()),
            ("AWS_CONFIG_FILE", "/dev/null".into()),
            ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null".into()),
        ]
    }

    /// Creates a queue with a dead-letter queue.
    ///
    /// # Errors
    /// SQS answers with an error.
    pub async fn queue(&self, name: &str, visibility: Duration, max_receive_count: u32) -> Result<Queue> {
        let dead_letter_url = self.create_queue(&format!("{name}-dead"), &[]).await?;
        let arn = QueueAttributeName::QueueArn;
        let answer =
            self.sqs.get_queue_attributes().queue_url(&dead_letter_url).attribute_names(arn.clone()).send().await?;
        let arn = answer.attributes().and_then(|map| map.get(&arn)).context("the queue has no ARN")?;
        let policy = json!({ "deadLetterTargetArn": arn, "maxReceiveCount": max_receive_count }).to_string();
        let visibility = visibility.as_secs().to_string();
        let attributes =
            [(QueueAttributeName::RedrivePolicy, policy), (QueueAttributeName::VisibilityTimeout, visibility)];
        let url = self.create_queue(name, &attributes).await?;
        Ok(Queue { url, dead_letter_url, max_receive_count })
    }

    /// Creates a FIFO queue without a dead-letter queue; gives its address. The name must end with `.fifo`.
    ///
    /// # Errors
    /// SQS answers with an error.
    pub async fn fifo_queue(&self, name: &str) -> Result<String> {
        self.create_queue(name, &[(QueueAttributeName::FifoQueue, "true".to_string())]).await
    }

    async fn create_queue(&self, name: &str, attributes: &[(QueueAttributeName, String)]) -> Result<String> {
        let mut request = self.sqs.create_queue().queue_name(name);
        for (key, value) in attributes {
            request = request.attributes(key.clone(), value);
        }
        request.send().await.context("create queue")?.queue_url.context("the queue has no URL")
    }

    /// Puts a message into a queue; gives its id.
    ///
    /// # Errors
    /// SQS answers with an error.
    pub async fn send(&self, url: &str, body: &str) -> Result<String> {
        let sent = self.sqs.send_message().queue_url(url).message_body(body).send().await?;
        sent.message_id.context("SQS gave no message id")
    }

    /// Receives up to ten messages, which stay in flight.
    ///
    /// # Errors
    /// SQS answers with an error.
    pub async fn receive(&self, url: &str, wait_seconds: i32, most: i32) -> Result<Vec<Message>> {
        let request = self.sqs.receive_message().queue_url(url).max_number_of_messages(most);
        let request = request.wait_time_seconds(wait_seconds);
        let request = request.message_system_attribute_names(MessageSystemAttributeName::All);
        Ok(request.message_attribute_names("All").send().await?.messages.unwrap_or_default())
    }

    /// Receives and deletes until the queue is empty; gives the bodies.
    ///
    /// # Errors
    /// SQS answers with an error.
    pub async fn empty(&self, url: &str) -> Result<Vec<String>> {
        let mut bodies = Vec::new();
        loop {
            let messages = self.receive(url, 0, 10).await?;
            if messages.is_empty() {
                return Ok(bodies);
            }
            for message in messages {
                let handle = message.receipt_handle.context("no receipt handle")?;
                self.sqs.delete_message().queue_url(url).receipt_handle(handle).send().await?;
                bodies.push(message.body.unwrap_or_default());
            }
        }
    }

    /// How many messages are visible, and how many in flight.
    ///
    /// # Errors
    /// SQS answers with an error.
    pub async fn depth(&self, url: &str) -> Result<(u32, u32)> {
        let (visible, hidden) = (
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
        );
        let request = self.sqs.get_queue_attributes().queue_url(url);
        let answer = request.attribute_names(visible.clone()).attribute_names(hidden.clone()).send().await?;
        let attributes = answer.attributes.context("no attributes")?;
        let count = |name| attributes.get(name).and_then(|text| text.parse().ok()).context("no count");
        Ok((count(&visible)?, count(&hidden)?))
    }

    /// Waits until a queue has `wanted` messages: visible and in flight.
    ///
    /// # Errors
    /// Not in time.
    pub async fn has_depth(&self, url: &str, wanted: (u32, u32), within: Duration) -> Result<()> {
        let what = format!("queue {url} with {wanted:?} messages (visible, in flight)");
        wait::until(&what, within, async || (self.depth(url).await.ok()? == wanted).then_some(())).await
    }

    /// Stores an object; gives its s3 URL.
    ///
    /// # Errors
    /// S3 answers with an error.
    pub async fn put(&self, bucket: &str, key: &str, content: Vec<u8>) -> Result<String> {
        let body = ByteStream::from(content);
        self.s3.put_object().bucket(bucket).key(key).body(body).acl(ObjectCannedAcl::Private).send().await?;
        Ok(format!("s3://{bucket}/{key}"))
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// S3 does not answer.
    pub async fn delete(&self, bucket: &str, key: &str) -> Result<()> {
        self.s3.delete_object().bucket(bucket).key(key).send().await?;
        Ok(())
    }

    /// The entity tag of an object, if there is one.
    pub async fn etag(&self, bucket: &str, key: &str) -> Option<String> {
        self.s3.head_object().bucket(bucket).key(key).send().await.ok()?.e_tag
    }
}
