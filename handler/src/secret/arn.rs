//! A secret in AWS Secrets Manager, by its ARN.

use aws_config::{Region, SdkConfig, timeout::TimeoutConfig};
use aws_errors::describe;
use aws_sdk_secretsmanager::{Client, config::Builder, error::ProvideErrorMetadata};
use serde_json::Value;
use std::{str::FromStr, time::Duration};

/// The ARN of a secret, and a key if it holds JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretArn {
    arn: String,
    region: String,
    key: Option<String>,
}

impl SecretArn {
    /// Reads it in the region that it names.
    ///
    /// # Errors
    /// Why it cannot be had, and what helps; never what it holds.
    pub(crate) async fn read(&self, aws: &SdkConfig) -> Result<String, String> {
        let timeouts = TimeoutConfig::builder()
            .operation_attempt_timeout(Duration::from_secs(5))
            .operation_timeout(Duration::from_secs(20))
            .build();
        // The secret may lie in another region than the queue.
        let config = Builder::from(aws).region(Region::new(self.region.clone())).timeout_config(timeouts).build();
        let answer = Client::from_conf(config).get_secret_value().secret_id(&self.arn).send().await;
        let answer = answer.map_err(|error| match error.code() {
            Some("AccessDeniedException") => {
                "may not be read: this role needs secretsmanager:GetSecretValue, and kms:Decrypt for a key of one's own"
                    .to_string()
            }
            Some("ResourceNotFoundException") => "does not exist, or has no value yet".to_string(),
            Some(_) => format!("AWS Secrets Manager: {}", describe(&error)),
            None => format!("AWS Secrets Manager: {}; check the network and the endpoint", describe(&error)),
        })?;
        self.pick(answer.secret_string().ok_or("the secret holds bytes, must hold text")?)
    }

    /// The secret itself, or what its JSON has under the key.
    fn pick(&self, text: &str) -> Result<String, String> {
        let Some(key) = &self.key else { return Ok(text.to_string()) };
        let value: Value = serde_json::from_str(text).map_err(|_| "the secret is no JSON, must be an object")?;
        let value = value.get(key).and_then(Value::as_str);
        value.map(str::to_string).ok_or_else(|| "the secret's JSON has no string under the key after #".to_string())
    }
}

impl FromStr for SecretArn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (arn, key) = text.split_once('#').map_or((text, None), |(arn, key)| (arn, Some(key.to_string())));
        let parts: Vec<&str> = arn.splitn(7, ':').collect();
        match parts.as_slice() {
            ["arn", _, "secretsmanager", region, _, "secret", name]
                if !region.is_empty() && !name.is_empty() && key.as_deref() != Some("") =>
            {
                Ok(Self { arn: arn.to_string(), region: region.to_string(), key })
            }
            _ => Err("must be arn:aws:secretsmanager:REGION:ACCOUNT:secret:NAME, with #KEY or without".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:easel/token-AbCdEf";

    #[test]
    fn an_arn_may_pick_a_key() {
        let arn: SecretArn = format!("{ARN}#token").parse().unwrap();
        assert_eq!((arn.arn.as_str(), arn.region.as_str()), (ARN, "eu-central-1"));
        assert_eq!(arn.pick(r#"{"token":"t","n":1}"#), Ok("t".to_string()));
        for text in ["t", "{}", r#"{"token":1}"#, r#""token""#] {
            assert!(arn.pick(text).is_err_and(|error| !error.contains('1')), "{text}");
        }
        assert_eq!(ARN.parse::<SecretArn>().unwrap().pick("{}"), Ok("{}".to_string()));
        for text in ["", "token", "arn:aws:s3:::bucket", "arn:aws:secretsmanager:eu:1:secret:", &format!("{ARN}#")] {
            assert!(text.parse::<SecretArn>().is_err(), "{text}");
        }
    }
}
