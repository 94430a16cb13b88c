//! Credentials, read back by the library that writes them (the end-to-end cases use another reader), and certificates that are refused.

mod time_stamp;

use super::*;
use crate::picture::{ModelName, PictureOrigin, embed, encode, options::PictureConfig, tests::request};
use c2pa::{Reader, ValidationState};
use image::{Rgb, RgbImage};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, date_time_ymd,
};

/// By `tests/make_keys.sh`, because ring makes no RSA keys.
const RSA_KEY: &str = include_str!("tests/rsa.pem");

/// A certificate authority, and its certificate in PEM.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let (mut params, key) = (CertificateParams::new([]).unwrap(), KeyPair::generate().unwrap());
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for a key that C2PA accepts, after a change.
    fn sign(&self, key: &KeyPair, change: impl Fn(&mut CertificateParams)) -> String {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "signer");
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
        params.use_authority_key_identifier_extension = true;
        change(&mut params);
        params.signed_by(key, &self.issuer).unwrap().pem()
    }
}

fn open(certificate: &str, key: &str) -> Result<Credential, CredentialError> {
    Credential::open(&certificate.parse().unwrap(), &key.parse().unwrap(), None)
}

/// A key of each algorithm, with C2PA's name for it.
fn keys() -> [(KeyPair, SigningAlg); 4] {
    let pair = |algorithm| KeyPair::generate_for(algorithm).unwrap();
    [
        (pair(&PKCS_ECDSA_P256_SHA256), SigningAlg::Es256),
        (pair(&PKCS_ECDSA_P384_SHA384), SigningAlg::Es384),
        (pair(&PKCS_ED25519), SigningAlg::Ed25519),
        (KeyPair::from_pem(RSA_KEY).unwrap(), SigningAlg::Ps256),
    ]
}

/// A file with metadata in each format, without and with a credential.
fn files(credential: &Credential, prompts: bool) -> Vec<(Format, Vec<u8>, Vec<u8>)> {
    let picture = RgbImage::from_fn(64, 48, |x, y| Rgb([x as u8 * 3, y as u8 * 5, 90]));
    let (origin, request) = (PictureOrigin { generation_id: Some(500), created_at: None, seed: -1 }, request());
    let model = ModelName { name: "sd15".into(), revision: None };
    let provenance = Provenance {
        origin: &origin,
        artist: Some("Ada Ł"),
        model: &model,
        loras: &[],
        inversions: &[],
        request: &request,
        image: (2, 3),
        checked: None,
        prompts,
    };
    let write = |format| {
        let file = encode(&picture, format, &PictureConfig::default()).unwrap();
        let file = embed(file, format, &provenance).unwrap();
        let signed = credential.sign(file.clone(), format, &provenance).unwrap();
        (format, file, signed)
    };
    Format::ALL.iter().copied().map(write).collect()
}

/// Reads a file with the library, which trusts one authority.
fn read(file: &[u8], format: Format, authority: &str) -> Reader {
    let context = Context::new().with_settings(json!({ "trust": { "user_anchors": authority } })).unwrap();
    Reader::from_context(context).with_stream(format.content_type(), Cursor::new(file)).unwrap()
}

fn faults(reader: &Reader) -> Vec<&str> {
    reader.validation_status().unwrap_or_default().iter().map(|status| status.code()).collect()
}

fn find(file: &[u8], text: &[u8]) -> usize {
    file.windows(text.len()).position(|window| window == text).unwrap()
}

fn holds(file: &[u8], text: &[u8]) -> bool {
    file.windows(text.len()).any(|window| window == text)
}

#[test]
fn each_kind_of_key_signs_each_format() {
    let authority = Authority::new("authority");
    for (key, algorithm) in keys() {
        let credential = open(&authority.sign(&key, |_| ()), &key.serialize_pem()).unwrap();
        for (format, _, signed) in files(&credential, false) {
            let reader = read(&signed, format, &authority.pem);
            assert_eq!(
                reader.validation_state(),
                ValidationState::Trusted,
                "{algorithm} {format}: {:?}",
                faults(&reader)
            );
            let signature = reader.active_manifest().unwrap().signature_info().unwrap();
            assert_eq!((signature.alg, signature.common_name.as_deref()), (Some(algorithm), Some("signer")));
        }
    }
}

#[test]
fn it_says_what_made_the_picture() {
    let (authority, [(key, _), ..]) = (Authority::new("authority"), keys());
    let credential = open(&authority.sign(&key, |_| ()), &key.serialize_pem()).unwrap();
    for prompts in [false, true] {
        for (format, _, signed) in files(&credential, prompts) {
            let said: serde_json::Value = serde_json::from_str(&read(&signed, format, &authority.pem).json()).unwrap();
            let said = &said["manifests"][said["active_manifest"].as_str().unwrap()];
            assert_eq!(said["title"], format!("gen_500_2.{}", format.extension()));
            assert_eq!(said["claim_generator_info"][0]["name"], "Easel");
            let of = |label: &str| {
                let all = said["assertions"].as_array().unwrap();
                all.iter().find(|assertion| assertion["label"] == label).unwrap()["data"].clone()
            };
            let action = &of("c2pa.actions.v2")["actions"][0];
            assert_eq!(
                (&action["action"], &action["softwareAgent"]["name"]),
                (&json!("c2pa.created"), &json!("Easel"))
            );
            let trained = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";
            assert_eq!(action["digitalSourceType"], trained);
            let own = of(GENERATION_LABEL);
            for (name, value) in [("GenerationId", "500"), ("Model", "sd15"), ("Seed", "-1"), ("Artist", "Ada Ł")] {
                assert_eq!(own[name], value, "{own}");
            }
            assert_eq!(own.get("Prompt").is_some(), prompts, "{own}");
            assert_eq!(holds(&signed, b"secret"), prompts, "{format}");
        }
    }
}

#[test]
fn a_changed_byte_of_pixels_or_metadata_is_noticed() {
    let (authority, [(key, _), ..]) = (Authority::new("authority"), keys());
    let credential = open(&authority.sign(&key, |_| ()), &key.serialize_pem()).unwrap();
    for (format, _, signed) in files(&credential, false) {
        // In the XMP. The credential holds the model's name too, and may come first.
        let name = find(&signed, b"easel:Model") + "easel:Model".len();
        // The last bytes of the pixels: before the end marker, before the checksum and the end, before EXIF.
        let pixel = match format {
            Format::Jpeg => signed.len() - 4,
            Format::Png => signed.len() - 20,
            Format::WebP => find(&signed, b"EXIF") - 3,
        };
        for at in [name, pixel] {
            let mut changed = signed.clone();
            changed[at] ^= 1;
            let reader = read(&changed, format, &authority.pem);
            assert_eq!(faults(&reader), ["assertion.dataHash.mismatch"], "{format} at {at}");
            assert_eq!(reader.validation_state(), ValidationState::Invalid);
        }
    }
}

#[test]
fn pixels_and_metadata_stay_as_they_are() {
    let (authority, [(key, _), ..]) = (Authority::new("authority"), keys());
    let credential = open(&authority.sign(&key, |_| ()), &key.serialize_pem()).unwrap();
    let again = files(&credential, false);
    for ((format, plain, signed), (_, _, second)) in files(&credential, false).into_iter().zip(again) {
        let pixels = |file: &[u8]| image::load_from_memory(file).unwrap().to_rgb8();
        assert!(pixels(&plain) == pixels(&signed), "{format}");
        let xmp = &plain[find(&plain, b"<x:xmpmeta")..find(&plain, b"</x:xmpmeta>")];
        assert!(holds(&signed, xmp), "{format}: other XMP");
        assert!(signed != second, "{format}: two credentials are the same");
    }
}

#[test]
fn what_must_not_sign_is_refused_and_said() {
    let (authority, other) = (Authority::new("authority"), Authority::new("other"));
    let [(key, _), (strange, _), ..] = keys();
    let sign = |change: &dyn Fn(&mut CertificateParams)| authority.sign(&key, change);
    let itself = {
        let mut params = CertificateParams::new([]).unwrap();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
        params.self_signed(&key).unwrap().pem()
    };
    let good = sign(&|_| ());
    for (certificate, expected) in [
        (authority.sign(&strange, |_| ()), "belongs to another key than that of --credential-key"),
        (authority.pem.clone() + &good, "the first certificate belongs to another key"),
        (sign(&|params| params.not_after = date_time_ymd(2020, 1, 2)), "has expired: it was valid until Jan  2"),
        (sign(&|params| params.not_before = date_time_ymd(2200, 1, 2)), "is not valid before"),
        (
            sign(&|params| params.key_usages = vec![KeyUsagePurpose::KeyAgreement]),
            "lacks the key usage digitalSignature",
        ),
        (sign(&|params| params.key_usages.push(KeyUsagePurpose::KeyCertSign)), "keyCertSign"),
        (sign(&|params| params.extended_key_usages.clear()), "lacks the extended key usage emailProtection"),
        (
            sign(&|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
            "lacks the extended key",
        ),
        (sign(&|params| params.extended_key_usages.push(ExtendedKeyUsagePurpose::Any)), "anyExtendedKeyUsage"),
        (sign(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), "is an authority's"),
        (sign(&|params| params.use_authority_key_identifier_extension = false), "authority key identifier"),
        (sign(&|params| assert!(params.distinguished_name.remove(DnType::OrganizationName))), "organization"),
        (itself, "signed by itself"),
        (good.clone() + &other.pem, "certificate 1 was not issued by certificate 2"),
        ("-----BEGIN X-----\n-----END X-----\n".into(), "holds no certificate"),
    ] {
        let error = open(&certificate, &key.serialize_pem()).unwrap_err().to_string();
        assert!(error.starts_with("--credential-certificate (EASEL_"), "{error}");
        assert!(error.contains(expected), "{error}");
    }
    assert!(open(&(good.clone() + &authority.pem), &key.serialize_pem()).is_ok());
    let document = sign(&|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Other(vec![1, 3, 6, 1, 5, 5, 7, 3, 36])]
    });
    assert!(open(&document, &key.serialize_pem()).is_ok());
}

#[test]
fn what_is_no_key_is_refused_and_not_shown() {
    let (authority, [(key, _), ..]) = (Authority::new("authority"), keys());
    let good = authority.sign(&key, |_| ());
    for (pem, expected) in
        [(good.clone(), "no private key"), (include_str!("tests/p521.pem").to_string(), "is no key of P-256")]
    {
        let error = open(&good, &pem).unwrap_err().to_string();
        assert!(error.starts_with("--credential-key (EASEL_CREDENTIAL_KEY): ") && error.contains(expected), "{error}");
        assert!(pem.lines().all(|line| line.is_empty() || !error.contains(line)), "{error}");
    }
    let shown = format!("{:?}", open(&good, &key.serialize_pem()).unwrap());
    assert_eq!(shown, "Credential { algorithm: Es256, .. }");
}

#[test]
fn keys_in_the_forms_of_older_openssl_are_read() {
    let parse = |pem| SigningKey::parse(pem).unwrap();
    let rsa = parse(include_str!("tests/rsa_pkcs1.pem"));
    assert_eq!((rsa.algorithm(), rsa.public()), (SigningAlg::Ps256, parse(RSA_KEY).public()));
    assert_eq!(parse(include_str!("tests/p256_sec1.pem")).algorithm(), SigningAlg::Es256);
    assert_eq!(parse(include_str!("tests/p384_sec1.pem")).algorithm(), SigningAlg::Es384);
}
