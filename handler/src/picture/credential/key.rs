//! The private key that credentials are signed with, held by the library that does TLS. Refuses keys that C2PA has no
//! algorithm for, and never shows one.

use aws_lc_rs::{
    error::Unspecified,
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
        RSA_PSS_SHA256, RsaKeyPair,
    },
};
use c2pa::SigningAlg;
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};

/// A key, by its algorithm.
pub(super) enum Key {
    Ecdsa(EcdsaKeyPair, SigningAlg),
    Ed25519(Ed25519KeyPair),
    Rsa(RsaKeyPair),
}

impl Key {
    /// Reads a PEM file's first private key, as `openssl` writes it.
    pub(super) fn parse(pem: &str) -> Result<Self, &'static str> {
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(
            |_| "holds no private key in PEM that is not encrypted (PRIVATE KEY, EC PRIVATE KEY or RSA PRIVATE KEY)",
        )?;
        let der = key.secret_der();
        let curves = [
            (&ECDSA_P256_SHA256_FIXED_SIGNING, SigningAlg::Es256),
            (&ECDSA_P384_SHA384_FIXED_SIGNING, SigningAlg::Es384),
        ];
        for (curve, algorithm) in curves {
            if let Ok(pair) = EcdsaKeyPair::from_private_key_der(curve, der) {
                return Ok(Self::Ecdsa(pair, algorithm));
            }
        }
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            return Ok(Self::Ed25519(pair));
        }
        let rsa = RsaKeyPair::from_pkcs8(der).or_else(|_| RsaKeyPair::from_der(der));
        rsa.map(Self::Rsa).map_err(|_| "is no key of P-256, P-384, Ed25519, or RSA of 2048 to 8192 bits")
    }

    /// What C2PA calls its signatures.
    pub(super) fn algorithm(&self) -> SigningAlg {
        match self {
            Self::Ecdsa(_, algorithm) => *algorithm,
            Self::Ed25519(_) => SigningAlg::Ed25519,
            Self::Rsa(_) => SigningAlg::Ps256,
        }
    }

    /// The public key, as the bits of a certificate's subjectPublicKey hold it.
    pub(super) fn public(&self) -> &[u8] {
        match self {
            Self::Ecdsa(pair, _) => pair.public_key().as_ref(),
            Self::Ed25519(pair) => pair.public_key().as_ref(),
            Self::Rsa(pair) => pair.public_key().as_ref(),
        }
    }

    /// A signature as COSE wants it: of ECDSA the two numbers, one after the other.
    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        let random = SystemRandom::new();
        match self {
            Self::Ecdsa(pair, _) => Ok(pair.sign(&random, message)?.as_ref().to_vec()),
            Self::Ed25519(pair) => Ok(pair.sign(message).as_ref().to_vec()),
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PSS_SHA256, &random, message, &mut signature)?;
                Ok(signature)
            }
        }
    }
}
