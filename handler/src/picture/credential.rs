//! Content Credentials (C2PA): a statement of what made a picture, bound to the file's bytes and signed with the operator's
//! certificate. Comes last, so that it covers the signature in the pixels and the metadata. Reads no credential, and asks no
//! network unless for a time stamp.

mod certificate;
mod key;
mod manifest;
#[cfg(test)]
mod tests;
mod time_stamp;

use super::Provenance;
use crate::{
    picture::options::{CredentialFiles, Pem},
    task::Format,
};
use c2pa::{Builder, Context, Signer, SigningAlg};
use key::Key;
use serde_json::json;
use std::{
    fmt,
    io::Cursor,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use time_stamp::Authority;
use url::Url;

const CERTIFICATE: &str = "--credential-certificate (EASEL_CREDENTIAL_CERTIFICATE)";
const KEY: &str = "--credential-key (EASEL_CREDENTIAL_KEY)";
/// Bytes that the signature and its headers take beside certificates and time stamp.
const COSE: usize = 1024;

/// Why pictures cannot be given credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The certificate is not one that C2PA takes, or not that of the key.
    #[error("{CERTIFICATE}: {0}")]
    Certificate(String),
    /// The key cannot be used.
    #[error("{KEY}: {0}")]
    Key(String),
    /// A picture was not signed.
    #[error("Content Credentials: {0}")]
    Signing(String),
}

/// Signs pictures' files.
pub struct Credential {
    context: Arc<Context>,
    signer: Pen,
}

/// Key and certificates, as the library takes them.
struct Pen {
    key: Key,
    chain: Vec<Vec<u8>>,
    authority: Option<Authority>,
}

impl Credential {
    /// Takes certificate and key, and signs a first picture, which is thrown away: what cannot sign is known at the start.
    ///
    /// # Errors
    /// Certificate or key cannot be used; says which and why.
    pub fn open(certificate: &Pem, key: &Pem, time_stamp: Option<&Url>) -> Result<Self, CredentialError> {
        let key = Key::parse(key.expose()).map_err(|reason| CredentialError::Key(reason.into()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
        let chain = certificate::chain(certificate.expose(), &key, now).map_err(CredentialError::Certificate)?;
        let settings = json!({
            "builder": { "thumbnail": { "enabled": false } },
            "verify": { "remote_manifest_fetch": false, "ocsp_fetch": false },
        });
        let context = Context::new().with_settings(settings).map_err(signing)?.into_shared();
        let mut credential = Self { context, signer: Pen { key, chain, authority: None } };
        credential.try_out()?;
        credential.signer.authority = time_stamp.map(|url| Authority::new(url.clone()));
        Ok(credential)
    }

    /// As [`Credential::open`], if there are files.
    ///
    /// # Errors
    /// As there.
    pub fn of_files(files: &CredentialFiles) -> Result<Option<Self>, CredentialError> {
        let pair = files.credential_certificate.as_ref().zip(files.credential_key.as_ref());
        let open = |(certificate, key)| Self::open(certificate, key, files.credential_time_stamp_url.as_ref());
        pair.map(open).transpose()
    }

    /// Returns the file with a credential. Two of one file differ: each has a random name.
    ///
    /// # Errors
    /// The certificate has expired meanwhile, or no time stamp can be had; none is the task's fault.
    pub fn sign(&self, file: Vec<u8>, format: Format, provenance: &Provenance) -> Result<Vec<u8>, CredentialError> {
        self.write(file, format, manifest::definition(provenance, format)).map_err(signing)
    }

    fn write(&self, file: Vec<u8>, format: Format, definition: serde_json::Value) -> c2pa::Result<Vec<u8>> {
        let mut builder = Builder::from_shared_context(&self.context).with_definition(definition)?;
        let mut signed = Cursor::new(Vec::with_capacity(file.len() + 2 * self.signer.reserve_size()));
        builder.sign(&self.signer, format.content_type(), &mut Cursor::new(file), &mut signed)?;
        Ok(signed.into_inner())
    }

    fn try_out(&self) -> Result<(), CredentialError> {
        let refused =
            |error: &dyn fmt::Display| CredentialError::Certificate(format!("C2PA does not take it: {error}"));
        let mut dot = Cursor::new(Vec::new());
        image::RgbImage::new(1, 1).write_to(&mut dot, image::ImageFormat::Png).map_err(|error| refused(&error))?;
        self.write(dot.into_inner(), Format::Png, json!({})).map(drop).map_err(|error| refused(&error))
    }
}

fn signing(error: c2pa::Error) -> CredentialError {
    CredentialError::Signing(error.to_string())
}

impl Signer for Pen {
    fn sign(&self, data: &[u8]) -> c2pa::Result<Vec<u8>> {
        self.key.sign(data).map_err(|error| c2pa::Error::OtherError(Box::new(error)))
    }

    fn alg(&self) -> SigningAlg {
        self.key.algorithm()
    }

    fn certs(&self) -> c2pa::Result<Vec<Vec<u8>>> {
        Ok(self.chain.clone())
    }

    fn reserve_size(&self) -> usize {
        let stamp = self.authority.as_ref().map_or(0, |_| time_stamp::MOST_BYTES);
        COSE + self.chain.iter().map(Vec::len).sum::<usize>() + stamp
    }

    fn send_timestamp_request(&self, message: &[u8]) -> Option<c2pa::Result<Vec<u8>>> {
        self.authority.as_ref().map(|authority| authority.stamp(message))
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("algorithm", &self.signer.alg()).finish_non_exhaustive()
    }
}
