//! What C2PA asks of a certificate that signs (specification 2.2, section 14.5.1), checked before the first picture and said in
//! words. Trusts nobody: whether an issuer is known is for those to judge who read the picture.

use super::key::Key;
use rustls_pki_types::{CertificateDer, pem::PemObject};
use x509_parser::{
    certificate::X509Certificate,
    error::X509Error,
    extensions::{ExtendedKeyUsage, ParsedExtension},
    time::ASN1Time,
    x509::X509Version,
};

/// Purposes for which C2PA takes a certificate, beside emailProtection: documentSigning, and C2PA's own.
const PURPOSES: [&str; 2] = ["1.3.6.1.5.5.7.3.36", "1.3.6.1.4.1.62558.2.1"];

/// Reads the certificates of a PEM file, the signing one first, and checks them.
pub(super) fn chain(pem: &str, key: &Key, now: i64) -> Result<Vec<Vec<u8>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let read = read.map_err(|_| "is no PEM")?;
    let parsed = read.iter().enumerate().map(|(index, der)| match x509_parser::parse_x509_certificate(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(_) => Err(format!("certificate {} is no X.509", index + 1)),
    });
    let chain = parsed.collect::<Result<Vec<_>, _>>()?;
    let Some(own) = chain.first() else { return Err("holds no certificate".into()) };
    if own.public_key().subject_public_key.data.as_ref() != key.public() {
        let first = if chain.len() > 1 { "the first certificate" } else { "the certificate" };
        return Err(format!("{first} belongs to another key than that of {}", super::KEY));
    }
    let now = ASN1Time::from_timestamp(now).map_err(|_| "the clock shows no time that X.509 knows")?;
    for (index, certificate) in chain.iter().enumerate() {
        let named = |reason| format!("certificate {} {reason}", index + 1);
        in_time(certificate, now).map_err(named)?;
    }
    signing(own)?;
    for (index, pair) in chain.windows(2).enumerate() {
        let [certificate, issuer] = pair else { continue };
        let fits = certificate.issuer() == issuer.subject();
        match certificate.verify_signature(Some(issuer.public_key())) {
            Ok(()) if fits => (),
            // An algorithm of the authority's that cannot be checked here may be right.
            Err(X509Error::SignatureUnsupportedAlgorithm) if fits => (),
            _ => return Err(format!("certificate {} was not issued by certificate {}", index + 1, index + 2)),
        }
    }
    Ok(read.iter().map(|der| der.to_vec()).collect())
}

fn in_time(certificate: &X509Certificate<'_>, now: ASN1Time) -> Result<(), String> {
    let validity = certificate.validity();
    if now < validity.not_before {
        return Err(format!("is not valid before {}", validity.not_before));
    }
    if now > validity.not_after {
        return Err(format!("has expired: it was valid until {}", validity.not_after));
    }
    Ok(())
}

/// What only the signing certificate must be.
fn signing(certificate: &X509Certificate<'_>) -> Result<(), String> {
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
        Some(purposes) if serves(purposes) => (),
        _ => return Err("the certificate lacks the extended key usage emailProtection or documentSigning".into()),
    }
    let known = |extension: &ParsedExtension<'_>| matches!(extension, ParsedExtension::AuthorityKeyIdentifier(_));
    if !certificate.extensions().iter().any(|extension| known(extension.parsed_extension())) {
        return Err("the certificate lacks the authority key identifier".into());
    }
    // The specification does not ask for it; the field's own reader takes a signature for a false one without it.
    if certificate.subject().iter_organization().next().is_none() {
        return Err("the certificate's subject has no organization (O), by which readers name who signed".into());
    }
    Ok(())
}

fn serves(purposes: &ExtendedKeyUsage<'_>) -> bool {
    purposes.email_protection
        || purposes.other.iter().any(|purpose| PURPOSES.contains(&purpose.to_id_string().as_str()))
}
