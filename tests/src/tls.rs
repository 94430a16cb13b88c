//! Certificates of a test's own authority, and TLS in front of a server that has none.

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

/// A certificate authority and its folder.
#[derive(Debug)]
pub struct Authority {
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes one and writes its certificate into `folder`, which must exist.
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

    /// Signs a certificate for 127.0.0.1; gives its file and its key's.
    ///
    /// # Errors
    /// The disk, or no key can be made.
    pub fn sign(&self, name: &str) -> Result<(PathBuf, PathBuf)> {
        let key = KeyPair::generate()?;
        let params = CertificateParams::new(["127.0.0.1".to_string()])?;
        self.write(name, params, &key)
    }

    /// Signs a certificate that C2PA accepts for pictures, valid until January 1 of `year`; gives its file and its key's.
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
        // With the authority's name it would count as self-signed.
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(key, &self.issuer)?;
        let files = (self.folder.join(format!("{name}.pem")), self.folder.join(format!("{name}.key")));
        fs::write(&files.0, certificate.pem())?;
        fs::write(&files.1, key.serialize_pem())?;
        Ok(files)
    }
}

/// The TLS server. It ends when this is dropped.
#[derive(Debug)]
pub struct TlsFront {
    addr: SocketAddr,
    server: JoinHandle<()>,
}

impl TlsFront {
    /// Starts it in front of `target`, with a certificate and its key as PEM files.
    ///
    /// # Errors
    /// No free port, or files without certificate or key.
    pub async fn start(target: SocketAddr, certificate: &Path, key: &Path) -> Result<Self> {
        let certificates = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
        let config =
            ServerConfig::builder_with_provider(Arc::new(tokio_rustls::rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_no_client_auth()
                .with_single_cert(certificates, PrivateKeyDer::from_pem_file(key)?)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let server = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    // The handshake fails for a client that does not trust us.
                    let mut socket = acceptor.accept(socket).await?;
                    let mut target = TcpStream::connect(target).await?;
                    copy_bidirectional(&mut socket, &mut target).await
                });
            }
        });
        Ok(Self { addr, server })
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("https://{}", self.addr)
    }
}

impl Drop for TlsFront {
    fn drop(&mut self) {
        self.server.abort();
    }
}
