//! Secrets: each is given itself, or by the ARN of a secret in AWS Secrets Manager, never both.

use crate::{
    picture::options::CredentialConfig,
    secret::{Secret, SecretArn, hidden},
    webhook::WebhookSecrets,
};
use clap::Args;

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
