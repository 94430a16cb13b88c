//! TLS in front of a server that has none.

use anyhow::Result;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use std::{net::SocketAddr, path::Path, sync::Arc};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

/// The front. It ends when this is dropped.
#[derive(Debug)]
pub struct TlsFront {
    addr: SocketAddr,
    server: JoinHandle<()>,
}

impl TlsFront {
    /// Starts it in front of `target`, with a certificate and its key as PEM files.
    ///
    /// # Errors
    /// No free port, or files that hold neither.
    pub async fn start(target: SocketAddr, certificate: &Path, key: &Path) -> Result<Self> {
        let certificates = CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
        let config =
            ServerConfig::builder_with_provider(Arc::new(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider()))
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
                    // A client that does not trust us goes away.
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
