//! From pixels to the file that is delivered: the artist's signature in the picture, encoding, metadata and Content Credentials. And from a
//! file to pixels, for a picture to begin from.

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
mod reading;
pub mod signature;
#[cfg(test)]
mod tests;

pub use credential::{Credential, CredentialError};
pub use encode::{EncodeError, encode};
pub use metadata::{EmbedError, embed};
pub use preview::{MAX_PREVIEW, preview};
pub use provenance::{ModelName, PictureOrigin, Provenance};
pub use reading::{ReadError, read};
