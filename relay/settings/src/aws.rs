//! The configuration of the AWS clients: the SDK's own, and the certificates of `AWS_CA_BUNDLE`, which the SDK ignores.

use crate::BadVariable;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_smithy_http_client::{
    Builder, Connector,
    proxy::ProxyConfig,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::client::http::SharedHttpClient;
use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::RootCertStore;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use std::{env, fs, path::Path};

const CA_BUNDLE: &str = "AWS_CA_BUNDLE";

/// The configuration for all AWS clients of a process. The only requests made are for finding the region.
///
/// # Errors `AWS_CA_BUNDLE` names no usable file with certificates.
pub async fn sdk_config() -> Result<SdkConfig, BadVariable> {
    let trusted = match env::var_os(CA_BUNDLE).filter(|path| !path.is_empty()) {
        Some(path) => trust(Path::new(&path))?,
        None => TlsContext::default(),
    };
    Ok(aws_config::defaults(BehaviorVersion::latest()).http_client(client(trusted)).load().await)
}

/// The HTTP client of AWS clients that are made without [`sdk_config`].
pub fn aws_http_client() -> SharedHttpClient {
    client(TlsContext::default())
}

/// As in the AWS CLI, the file's certificates replace the system's.
fn trust(path: &Path) -> Result<TlsContext, BadVariable> {
    let bad = |problem: String| BadVariable { name: CA_BUNDLE, problem };
    let pem = fs::read(path).map_err(|error| bad(format!("{}: cannot be read: {error}", path.display())))?;
    let mut store = TrustStore::empty();
    let mut count = 0;
    // One by one: the client panics at a certificate that it cannot use, and system bundles contain such.
    for certificate in CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok) {
        if RootCertStore::empty().add(certificate.clone()).is_ok() {
            let text = STANDARD.encode(&certificate);
            store.add_pem_certificate(format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n"));
            count += 1;
        }
    }
    if count == 0 {
        return Err(bad(format!("{}: holds no PEM certificate of an authority", path.display())));
    }
    TlsContext::builder().with_trust_store(store).build().map_err(|_| bad("no TLS can be set up".into()))
}

/// The SDK's own client with other trusted certificates. The builder's simpler functions ignore proxies.
fn client(trusted: TlsContext) -> SharedHttpClient {
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut connector =
            Connector::builder().tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(trusted.clone());
        connector.set_connector_settings(settings.cloned());
        connector.set_sleep_impl(components.and_then(|components| components.sleep_impl()));
        connector.set_proxy_config(Some(ProxyConfig::from_env()));
        connector.build()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_without_a_usable_certificate_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let reported = || trust(&file).map(drop).map_err(|error| error.to_string());
        assert!(
            reported().is_err_and(|error| error.starts_with("AWS_CA_BUNDLE: ") && error.contains("cannot be read"))
        );
        let nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for empty in ["", "hidden", nonsense] {
            fs::write(&file, empty).unwrap();
            assert!(
                reported().is_err_and(|error| error.contains("holds no PEM certificate") && !error.contains("hidden"))
            );
        }
        let good = rcgen::generate_simple_self_signed(["example.org".to_string()]).unwrap().cert.pem();
        fs::write(&file, format!("# a comment\n{nonsense}{good}")).unwrap();
        assert_eq!(reported(), Ok(()));
        // Building the connector parses the certificates again, and would panic.
        drop(format!("{:?}", client(trust(&file).unwrap())));
    }
}
