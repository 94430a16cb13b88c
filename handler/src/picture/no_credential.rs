//! Stands for `credential` in a build without the feature `credentials`: every certificate is an error.

use super::provenance::Provenance;
use crate::{
    picture::options::{CredentialFiles, Pem},
    task::Format,
};
use url::Url;

/// Why pictures cannot be given credentials.
#[derive(Debug, thiserror::Error)]
#[error(
    "--credential-certificate (EASEL_CREDENTIAL_CERTIFICATE): this build makes no Content Credentials; build the handler with the \
     feature credentials, which is on by default"
)]
pub struct CredentialError;

/// Signs the files of pictures. There is none in this build.
#[derive(Debug)]
pub enum Credential {}

impl Credential {
    /// # Errors
    /// Always.
    pub fn open(_: &Pem, _: &Pem, _: Option<&Url>) -> Result<Self, CredentialError> {
        Err(CredentialError)
    }

    /// `None` without files.
    ///
    /// # Errors
    /// There are files.
    pub fn of_files(files: &CredentialFiles) -> Result<Option<Self>, CredentialError> {
        match &files.credential_certificate {
            Some(_) => Err(CredentialError),
            None => Ok(None),
        }
    }

    /// Nobody has one to call this on.
    ///
    /// # Errors
    /// None.
    pub fn sign(&self, _: Vec<u8>, _: Format, _: &Provenance) -> Result<Vec<u8>, CredentialError> {
        match *self {}
    }
}
