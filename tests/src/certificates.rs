//! Certificates for one run: an authority, and what it signs for a server, for a client and for who signs pictures. Refuses to
//! be trusted by anybody who was not given the authority's file.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// An authority, and where its files are.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one; its certificate is written into `folder`, which is there.
    ///
    /// # Errors
    /// The disk, or no key can be made.
    pub fn new(folder: &Path) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([])?;
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(folder.join("ca.pem"), params.self_signed(&key)?.pem())?;
        Ok(Self { folder: folder.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// The authority's own certificate.
    pub fn file(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    /// Signs a certificate for 127.0.0.1; gives its file and that of its key.
    ///
    /// # Errors
    /// The disk, or no key can be made.
    pub fn sign(&self, name: &str) -> Result<(PathBuf, PathBuf)> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(["127.0.0.1".to_string()])?;
        self.write(name, params, &key)
    }

    /// Signs a certificate that C2PA takes for pictures, valid until the first of January of a year; gives its file and that
    /// of its key.
    ///
    /// # Errors
    /// The disk, or no key can be made.
    pub fn sign_for_pictures(&self, name: &str, year: i32) -> Result<(PathBuf, PathBuf)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([])?;
        params.not_after = date_time_ymd(year, 1, 1);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
        params.use_authority_key_identifier_extension = true;
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        self.write(name, params, &key)
    }

    fn write(&self, name: &str, mut params: CertificateParams, key: &KeyPair) -> Result<(PathBuf, PathBuf)> {
        // One that is named like its authority counts as signed by itself.
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(key, &self.issuer)?;
        let files = (self.folder.join(format!("{name}.pem")), self.folder.join(format!("{name}.key")));
        fs::write(&files.0, certificate.pem())?;
        fs::write(&files.1, key.serialize_pem())?;
        Ok(files)
    }
}
