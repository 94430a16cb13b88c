//! What a network must do to be loaded on a GPU while text encoder, UNet and VAE are: the safety checker does.

use super::fit::CheckerPlace;
use crate::error::Result;

/// A network that is loaded beside the others.
pub(super) trait Beside: Send + Sync {
    /// The number of its parameters.
    fn parameters(&self) -> Result<usize>;
    /// Takes its memory, if it stays on the GPU. Else it takes none before its first look.
    fn settle(&mut self, place: CheckerPlace) -> Result<()>;
    /// Copies its weights into that memory, on streams of its own, while other work is on the GPU.
    fn fill(&self) -> Result<()>;
}
