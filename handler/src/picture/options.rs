//! Options for pictures' files: quality, metadata, and the certificate and key of Content Credentials. The format is chosen by the task.

use crate::secret::SecretArn;
use clap::{ArgAction, Args};
use std::{fmt, fs, io::Read, str::FromStr};
use url::Url;

const JPEG_QUALITY: u8 = 95;
const WEBP_QUALITY: u8 = 90;
/// Limit of a PEM file. A chain of certificates has a few thousand bytes.
const MAX_PEM_BYTES: u64 = 64 << 10;

/// How the file of a picture is written.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Files of pictures")]
pub struct PictureConfig {
    /// Quality of JPEG files, from 1 to 100.
    #[arg(long, env = "EASEL_JPEG_QUALITY", default_value_t = JPEG_QUALITY, value_name = "QUALITY",
          value_parser = clap::value_parser!(u8).range(1..=100))]
    pub jpeg_quality: u8,
    /// Quality of WebP files, from 0 to 100.
    #[arg(long, env = "EASEL_WEBP_QUALITY", default_value_t = WEBP_QUALITY, value_name = "QUALITY",
          value_parser = clap::value_parser!(u8).range(0..=100))]
    pub webp_quality: u8,
    /// Whether files say what was asked for: prompt and negative prompt in EXIF and XMP.
    #[arg(long, env = "EASEL_METADATA_PROMPT", default_value_t = false, value_name = "BOOL", num_args = 0..=1,
          require_equals = true, default_missing_value = "true", action = ArgAction::Set)]
    pub metadata_prompt: bool,
}

impl Default for PictureConfig {
    fn default() -> Self {
        Self { jpeg_quality: JPEG_QUALITY, webp_quality: WEBP_QUALITY, metadata_prompt: false }
    }
}

/// Content Credentials of the service.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Content Credentials")]
pub struct CredentialConfig {
    /// As files.
    #[command(flatten)]
    pub files: CredentialFiles,
    /// The secret in AWS Secrets Manager that holds the certificates; #KEY picks a key of a JSON secret.
    #[arg(
        long,
        env = "EASEL_CREDENTIAL_CERTIFICATE_ARN",
        value_name = "ARN[#KEY]",
        group = "certificate_of_credentials",
        requires = "key_of_credentials"
    )]
    pub credential_certificate_arn: Option<SecretArn>,
    /// The secret in AWS Secrets Manager that holds the key; #KEY picks a key of a JSON secret.
    #[arg(
        long,
        env = "EASEL_CREDENTIAL_KEY_ARN",
        value_name = "ARN[#KEY]",
        group = "key_of_credentials",
        requires = "certificate_of_credentials"
    )]
    pub credential_key_arn: Option<SecretArn>,
}

/// Content Credentials from files.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Content Credentials")]
pub struct CredentialFiles {
    /// Give every picture Content Credentials (C2PA) by this certificate: a PEM file, followed by those that vouch for it.
    #[arg(long, env = "EASEL_CREDENTIAL_CERTIFICATE", value_name = "FILE", value_parser = Pem::read,
          group = "certificate_of_credentials", requires = "key_of_credentials")]
    pub credential_certificate: Option<Pem>,
    /// The certificate's private key, a PEM file: P-256, P-384, Ed25519, or RSA of 2048 bits and more.
    #[arg(long, env = "EASEL_CREDENTIAL_KEY", value_name = "FILE", value_parser = Pem::read,
          group = "key_of_credentials", requires = "certificate_of_credentials")]
    pub credential_key: Option<Pem>,
    /// Have each credential stamped with the time by this RFC 3161 authority [default: none, no network]
    #[arg(long, env = "EASEL_CREDENTIAL_TIME_STAMP_URL", value_name = "URL", value_parser = authority_url,
          requires = "certificate_of_credentials")]
    pub credential_time_stamp_url: Option<Url>,
}

/// Parses the address of a time-stamp authority. No user or password, because errors of failed requests would show them.
fn authority_url(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|error| format!("is no address: {error}"))?;
    let is_plain = matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
    is_plain.then_some(url).ok_or_else(|| "must be an http or https address without user and password".into())
}

/// The text of a PEM file. It may hold a key, so Debug does not show it.
#[derive(Clone)]
pub struct Pem(String);

impl Pem {
    /// The text itself.
    pub fn expose(&self) -> &str {
        &self.0
    }

    fn read(path: &str) -> Result<Self, String> {
        let unreadable = |error| format!("cannot be read: {error}");
        let mut text = String::new();
        let file = fs::File::open(path).map_err(unreadable)?;
        file.take(MAX_PEM_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > MAX_PEM_BYTES {
            return Err(format!("has more than {MAX_PEM_BYTES} bytes, the most for certificates or a key"));
        }
        text.parse()
    }
}

impl FromStr for Pem {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_pem = text.contains("-----BEGIN ");
        is_pem.then(|| Self(text.to_string())).ok_or_else(|| "must hold PEM, with -----BEGIN lines".into())
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<redacted>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::options::Cli;
    use clap::Parser;

    const ARN: &str = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:easel/credential-AbCdEf#key";
    const PEM: &str = "-----BEGIN NONSENSE-----\n";

    #[test]
    fn neither_or_both_are_given_and_each_in_one_way() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.pem");
        fs::write(&file, PEM).unwrap();
        let file = file.to_str().unwrap();
        let parse = |more: &[[&str; 2]]| {
            let least = ["handler", "function", "--model", "m", "--internal-api-token", "t"];
            let more = more.iter().flatten().copied();
            Cli::try_parse_from(least.into_iter().chain(more)).map(drop).map_err(|error| error.to_string())
        };
        let certificate = ["--credential-certificate", file];
        let certificate_arn = ["--credential-certificate-arn", ARN];
        let key = ["--credential-key", file];
        let key_arn = ["--credential-key-arn", ARN];
        let stamp = ["--credential-time-stamp-url", "https://example.org"];
        for good in [
            vec![],
            vec![certificate, key],
            vec![certificate, key_arn],
            vec![certificate_arn, key_arn],
            vec![certificate, key, stamp],
        ] {
            assert_eq!(parse(&good), Ok(()), "{good:?}");
        }
        for bad in [
            vec![certificate],
            vec![certificate_arn],
            vec![key],
            vec![key_arn],
            vec![certificate, certificate_arn, key],
            vec![certificate, key, key_arn],
        ] {
            let error = parse(&bad).unwrap_err();
            assert!(error.contains("--credential-certificate") && error.contains("--credential-key"), "{error}");
        }
        assert!(parse(&[stamp]).is_err_and(|error| error.contains("--credential-certificate")));
    }

    #[test]
    fn stamps_come_from_http_addresses_without_a_password() {
        assert!(authority_url("http://stamps.example.org:8080/tsr").is_ok());
        for bad in
            ["stamps.example.org", "file:///etc/passwd", "https://user:hunter2@example.org", "https://user@example.org"]
        {
            assert!(
                authority_url(bad).is_err_and(|error| error.contains("address") && !error.contains("hunter2")),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_file_that_is_none_is_named_and_its_content_is_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.pem");
        let parse = || Pem::read(file.to_str().unwrap()).map(|pem| format!("{pem:?}"));
        assert!(parse().is_err_and(|error| error.contains("cannot be read")));
        fs::write(&file, "hunter2").unwrap();
        assert!(parse().is_err_and(|error| error.contains("PEM") && !error.contains("hunter2")));
        fs::write(&file, PEM.repeat(4000)).unwrap();
        assert!(parse().is_err_and(|error| error.contains("more than 65536 bytes")));
        fs::write(&file, PEM).unwrap();
        assert_eq!(parse().as_deref(), Ok("<redacted>"));
    }
}
