//! From signed pixels to the file that an artist gets, with what it says of how it came to be, and a signature on that. Paints nothing, and changes no
//! pixel but by the format's own loss.

mod credential;
mod embed;
mod encode;
mod exif;
mod model;
pub mod options;
mod provenance;
pub mod signature;
#[cfg(test)]
mod tests;
mod xmp;

pub use credential::{Credential, CredentialError};
pub use embed::{EmbedError, embed};
pub use encode::{EncodeError, encode};
pub use model::ModelName;
pub use provenance::{Origin, Provenance};
