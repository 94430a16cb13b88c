//! Weights in a prompt, in the syntax of AUTOMATIC1111's web UI: `(text)` has weight 1.1, `[text]` 1/1.1, `(text:1.3)` 1.3. Nested
//! brackets multiply. `\(`, `\)`, `\[`, `\]` and `\\` are the characters themselves. A bracket that is not closed extends to the end.
//! A closing bracket without an opening one is text. A number is what Python takes for one, with the digits of any script.
//!
//! Not supported, and read as text: `BREAK`, prompt editing and alternation (`[a:b:0.5]`, `[a|b]`), and prompts of more than one chunk.

pub mod inversion;
pub mod tokenizer;
mod weight;

use crate::error::{PipelineError, Result};
use serde::Deserialize;
use std::{fmt, str::FromStr};
use tokenizer::{Tokenizer, Tokens};
use weight::closing_weight;

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

    /// The tokens of a prompt with their weights. `field` names the prompt in an error.
    ///
    /// # Errors
    /// A weight that is not a number.
    pub fn tokens(self, tokenizer: &Tokenizer, field: &'static str, prompt: &str) -> Result<Tokens> {
        match self {
            Self::None => tokenizer.encode(prompt),
            Self::A1111 => {
                let limit = "a weight is one number, as in (text:1.3)".to_string();
                let value = "a text with a weight that is no number".to_string();
                let refused = || PipelineError::Request { field, value, limit };
                tokenizer.encode_weighted(&fragments(prompt).ok_or_else(refused)?)
            }
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
