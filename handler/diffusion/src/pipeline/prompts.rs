//! From the prompts of requests to what the UNet reads: tokens, chunks of them, and their embeddings.

use super::{Pipeline, Request, guidance::Guidance, inversions::Inversions};
use crate::{
    error::{PipelineError, Result},
    ops,
    prompt::{
        inversion::AppliedInversion,
        tokenizer::{Tokenizer, Tokens},
    },
};
use candle_core::Tensor;

impl Pipeline {
    /// The embeddings of a request's prompts as the UNet reads them, `[prompts, tokens, hidden_size]`, f32 on the CPU: with guidance the
    /// negative prompt and the prompt, else the prompt alone. A long prompt has the tokens of all its chunks.
    ///
    /// # Errors
    /// A prompt that cannot be read, more layers to skip than there are, or the device fails or has too little memory.
    pub fn embed_prompts(&self, request: &Request) -> Result<Tensor> {
        Ok(self.context(&[request], self.is_guided(request))?.to_tensor()?)
    }

    /// How many chunks the prompts of a request with these textual inversions have: 1 if they may not be long. Requests are painted
    /// together only with as many. None if a prompt or a textual inversion cannot be read.
    pub fn chunks(&self, request: &Request, inversions: &[AppliedInversion]) -> Option<usize> {
        if !request.long_prompt {
            return Some(1);
        }
        let width = self.networks.model().text_config.hidden_size;
        let other = match self.inversions.applied == inversions {
            true => None,
            false => Some(Inversions::of(&self.tokenizer, inversions, width).ok()?.0),
        };
        let inversions = other.as_ref().unwrap_or(&self.inversions);
        let prompts = read(inversions.tokenizer.as_ref().unwrap_or(&self.tokenizer), request).ok()?;
        Some(count(&prompts, self.is_guided(request)))
    }

    fn is_guided(&self, request: &Request) -> bool {
        Guidance::of(&self.networks.model().unet_config, request.guidance_scale).classifier_free().is_some()
    }

    /// The UNet's context: with guidance the negative prompts and then the prompts, else the prompts alone. The embeddings of a prompt's
    /// chunks follow one another. The shorter of a request's prompts is followed by chunks without text, so that both have as many, as in
    /// compel and the web UI.
    pub(super) fn context(&self, requests: &[&Request], guided: bool) -> Result<ops::Array> {
        let skip = requests.first().map_or(0, |request| request.clip_skip);
        let layers = self.networks.text_layers();
        if skip >= layers {
            let limit = format!("the text encoder has {layers} layers: at most {} can be skipped", layers - 1);
            return Err(PipelineError::Request { field: "clip_skip", value: skip.to_string(), limit });
        }
        let mut chunks = [Vec::new(), Vec::new()];
        let (mut most, nothing) = (None, self.tokenizer().encode("")?);
        for request in requests {
            let prompts = read(self.tokenizer(), request)?;
            self.inversions.tell_unused(&prompts.iter().flatten().collect::<Vec<_>>());
            let count = count(&prompts, guided);
            if *most.get_or_insert(count) != count {
                return Err(candle_core::Error::msg("prompts of several lengths in one batch").into());
            }
            for (all, mut own) in chunks.iter_mut().zip(prompts) {
                own.resize(count, nothing.clone());
                all.append(&mut own);
            }
        }
        let [negatives, prompts] = &chunks;
        let embed = |chunks: &[&[Tokens]], skip| {
            let chunks = chunks.iter().copied().flatten();
            self.networks.embed(&chunks.collect::<Vec<_>>(), skip)
        };
        let embedded = match (guided, skip) {
            (false, _) => embed(&[prompts], skip)?,
            (true, 0) => embed(&[negatives, prompts], 0)?,
            // diffusers skips no layer for the negative prompt.
            (true, _) => embed(&[negatives], 0)?.followed_by(&embed(&[prompts], skip)?)?,
        };
        Ok(embedded.joined(most.unwrap_or(1))?)
    }
}

/// The chunks of the negative prompt and those of the prompt.
fn read(tokenizer: &Tokenizer, request: &Request) -> Result<[Vec<Tokens>; 2]> {
    let one = |field, text: &str| {
        let weighting = request.prompt_weighting;
        if request.long_prompt {
            return weighting.chunks(tokenizer, field, text);
        }
        let tokens = weighting.tokens(tokenizer, field, text)?;
        if tokens.truncated > 0 {
            tracing::warn!(field, truncated_tokens = tokens.truncated, "the text is longer than the encoder reads");
        }
        Ok(vec![tokens])
    };
    Ok([one("negative_prompt", &request.negative_prompt)?, one("prompt_tags", &request.prompt)?])
}

/// How many chunks the UNet reads. Without guidance it does not read the negative prompt.
fn count([negative, prompt]: &[Vec<Tokens>; 2], guided: bool) -> usize {
    if guided { negative.len().max(prompt.len()) } else { prompt.len() }
}
