//! From pixels to the file that is delivered: the artist's signature in the picture, encoding, metadata and Content Credentials.

#[cfg(feature = "credentials")]
mod credential;
#[cfg(not(feature = "credentials"))]
#[path = "picture/no_credential.rs"]
mod credential;
mod encode;
mod metadata;
pub mod options;
mod preview;
mod provenance;
pub mod signature;
#[cfg(test)]
mod tests;

pub use credential::{Credential, CredentialError};
pub use encode::{EncodeError, encode};
pub use metadata::{EmbedError, embed};
pub use preview::{MAX_PREVIEW, preview};
pub use provenance::{ModelName, PictureOrigin, Provenance};
