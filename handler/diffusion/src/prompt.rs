//! Weights in a prompt, in the syntax of AUTOMATIC1111's web UI: `(text)` has weight 1.1, `[text]` 1/1.1, `(text:1.3)` 1.3. Nested
//! brackets multiply. `\(`, `\)`, `\[`, `\]` and `\\` are the characters themselves. A bracket that is not closed extends to the end.
//! A closing bracket without an opening one is text. A number is what Python takes for one, with the digits of any script.
//!
//! Not supported, and read as text: `BREAK`, prompt editing and alternation (`[a:b:0.5]`, `[a|b]`).
//!
//! A long prompt is read in chunks of 75 tokens. The text encoder reads each by itself, and the UNet reads all of them one after the other.

pub mod inversion;
pub mod tokenizer;
mod weight;

use crate::error::{PipelineError, Result};
use serde::Deserialize;
use std::{fmt, str::FromStr};
use tokenizer::{Tokenizer, Tokens};
use weight::closing_weight;

/// The most chunks of a long prompt. Each takes 7.7 MB of GPU memory for a picture in f16, with guidance (keys and values of 77 tokens in
/// the UNet of Stable Diffusion 1.5), and lengthens the attention to the prompt in every step.
pub const MAX_CHUNKS: usize = 8;

/// The weight of a round bracket without a number. A square one has the reciprocal.
const EMPHASIS: f64 = 1.1;

/// Whether brackets in a prompt are weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Weighting {
    /// Brackets are text, as in diffusers.
    #[default]
    None,
    /// Brackets are weights, as in AUTOMATIC1111's web UI.
    A1111,
}

impl Weighting {
    /// The names in a request, for an error or a help text.
    pub const NAMES: &'static str = "none, a1111";

    /// The tokens of a prompt with their weights, cut off at the encoder's longest sequence. `field` names the prompt in an error.
    ///
    /// # Errors
    /// A weight that is not a number.
    pub fn tokens(self, tokenizer: &Tokenizer, field: &'static str, prompt: &str) -> Result<Tokens> {
        tokenizer.encode_weighted(&self.fragments(field, prompt)?)
    }

    /// As [`Weighting::tokens`], in as many chunks as the prompt needs.
    ///
    /// # Errors
    /// A weight that is not a number, or more than [`MAX_CHUNKS`].
    pub fn chunks(self, tokenizer: &Tokenizer, field: &'static str, prompt: &str) -> Result<Vec<Tokens>> {
        let fragments = self.fragments(field, prompt)?;
        let chunks = tokenizer.encode_in_chunks(&fragments)?;
        if chunks.len() > MAX_CHUNKS {
            let room = tokenizer.room();
            let value = format!("a text of {} tokens", tokenizer.count(&fragments)?);
            let limit =
                format!("a long prompt has at most {} tokens: {MAX_CHUNKS} chunks of {room}", MAX_CHUNKS * room);
            return Err(PipelineError::Request { field, value, limit });
        }
        Ok(chunks)
    }

    fn fragments(self, field: &'static str, prompt: &str) -> Result<Vec<Fragment>> {
        let limit = "a weight is one number, as in (text:1.3)".to_string();
        let value = "a text with a weight that is no number".to_string();
        match self {
            Self::None => Ok(vec![(prompt.to_string(), 1.0)]),
            Self::A1111 => fragments(prompt).ok_or(PipelineError::Request { field, value, limit }),
        }
    }
}

impl FromStr for Weighting {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "none" => Ok(Self::None),
            "a1111" => Ok(Self::A1111),
            _ => Err(format!("unknown weighting, known: {}", Self::NAMES)),
        }
    }
}

impl fmt::Display for Weighting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::A1111 => "a1111",
        })
    }
}

/// A part of a prompt without its brackets, with its weight.
pub type Fragment = (String, f64);

/// Splits a prompt at its brackets. Neighbours with the same weight are one fragment. `None` if a weight is not a number.
pub fn fragments(prompt: &str) -> Option<Vec<Fragment>> {
    let mut fragments: Vec<Fragment> = Vec::new();
    let (mut round, mut square) = (Vec::new(), Vec::new());
    let mut rest = prompt;
    while let Some(first) = rest.chars().next() {
        let mut taken = first.len_utf8();
        match first {
            '\\' => {
                let escaped = rest[1..].chars().next().filter(|next| "()[]\\".contains(*next));
                taken += escaped.map_or(0, char::len_utf8);
                fragments.push((escaped.map(String::from).unwrap_or_default(), 1.0));
            }
            '(' => round.push(fragments.len()),
            '[' => square.push(fragments.len()),
            ')' if !round.is_empty() => multiply(&mut fragments, round.pop(), EMPHASIS),
            ']' if !square.is_empty() => multiply(&mut fragments, square.pop(), EMPHASIS.recip()),
            ':' if !round.is_empty() && closing_weight(rest).is_some() => {
                let (length, number) = closing_weight(rest)?;
                taken = length;
                multiply(&mut fragments, round.pop(), number.parse().ok().filter(|weight: &f64| weight.is_finite())?);
            }
            _ => {
                let more = rest[taken..].find(['\\', '(', ')', '[', ']', ':']).unwrap_or(rest.len() - taken);
                taken += if "()[]:".contains(first) { 0 } else { more };
                fragments.push((rest[..taken].to_string(), 1.0));
            }
        }
        rest = &rest[taken..];
    }
    round.into_iter().for_each(|start| multiply(&mut fragments, Some(start), EMPHASIS));
    square.into_iter().for_each(|start| multiply(&mut fragments, Some(start), EMPHASIS.recip()));
    Some(joined(fragments))
}

fn multiply(fragments: &mut [Fragment], start: Option<usize>, factor: f64) {
    fragments.iter_mut().skip(start.unwrap_or(usize::MAX)).for_each(|(_, weight)| *weight *= factor);
}

fn joined(fragments: Vec<Fragment>) -> Vec<Fragment> {
    let mut joined: Vec<Fragment> = Vec::with_capacity(fragments.len());
    for (text, weight) in fragments {
        match joined.last_mut() {
            Some((before, same)) if *same == weight => before.push_str(&text),
            _ => joined.push((text, weight)),
        }
    }
    joined
}

#[cfg(test)]
mod tests;
