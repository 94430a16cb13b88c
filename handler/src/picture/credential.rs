//! Content Credentials (C2PA): a statement of what made a picture, bound to the file's bytes and signed with the operator's
//! certificate. Written last, so that it also covers the metadata. The network is used only for time stamps.

mod certificate;
#[cfg(test)]
mod tests;

use super::provenance::{DIGITAL_SOURCE_TYPE, Provenance};
use crate::{
    picture::options::{CredentialFiles, Pem},
    task::Format,
};
use c2pa::{
    Builder, Context, Signer, SigningAlg,
    crypto::time_stamp::{default_rfc3161_message, default_rfc3161_request},
    http::{
        HttpResolverError, SyncHttpResolver,
        http::{Request, Response},
    },
};
use certificate::SigningKey;
use reqwest::{header::CONTENT_TYPE, redirect::Policy};
use serde_json::{Map, Value, json};
use std::{
    error::Error,
    fmt,
    io::{self, Cursor, Read},
    sync::Arc,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::runtime;
use url::Url;

const CERTIFICATE: &str = "--credential-certificate (EASEL_CREDENTIAL_CERTIFICATE)";
const KEY: &str = "--credential-key (EASEL_CREDENTIAL_KEY)";
/// Bytes for the signature and its headers, without certificates and time stamp.
const COSE_BYTES: usize = 1024;
/// Label of the assertion for what C2PA has no name for. Its fields have the names of the XMP.
const GENERATION_LABEL: &str = "org.easel.generation";
/// Space for a time stamp with the certificates of its authority.
const MAX_TIME_STAMP_BYTES: usize = 10_000;
const TIME_STAMP_TIMEOUT: Duration = Duration::from_secs(10);

/// Why pictures cannot be given credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// C2PA does not accept the certificate, or it belongs to another key.
    #[error("{CERTIFICATE}: {0}")]
    Certificate(String),
    /// The key cannot be used.
    #[error("{KEY}: {0}")]
    Key(String),
    /// A picture was not signed.
    #[error("Content Credentials: {0}")]
    Signing(String),
}

/// Signs the files of pictures.
pub struct Credential {
    context: Arc<Context>,
    signer: C2paSigner,
}

/// The key and the certificates, for the C2PA library.
struct C2paSigner {
    key: SigningKey,
    chain: Vec<Vec<u8>>,
    authority: Option<TimeStampAuthority>,
}

impl Credential {
    /// Checks certificate and key, and signs a picture that is thrown away, so that a process that cannot sign does not start.
    ///
    /// # Errors
    /// Certificate or key cannot be used.
    pub fn open(certificate: &Pem, key: &Pem, time_stamp: Option<&Url>) -> Result<Self, CredentialError> {
        let key = SigningKey::parse(key.expose()).map_err(|reason| CredentialError::Key(reason.into()))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
        let chain = certificate::chain(certificate.expose(), &key, now).map_err(CredentialError::Certificate)?;
        let settings = json!({
            "builder": { "thumbnail": { "enabled": false } },
            "verify": { "remote_manifest_fetch": false, "ocsp_fetch": false },
        });
        let context = Context::new().with_settings(settings).map_err(signing)?.into_shared();
        let mut credential = Self { context, signer: C2paSigner { key, chain, authority: None } };
        credential.check()?;
        credential.signer.authority = time_stamp.map(|url| TimeStampAuthority::new(url.clone()));
        Ok(credential)
    }

    /// As [`Credential::open`], from the files of the options; `None` without them.
    ///
    /// # Errors
    /// As [`Credential::open`].
    pub fn of_files(files: &CredentialFiles) -> Result<Option<Self>, CredentialError> {
        let pair = files.credential_certificate.as_ref().zip(files.credential_key.as_ref());
        let open = |(certificate, key)| Self::open(certificate, key, files.credential_time_stamp_url.as_ref());
        pair.map(open).transpose()
    }

    /// Returns the file with a credential. Two credentials of one file differ, because each has a random id.
    ///
    /// # Errors
    /// The certificate has expired meanwhile, or there is no time stamp. Neither is the task's fault.
    pub fn sign(&self, file: Vec<u8>, format: Format, provenance: &Provenance) -> Result<Vec<u8>, CredentialError> {
        self.write(file, format, definition(provenance, format)).map_err(signing)
    }

    fn write(&self, file: Vec<u8>, format: Format, definition: Value) -> c2pa::Result<Vec<u8>> {
        let mut builder = Builder::from_shared_context(&self.context).with_definition(definition)?;
        let mut signed = Cursor::new(Vec::with_capacity(file.len() + 2 * self.signer.reserve_size()));
        builder.sign(&self.signer, format.content_type(), &mut Cursor::new(file), &mut signed)?;
        Ok(signed.into_inner())
    }

    fn check(&self) -> Result<(), CredentialError> {
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

impl Signer for C2paSigner {
    fn sign(&self, data: &[u8]) -> c2pa::Result<Vec<u8>> {
        self.key.sign(data).map_err(|error| c2pa::Error::OtherError(error.into()))
    }

    fn alg(&self) -> SigningAlg {
        self.key.algorithm()
    }

    fn certs(&self) -> c2pa::Result<Vec<Vec<u8>>> {
        Ok(self.chain.clone())
    }

    fn reserve_size(&self) -> usize {
        let stamp = self.authority.as_ref().map_or(0, |_| MAX_TIME_STAMP_BYTES);
        COSE_BYTES + self.chain.iter().map(Vec::len).sum::<usize>() + stamp
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

/// The manifest's definition, with the facts of EXIF and XMP under the names of C2PA. No prompt unless those have it, and no time.
fn definition(provenance: &Provenance, format: Format) -> Value {
    let easel = json!({ "name": "Easel", "version": env!("CARGO_PKG_VERSION") });
    let created = json!({
        "action": "c2pa.created",
        "digitalSourceType": DIGITAL_SOURCE_TYPE,
        "softwareAgent": easel.clone(),
    });
    let mut definition = json!({
        "claim_generator_info": [easel],
        "assertions": [
            { "label": "c2pa.actions.v2", "created": true, "data": { "actions": [created], "allActionsIncluded": true } },
            { "label": GENERATION_LABEL, "created": true, "data": generation(provenance) },
        ],
    });
    if let Some(id) = provenance.origin.generation_id {
        definition["title"] = title(id, provenance.image.0, format).into();
    }
    definition
}

/// The file's name in the bucket.
fn title(id: i64, number: usize, format: Format) -> String {
    let ending = format.extension();
    if number == 1 { format!("gen_{id}.{ending}") } else { format!("gen_{id}_{number}.{ending}") }
}

fn generation(provenance: &Provenance) -> Value {
    let settings = provenance.settings().into_iter().map(|(name, value)| (name.to_string(), Value::from(value)));
    let mut fields: Map<String, Value> = settings.collect();
    let (prompt, negative) = provenance.prompts();
    for (name, text) in [("Artist", provenance.artist()), ("Prompt", prompt), ("NegativePrompt", negative)] {
        fields.extend(text.map(|text| (name.to_string(), text.into())));
    }
    if !provenance.loras.is_empty() {
        let lora = |applied: &diffusion::lora::AppliedLora| {
            let mut about = json!({ "Sha256": applied.lora.sha256(), "Scale": applied.scale });
            if !applied.weights.is_empty() {
                about["Weights"] = applied.weights.to_string().into();
            }
            about
        };
        fields.insert("Loras".into(), provenance.loras.iter().map(lora).collect());
    }
    if !provenance.inversions.is_empty() {
        let inversion =
            |applied: &diffusion::prompt::inversion::AppliedInversion| json!({ "Sha256": applied.inversion.sha256() });
        fields.insert("TextualInversions".into(), provenance.inversions.iter().map(inversion).collect());
    }
    fields.into()
}

/// A time-stamp authority (RFC 3161). The library builds the request and checks the answer.
struct TimeStampAuthority {
    url: Url,
    context: Context,
}

impl TimeStampAuthority {
    fn new(url: Url) -> Self {
        Self { url, context: Context::new().with_resolver(HttpResolver) }
    }

    /// Requests the time stamp of a message.
    fn stamp(&self, message: &[u8]) -> c2pa::Result<Vec<u8>> {
        let body = default_rfc3161_message(message)?;
        Ok(default_rfc3161_request(self.url.as_str(), None, &body, message, &self.context)?)
    }
}

/// Sends a request from its own thread, because blocking is not allowed on the caller's if that belongs to a runtime.
struct HttpResolver;

impl SyncHttpResolver for HttpResolver {
    fn http_resolve(&self, request: Request<Vec<u8>>) -> Result<Response<Box<dyn Read>>, HttpResolverError> {
        let answered = thread::scope(|scope| scope.spawn(|| send(request)).join());
        let answer = answered.map_err(|_| io::Error::other("the request broke off"))?;
        let answer = answer.map_err(|error| {
            io::Error::other(format!(
                "no stamp from --credential-time-stamp-url (EASEL_CREDENTIAL_TIME_STAMP_URL): {error}"
            ))
        })?;
        Ok(answer.map(|bytes| Box::new(Cursor::new(bytes)) as Box<dyn Read>))
    }
}

fn send(request: Request<Vec<u8>>) -> Result<Response<Vec<u8>>, Box<dyn Error + Send + Sync>> {
    let client = service::http_client().redirect(Policy::none()).timeout(TIME_STAMP_TIMEOUT).build()?;
    runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut answer = client.execute(request.try_into()?).await.map_err(reqwest::Error::without_url)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
            if bytes.len() + chunk.len() > MAX_TIME_STAMP_BYTES {
                return Err(format!("the answer has more than {MAX_TIME_STAMP_BYTES} bytes").into());
            }
            bytes.extend_from_slice(&chunk);
        }
        let head = Response::builder().status(answer.status());
        let kind = answer.headers().get(CONTENT_TYPE).into_iter();
        Ok(kind.fold(head, |head, kind| head.header(CONTENT_TYPE, kind)).body(bytes)?)
    })
}
