//! The certificate and the key of Content Credentials: each as a file, or by the ARN of a secret, never both. Files are read with
//! the command line, so that a missing one is a fault of the command line. Whether the two fit is not judged here.

use crate::secret::SecretArn;
use clap::Args;
use std::{fmt, fs, io::Read, str::FromStr};
use url::Url;

/// A chain of certificates has some thousand.
const MOST_PEM_BYTES: u64 = 64 << 10;

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
    #[arg(long, env = "EASEL_CREDENTIAL_TIME_STAMP_URL", value_name = "URL", value_parser = authority,
          requires = "certificate_of_credentials")]
    pub credential_time_stamp_url: Option<Url>,
}

/// What can be asked for a stamp. A password would stand in the error of every stamp that cannot be had.
fn authority(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|error| format!("is no address: {error}"))?;
    let is_plain = matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none();
    is_plain.then_some(url).ok_or_else(|| "must be an http or https address without user and password".into())
}

/// The text of a PEM file, which no log and no Debug shows: it may hold a key.
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
        file.take(MOST_PEM_BYTES + 1).read_to_string(&mut text).map_err(unreadable)?;
        if text.len() as u64 > MOST_PEM_BYTES {
            return Err(format!("has more than {MOST_PEM_BYTES} bytes, the most for certificates or a key"));
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
        assert!(authority("http://stamps.example.org:8080/tsr").is_ok());
        for bad in
            ["stamps.example.org", "file:///etc/passwd", "https://user:hunter2@example.org", "https://user@example.org"]
        {
            assert!(
                authority(bad).is_err_and(|error| error.contains("address") && !error.contains("hunter2")),
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
