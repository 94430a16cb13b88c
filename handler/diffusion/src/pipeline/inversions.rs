//! The textual inversions of a pipeline: the tokenizer that knows their tokens, and the embeddings of these.

use crate::{
    models::text_encoder::AddedEmbeddings,
    prompt::{
        inversion::{AppliedInversion, InversionError},
        tokenizer::{Tokenizer, Tokens},
    },
};

/// Textual inversions that are applied.
#[derive(Default)]
pub(super) struct Inversions {
    pub(super) applied: Vec<AppliedInversion>,
    /// None without any: then it is the model's.
    pub(super) tokenizer: Option<Tokenizer>,
    /// The ids of each one's vectors.
    ids: Vec<Vec<u32>>,
}

impl Inversions {
    /// Of this list, for a text encoder of that width. Returns the embeddings as well.
    ///
    /// # Errors
    /// One that does not fit.
    pub(super) fn of(
        tokenizer: &Tokenizer,
        wanted: &[AppliedInversion],
        width: usize,
    ) -> Result<(Self, AddedEmbeddings), InversionError> {
        if wanted.is_empty() {
            return Ok((Self::default(), AddedEmbeddings::new()));
        }
        let mut tokens = Vec::with_capacity(wanted.len());
        for one in wanted {
            tokens.push((one.token()?, one.inversion.vectors(width)?.len()));
        }
        let (tokenizer, ids) = tokenizer.with_tokens(&tokens).map_err(InversionError::Unfit)?;
        let mut embeddings = AddedEmbeddings::new();
        for (ids, one) in ids.iter().zip(wanted) {
            embeddings.extend(ids.iter().copied().zip(one.inversion.vectors(width)?.map(<[f32]>::to_vec)));
        }
        Ok((Self { applied: wanted.to_vec(), tokenizer: Some(tokenizer), ids }, embeddings))
    }

    /// Logs which ones are in none of these prompts. The log has no word of a prompt, so it has the number of each in the request.
    pub(super) fn tell_unused(&self, prompts: &[&Tokens]) {
        for (number, ids) in (1..).zip(&self.ids) {
            let is_there = prompts.iter().flat_map(|tokens| &tokens.ids).any(|id| ids.contains(id));
            if !is_there {
                tracing::warn!(
                    number,
                    "a textual inversion changes nothing: its token is in no prompt, or was cut off"
                );
            }
        }
    }
}
