//! Secrets: a text that no log shows, and one in AWS Secrets Manager.

use aws_config::{Region, SdkConfig, timeout::TimeoutConfig};
use aws_errors::describe;
use aws_sdk_secretsmanager::{Client, config::Builder, error::ProvideErrorMetadata};
use clap::{
    Arg, Command,
    builder::TypedValueParser,
    error::{ContextKind, ContextValue, ErrorKind},
};
use serde_json::Value;
use std::{ffi::OsStr, fmt, marker::PhantomData, str::FromStr, time::Duration};

/// A secret text. `Debug` does not show it.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The text itself, for where it is used.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usable = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        usable.then(|| Self(text.to_string())).ok_or_else(|| "must be visible ASCII characters, at least one".into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

/// Parses a secret option. clap's own error message would show the value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hidden<T>(PhantomData<T>);

/// A parser whose errors do not show the value.
pub(crate) fn hidden<T>() -> Hidden<T> {
    Hidden(PhantomData)
}

impl<T: FromStr<Err = String> + Clone + Send + Sync + 'static> TypedValueParser for Hidden<T> {
    type Value = T;

    fn parse_ref(&self, command: &Command, argument: Option<&Arg>, value: &OsStr) -> Result<T, clap::Error> {
        let parsed = value.to_str().ok_or_else(|| "must be UTF-8".to_string()).and_then(str::parse);
        parsed.map_err(|reason| {
            let name = argument.map(ToString::to_string).unwrap_or_default();
            let text = format!("the value of {name} {reason}\n");
            let mut error = clap::Error::raw(ErrorKind::InvalidValue, text).with_cmd(command);
            error.insert(ContextKind::InvalidArg, ContextValue::String(name));
            error
        })
    }
}

/// The ARN of a secret in AWS Secrets Manager; with a key, if the secret is JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecretArn {
    arn: String,
    region: String,
    key: Option<String>,
}

impl SecretArn {
    /// Reads the secret, in the region of its ARN.
    ///
    /// # Errors
    /// Why it cannot be read, and what helps; never its value.
    pub(crate) async fn read(&self, aws: &SdkConfig) -> Result<String, String> {
        let timeouts = TimeoutConfig::builder()
            .operation_attempt_timeout(Duration::from_secs(5))
            .operation_timeout(Duration::from_secs(20))
            .build();
        // It may be in another region than the queue.
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

    /// The text itself, or the value of the key in its JSON.
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
    fn an_arn_may_name_a_key() {
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
    fn a_secret_does_not_show() {
        let secret: Secret = "hunter2".parse().unwrap();
        assert_eq!(format!("{secret:?}"), "<redacted>");
        assert!("two words".parse::<Secret>().is_err());
    }
}
