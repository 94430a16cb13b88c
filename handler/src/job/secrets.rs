//! The secrets of the service. Each is given itself, or by the ARN of a secret in AWS Secrets Manager, which is read once at the start.

use crate::{
    picture::options::{CredentialConfig, Pem},
    secret::{Secret, SecretArn, hidden},
    webhook::WebhookSecrets,
};
use aws_config::SdkConfig;
use clap::Args;
use std::str::FromStr;

const TOKEN_ARN: &str = "--internal-api-token-arn (INTERNAL_API_TOKEN_ARN)";
const SIGNING_ARN: &str = "--webhook-secret-arn (EASEL_WEBHOOK_SECRET_ARN)";
const CERTIFICATE_ARN: &str = "--credential-certificate-arn (EASEL_CREDENTIAL_CERTIFICATE_ARN)";
const KEY_ARN: &str = "--credential-key-arn (EASEL_CREDENTIAL_KEY_ARN)";

/// The secrets.
#[derive(Debug, Clone, Args)]
pub struct SecretsConfig {
    /// The token.
    #[command(flatten)]
    pub token: TokenConfig,
    /// What signs webhooks.
    #[command(flatten)]
    pub signing: SigningConfig,
    /// What signs pictures' files.
    #[command(flatten)]
    pub credential: CredentialConfig,
}

/// The token of the webhooks: one of the two.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
#[command(next_help_heading = "Secrets")]
pub struct TokenConfig {
    /// The token that every webhook carries as `Authorization: Bearer`.
    #[arg(long, env = "INTERNAL_API_TOKEN", hide_env_values = true, value_name = "TOKEN", value_parser = hidden::<Secret>())]
    pub internal_api_token: Option<Secret>,
    /// The secret in AWS Secrets Manager that holds the token; #KEY picks a key of a JSON secret.
    #[arg(long, env = "INTERNAL_API_TOKEN_ARN", value_name = "ARN[#KEY]")]
    pub internal_api_token_arn: Option<SecretArn>,
}

/// What signs webhooks: one of the two, or nothing.
#[derive(Debug, Clone, Default, Args)]
#[group(multiple = false)]
#[command(next_help_heading = "Secrets")]
pub struct SigningConfig {
    /// Sign webhooks as standardwebhooks.com says with this secret, whsec_…, or with several, separated by a space or comma.
    #[arg(long, env = "EASEL_WEBHOOK_SECRET", hide_env_values = true, value_name = "SECRET…", value_parser = hidden::<WebhookSecrets>())]
    pub webhook_secret: Option<WebhookSecrets>,
    /// The secret in AWS Secrets Manager that holds them; #KEY picks a key of a JSON secret.
    #[arg(long, env = "EASEL_WEBHOOK_SECRET_ARN", value_name = "ARN[#KEY]")]
    pub webhook_secret_arn: Option<SecretArn>,
}

/// The secrets, read.
#[derive(Debug, Clone)]
pub struct Secrets {
    /// The token of the webhooks.
    pub token: Secret,
    /// What signs them.
    pub signing: WebhookSecrets,
    /// Certificate and key that sign the pictures' files.
    pub credential: Option<(Pem, Pem)>,
}

/// Why a secret could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{option}: {reason}")]
pub struct SecretError {
    option: &'static str,
    reason: String,
}

impl Secrets {
    /// Takes the secrets from the options, and reads those that are given by ARN.
    ///
    /// # Errors
    /// Secrets Manager does not return one, or its value cannot be used.
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

#[cfg(test)]
mod tests {
    use crate::cli::options::Cli;
    use clap::Parser;

    const ARN: &str = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:easel/token-AbCdEf";

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
