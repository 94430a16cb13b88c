//! Checks the backend: our secrets for it, and whether its address may be called and answers.

use super::{DoctorConfig, Finding, answer};
use crate::{
    job::secrets::{Secrets, SecretsConfig, SigningConfig},
    picture::Credential,
    webhook::{self, WebhookError},
};
use aws_config::SdkConfig;

pub(super) async fn secrets(config: &SecretsConfig, aws: &SdkConfig) -> Finding {
    let what = "secrets";
    let secrets = match answer(Secrets::obtain(config, aws)).await {
        Ok(Ok(secrets)) => secrets,
        Ok(Err(error)) => {
            return Finding::fail(what, format!("{}; correct the option that it names", service::causes(&error)));
        }
        Err(error) => return Finding::fail(what, error),
    };
    let stamp = config.credential.files.credential_time_stamp_url.as_ref();
    let opened = secrets.credential.as_ref().map(|(certificate, key)| Credential::open(certificate, key, stamp));
    match opened.transpose() {
        Err(error) => Finding::fail(what, format!("{}; pictures cannot be signed by it", service::causes(&error))),
        Ok(credential) => {
            let has = |is_there| if is_there { "there" } else { "none" };
            let SigningConfig { webhook_secret, webhook_secret_arn } = &config.signing;
            let is_signed = webhook_secret.is_some() || webhook_secret_arn.is_some();
            let (signing, credential) = (has(is_signed), has(credential.is_some()));
            Finding::ok(
                what,
                format!("token there, signatures of webhooks {signing}, content credentials {credential}"),
            )
        }
    }
}

pub(super) async fn webhooks(config: &DoctorConfig) -> Vec<Finding> {
    let safety = &config.service.safety;
    let guard = safety.guard();
    let hosts = match (safety.webhook_hosts.len(), safety.allow_private_webhooks) {
        (0, true) => Finding::warn(
            "webhooks.hosts",
            "any, private addresses too: a message may send the token into this network; list the backend by --webhook-hosts \
             (EASEL_WEBHOOK_HOSTS)",
        ),
        (0, false) => Finding::ok(
            "webhooks.hosts",
            "any with a public address; --webhook-hosts (EASEL_WEBHOOK_HOSTS) would list them",
        ),
        (count, _) => Finding::ok("webhooks.hosts", format!("{count} listed")),
    };
    let Some(url) = &config.webhook_url else {
        let advice = "give the backend's address by --webhook-url (EASEL_DOCTOR_WEBHOOK_URL)";
        return vec![hosts, Finding::warn("webhooks.backend", format!("not called; {advice}"))];
    };
    // Only the host: a password may stand before it.
    let what = format!("webhooks.backend {}", url.host_str().unwrap_or_default());
    let called = match answer(webhook::probe(&guard, url)).await {
        Ok(Ok(status)) => Finding::ok(what, format!("answers HEAD with {}", status.as_u16())),
        Ok(Err(error @ WebhookError::Forbidden { .. })) => Finding::fail(what, error.to_string()),
        Ok(Err(error)) => {
            let advice = "check its name, the network to it, and for https its certificate";
            Finding::fail(what, format!("{}; {advice}", service::causes(&error)))
        }
        Err(error) => Finding::fail(what, error),
    };
    vec![hosts, called]
}
