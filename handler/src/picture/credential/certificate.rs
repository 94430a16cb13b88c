//! The certificate and the key that sign credentials, and what C2PA requires of them (specification 2.2, section 14.5.1), checked before the
//! first picture. Whether the issuer is trusted is for the readers of the picture to decide.

use c2pa::SigningAlg;
use p256::pkcs8::DecodePrivateKey;
use p384::ecdsa::signature::Signer;
use ring::{
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair, RSA_PSS_SHA256, RsaKeyPair},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use x509_parser::{
    certificate::X509Certificate,
    error::X509Error,
    extensions::{ExtendedKeyUsage, ParsedExtension},
    time::ASN1Time,
    x509::X509Version,
};

/// Extended key usages that C2PA accepts beside emailProtection: documentSigning, and C2PA's own.
const EXTENDED_KEY_USAGES: [&str; 2] = ["1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1"];

/// Reads the certificates of a PEM file, the signing one first, and checks them.
pub(super) fn chain(pem: &str, key: &SigningKey, now: i64) -> Result<Vec<Vec<u8>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let read = read.map_err(|_| "is no PEM")?;
    let parsed = read.iter().enumerate().map(|(index, der)| match x509_parser::parse_x509_certificate(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(_) => Err(format!("certificate {} is no X.509", index + 1)),
    });
    let chain = parsed.collect::<Result<Vec<_>, _>>()?;
    let Some(own) = chain.first() else { return Err("holds no certificate".into()) };
    if own.public_key().subject_public_key.data.as_ref() != key.public().as_slice() {
        let first = if chain.len() > 1 { "the first certificate" } else { "the certificate" };
        return Err(format!("{first} belongs to another key than that of {}", super::KEY));
    }
    let now = ASN1Time::from_timestamp(now).map_err(|_| "the clock shows no time that X.509 knows")?;
    for (index, certificate) in chain.iter().enumerate() {
        let named = |reason| format!("certificate {} {reason}", index + 1);
        check_validity(certificate, now).map_err(named)?;
    }
    check_signing_certificate(own)?;
    for (index, pair) in chain.windows(2).enumerate() {
        let [certificate, issuer] = pair else { continue };
        let fits = certificate.issuer() == issuer.subject();
        match certificate.verify_signature(Some(issuer.public_key())) {
            Ok(()) if fits => (),
            // The signature of an algorithm that this library does not know may be valid.
            Err(X509Error::SignatureUnsupportedAlgorithm) if fits => (),
            _ => return Err(format!("certificate {} was not issued by certificate {}", index + 1, index + 2)),
        }
    }
    Ok(read.iter().map(|der| der.to_vec()).collect())
}

fn check_validity(certificate: &X509Certificate<'_>, now: ASN1Time) -> Result<(), String> {
    let validity = certificate.validity();
    if now < validity.not_before {
        return Err(format!("is not valid before {}", validity.not_before));
    }
    if now > validity.not_after {
        return Err(format!("has expired: it was valid until {}", validity.not_after));
    }
    Ok(())
}

/// The rules that apply to the signing certificate only.
fn check_signing_certificate(certificate: &X509Certificate<'_>) -> Result<(), String> {
    if certificate.version() != X509Version::V3 {
        return Err("the certificate is not of version 3".into());
    }
    if certificate.issuer() == certificate.subject() {
        return Err("the certificate is signed by itself; C2PA asks for one that an authority has issued".into());
    }
    if certificate.is_ca() {
        return Err("the certificate is an authority's (basicConstraints CA), which may not sign pictures".into());
    }
    let twice = |_| "the certificate has an extension twice, or one that cannot be read".to_string();
    let usage = certificate.key_usage().map_err(twice)?;
    if !usage.as_ref().is_some_and(|usage| usage.value.digital_signature()) {
        return Err("the certificate lacks the key usage digitalSignature".into());
    }
    if usage.is_some_and(|usage| usage.value.key_cert_sign()) {
        return Err("the certificate has the key usage keyCertSign, which only an authority's may have".into());
    }
    let purposes = certificate.extended_key_usage().map_err(twice)?;
    match purposes.map(|purposes| purposes.value) {
        Some(purposes) if purposes.any => {
            return Err("the certificate has the extended key usage anyExtendedKeyUsage, which C2PA forbids".into());
        }
        Some(purposes) if is_accepted(purposes) => (),
        _ => return Err("the certificate lacks the extended key usage emailProtection or documentSigning".into()),
    }
    let known = |extension: &ParsedExtension<'_>| matches!(extension, ParsedExtension::AuthorityKeyIdentifier(_));
    if !certificate.extensions().iter().any(|extension| known(extension.parsed_extension())) {
        return Err("the certificate lacks the authority key identifier".into());
    }
    // The specification does not require it, but the c2pa reader reports an invalid signature without it.
    if certificate.subject().iter_organization().next().is_none() {
        return Err("the certificate's subject has no organization (O), by which readers name who signed".into());
    }
    Ok(())
}

fn is_accepted(purposes: &ExtendedKeyUsage<'_>) -> bool {
    purposes.email_protection
        || purposes.other.iter().any(|purpose| EXTENDED_KEY_USAGES.contains(&purpose.to_id_string().as_str()))
}

/// The private key that signs credentials.
pub(super) enum SigningKey {
    P256(p256::ecdsa::SigningKey),
    P384(p384::ecdsa::SigningKey),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

impl SigningKey {
    /// Reads the first private key of a PEM file, as `openssl` writes it.
    pub(super) fn parse(pem: &str) -> Result<Self, &'static str> {
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(
            |_| "holds no private key in PEM that is not encrypted (PRIVATE KEY, EC PRIVATE KEY or RSA PRIVATE KEY)",
        )?;
        let der = key.secret_der();
        let found = match &key {
            PrivateKeyDer::Sec1(_) => None
                .or_else(|| p256::SecretKey::from_sec1_der(der).ok().map(|key| Self::P256(key.into())))
                .or_else(|| p384::SecretKey::from_sec1_der(der).ok().map(|key| Self::P384(key.into()))),
            PrivateKeyDer::Pkcs1(_) => RsaKeyPair::from_der(der).ok().map(Self::Rsa),
            _ => None
                .or_else(|| p256::ecdsa::SigningKey::from_pkcs8_der(der).ok().map(Self::P256))
                .or_else(|| p384::ecdsa::SigningKey::from_pkcs8_der(der).ok().map(Self::P384))
                .or_else(|| Ed25519KeyPair::from_pkcs8_maybe_unchecked(der).ok().map(Self::Ed25519))
                .or_else(|| RsaKeyPair::from_pkcs8(der).ok().map(Self::Rsa)),
        };
        found.ok_or("is no key of P-256, P-384, Ed25519, or RSA of 2048 to 4096 bits")
    }

    /// C2PA's name of its signature algorithm.
    pub(super) fn algorithm(&self) -> SigningAlg {
        match self {
            Self::P256(_) => SigningAlg::Es256,
            Self::P384(_) => SigningAlg::Es384,
            Self::Ed25519(_) => SigningAlg::Ed25519,
            Self::Rsa(_) => SigningAlg::Ps256,
        }
    }

    /// The public key, in the encoding of a certificate's subjectPublicKey.
    pub(super) fn public(&self) -> Vec<u8> {
        match self {
            Self::P256(key) => key.verifying_key().to_encoded_point(false).as_bytes().to_vec(),
            Self::P384(key) => key.verifying_key().to_encoded_point(false).as_bytes().to_vec(),
            Self::Ed25519(pair) => pair.public_key().as_ref().to_vec(),
            Self::Rsa(pair) => pair.public_key().as_ref().to_vec(),
        }
    }

    /// A signature in the encoding of COSE: for ECDSA the two numbers r and s, concatenated.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, &'static str> {
        match self {
            Self::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                Ok(signature.to_bytes().to_vec())
            }
            Self::P384(key) => {
                let signature: p384::ecdsa::Signature = key.sign(message);
                Ok(signature.to_bytes().to_vec())
            }
            Self::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PSS_SHA256, &SystemRandom::new(), message, &mut signature)
                    .map_err(|_| "the RSA key cannot sign")?;
                Ok(signature)
            }
        }
    }
}
