//! Secrets at the start: taken from the configuration, or read from AWS Secrets Manager once. The process ends without one that was asked
//! for, and shows none.

use crate::{
    config::{Pem, Secret, SecretsConfig},
    webhook::WebhookSecrets,
};
use aws_config::{Region, SdkConfig, timeout::TimeoutConfig};
use aws_errors::describe;
use aws_sdk_secretsmanager::{Client, config::Builder, error::ProvideErrorMetadata};
use serde_json::Value;
use std::{str::FromStr, time::Duration};

const TOKEN_ARN: &str = "--internal-api-token-arn (INTERNAL_API_TOKEN_ARN)";
const SIGNING_ARN: &str = "--webhook-secret-arn (EASEL_WEBHOOK_SECRET_ARN)";
const CERTIFICATE_ARN: &str = "--credential-certificate-arn (EASEL_CREDENTIAL_CERTIFICATE_ARN)";
const KEY_ARN: &str = "--credential-key-arn (EASEL_CREDENTIAL_KEY_ARN)";

/// What the service must not show.
#[derive(Debug, Clone)]
pub struct Secrets {
    /// The token of the webhooks.
    pub token: Secret,
    /// What signs them.
    pub signing: WebhookSecrets,
    /// Certificate and key that sign pictures' files.
    pub credential: Option<(Pem, Pem)>,
}

/// Why a secret could not be had.
#[derive(Debug, thiserror::Error)]
#[error("{option}: {reason}")]
pub struct SecretError {
    option: &'static str,
    reason: String,
}

/// The ARN of a secret, and a key if it holds JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretArn {
    arn: String,
    region: String,
    key: Option<String>,
}

impl Secrets {
    /// Reads what is given by ARN; asks for nothing else.
    ///
    /// # Errors
    /// Secrets Manager does not give it, or what it gives cannot be used.
    pub async fn obtain(config: &SecretsConfig, aws: &SdkConfig) -> Result<Self, SecretError> {
        let (token, signing, credential) = (&config.token, &config.signing, &config.credential);
        let files = &credential.files;
        let token = one(TOKEN_ARN, &token.internal_api_token, &token.internal_api_token_arn, aws).await?;
        let signing = one(SIGNING_ARN, &signing.webhook_secret, &signing.webhook_secret_arn, aws).await?;
        let certificate =
            one(CERTIFICATE_ARN, &files.credential_certificate, &credential.credential_certificate_arn, aws).await?;
        let key = one(KEY_ARN, &files.credential_key, &credential.credential_key_arn, aws).await?;
        let missing = || SecretError { option: TOKEN_ARN, reason: "neither this nor the token itself is given".into() };
        Ok(Self {
            token: token.ok_or_else(missing)?,
            signing: signing.unwrap_or_default(),
            credential: certificate.zip(key),
        })
    }
}

async fn one<T: Clone + FromStr<Err = String>>(
    option: &'static str,
    given: &Option<T>,
    arn: &Option<SecretArn>,
    aws: &SdkConfig,
) -> Result<Option<T>, SecretError> {
    let Some(arn) = arn else { return Ok(given.clone()) };
    let value = arn.read(aws).await.and_then(|text| text.parse().map_err(|error| format!("the secret {error}")));
    value.map(Some).map_err(|reason| SecretError { option, reason })
}

impl SecretArn {
    async fn read(&self, aws: &SdkConfig) -> Result<String, String> {
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
    use crate::config::Cli;
    use clap::Parser;

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

    #[test]
    fn a_secret_comes_from_one_place_only() {
        let parse = |more: &[&str]| {
            let least = ["handler", "function", "--model", "m"];
            Cli::try_parse_from(least.iter().chain(more)).map(drop).map_err(|error| error.to_string())
        };
        for (option, value) in [("--internal-api-token", "not usable"), ("--webhook-secret", "unusable")] {
            let error = parse(&["--internal-api-token-arn", ARN, option, value]).unwrap_err();
            assert!(error.contains(option) && error.contains("must be") && !error.contains("usable"), "{error}");
        }
        let (token, token_arn) = (["--internal-api-token", "t"], ["--internal-api-token-arn", ARN]);
        let secret = ["--webhook-secret", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "--webhook-secret-arn", ARN];
        assert_eq!((parse(&token), parse(&token_arn)), (Ok(()), Ok(())));
        for (arguments, names) in [
            (vec![], ["--internal-api-token <", "--internal-api-token-arn <"]),
            ([token, token_arn].concat(), ["--internal-api-token <", "--internal-api-token-arn <"]),
            ([&token[..], &secret].concat(), ["--webhook-secret <", "--webhook-secret-arn <"]),
        ] {
            let error = parse(&arguments).unwrap_err();
            assert!(names.iter().all(|name| error.contains(name)) && !error.contains("whsec_M"), "{error}");
        }
    }
}
