//! Attention to a prompt, whose keys and values all steps of a picture share, with the layer norm before it.

use super::{Array, Linear, attention, gpu, mixed, params::Params};
use crate::gpu::Gpu;
use candle_core::{Error, Result};

/// Attention whose keys and values are of a prompt, with its output layer.
pub(crate) enum PromptAttention {
    /// Queries, attention and output, one after the other.
    Plain(Box<Plain>),
    /// On a GPU where that is faster: two products of what prompt and weights make together.
    Folded(Box<gpu::PromptAttention>),
}

pub(crate) struct Plain {
    to_q: Linear,
    to_kv: Linear,
    to_out: Linear,
    heads: usize,
}

/// What the steps need of the prompts.
#[derive(Clone)]
pub(crate) enum PromptKeys {
    /// Keys and values, `[batch, tokens, channels]` each.
    Plain([Array; 2]),
    /// With the weights in them.
    Folded(gpu::Folded),
}

/// The embeddings of prompts.
pub(crate) struct Prompts {
    /// `[batch, tokens, width]`: each prompt for as many entries of the latents' batch.
    repeated: Array,
    tokens: usize,
    /// `[prompts, slots, width]`, with zeros up to the slots of folded keys, where there are such.
    in_slots: Option<crate::gpu::Array>,
}

impl Prompts {
    /// `embeddings` are `[prompts, tokens, width]`, of which each is for so many entries of the batch.
    pub(crate) fn new(embeddings: &Array, times: usize, any_folded: bool) -> Result<Self> {
        let tokens = embeddings.sequences()?[1];
        let in_slots = (any_folded && Self::fold(tokens)).then(|| gpu::with_slots(embeddings.gpu()?)).transpose()?;
        Ok(Self { repeated: embeddings.repeat_rows(times)?, tokens, in_slots })
    }

    /// Whether prompts of so many tokens are folded, where that is faster. Longer ones have keys and values everywhere.
    pub(crate) fn fold(tokens: usize) -> bool {
        tokens <= gpu::PROMPT_SLOTS
    }
}

impl PromptAttention {
    /// Behind a layer norm with that number added to the variance, whose parameters are in `norm`. `width` is that of the prompt's embedding.
    pub(crate) fn new(
        (eps, norm): (f64, &Params),
        channels: usize,
        width: usize,
        heads: usize,
        params: Params,
    ) -> Result<Self> {
        if let Some(folded) = gpu::PromptAttention::new((eps, norm), channels, width, heads, &params)? {
            return Ok(Self::Folded(folded.into()));
        }
        let parts = ["to_k", "to_v"].map(|part| params.pp(part).ahead());
        Ok(Self::Plain(Box::new(Plain {
            to_q: Linear::behind_norm((eps, norm), channels, channels, false, &[params.pp("to_q")])?,
            to_kv: Linear::packed(width, channels, false, &parts)?,
            to_out: Linear::new(channels, channels, params.pp("to_out.0"))?.ahead_of_norm(),
            heads,
        })))
    }

    pub(crate) fn is_folded(&self) -> bool {
        matches!(self, Self::Folded(_))
    }

    /// Memory that stays, for the keys of so many prompts. None where they are not folded.
    pub(crate) fn room(&self, gpu: &Gpu, prompts: usize) -> Result<Option<gpu::Folded>> {
        match self {
            Self::Plain(_) => Ok(None),
            Self::Folded(folded) => folded.room(gpu, prompts).map(Some),
        }
    }

    /// What the steps need of the prompts. Folded keys are in `room`, if it is given.
    pub(crate) fn keys(&self, prompts: &Prompts, room: Option<&gpu::Folded>) -> Result<PromptKeys> {
        match (self, &prompts.in_slots) {
            (Self::Plain(plain), _) => {
                let both = plain.to_kv.forward_each(&prompts.repeated)?;
                Ok(PromptKeys::Plain(both.try_into().map_err(|_| incomplete())?))
            }
            (Self::Folded(folded), Some(in_slots)) => {
                folded.fold(in_slots, prompts.tokens, room).map(PromptKeys::Folded)
            }
            (Self::Folded(folded), None) => {
                let both = folded.keys_and_values(prompts.repeated.gpu()?)?;
                Ok(PromptKeys::Plain(both.map(Array::Gpu)))
            }
        }
    }

    /// The attention plus `residual`, which has the shape of `xs`, `[batch, tokens, channels]`.
    pub(crate) fn forward_adding(&self, xs: &Array, keys: &PromptKeys, residual: &Array) -> Result<Array> {
        match (self, keys) {
            (Self::Plain(plain), PromptKeys::Plain([k, v])) => {
                let mixed = attention(&plain.to_q.forward(xs)?, k, v, plain.heads)?;
                plain.to_out.forward_adding(&mixed, residual)
            }
            (Self::Folded(folded), PromptKeys::Folded(keys)) => {
                folded.forward(xs.gpu()?, keys, residual.gpu()?).map(Array::Gpu)
            }
            (Self::Folded(folded), PromptKeys::Plain([k, v])) => {
                folded.forward_plain(xs.gpu()?, [k.gpu()?, v.gpu()?], residual.gpu()?).map(Array::Gpu)
            }
            _ => Err(mixed()),
        }
    }
}

impl PromptKeys {
    /// An array of the same shape that stays, for what is no such already.
    pub(crate) fn resident_like(&self) -> Result<Self> {
        let like = |array: &Array| Ok::<_, Error>(Array::Gpu(array.gpu()?.resident_like(None)?));
        Ok(match self {
            Self::Plain([keys, values]) => Self::Plain([like(keys)?, like(values)?]),
            Self::Folded(folded) => Self::Folded(folded.clone()),
        })
    }

    /// Copies numbers of the same shape to here, unless they are here.
    pub(crate) fn take(&self, fresh: &Self) -> Result<()> {
        match (self, fresh) {
            (Self::Plain(ours), Self::Plain(fresh)) => ours.iter().zip(fresh).try_for_each(|(ours, fresh)| {
                let (ours, fresh) = (ours.gpu()?, fresh.gpu()?);
                Ok(ours.gpu().copy(fresh, ours)?)
            }),
            (Self::Folded(ours), Self::Folded(fresh)) if ours.is(fresh) => Ok(()),
            _ => Err(incomplete()),
        }
    }
}

fn incomplete() -> Error {
    Error::Msg("an attention lacks keys or values of the prompt".into()).bt()
}
