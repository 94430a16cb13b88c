//! peft's adapter settings: in the file's metadata, where diffusers puts them, or in `adapter_config.json` beside it. A setting that
//! would change the picture and is not used is an error.

mod fields;

use super::{error::Misfit, keys::Component};
use fields::{Document, Field};
#[cfg(test)]
pub(super) use fields::{Meaning, meaning};
use regex::{Regex, RegexBuilder};
use serde_json::{Map, Value};
use std::collections::HashMap;

/// The longest pattern for module names, in bytes.
const MAX_PATTERN_LENGTH: usize = 1000;
/// The most patterns of one field. SD1.5's UNet has fewer modules.
const MAX_PATTERNS: usize = 1000;
/// The most memory for one compiled pattern, and for matching it, in bytes. A few characters can ask for megabytes.
const MAX_COMPILED: usize = 64 << 10;
/// The most terms of the series in OFT. Each is a product of matrices.
const MAX_TERMS: f64 = 64.0;
/// The name of peft's file.
pub(super) const CONFIG: &str = "adapter_config.json";
/// The field of the metadata in which diffusers stores the settings.
const METADATA: &str = "lora_adapter_metadata";

/// The settings of both components. Empty if there are none.
#[derive(Debug, Default)]
pub(super) struct Settings {
    adapters: HashMap<Component, Adapter>,
    /// Where they are: `lora_adapter_metadata` or `adapter_config.json`.
    pub source: Option<&'static str>,
}

/// The settings of one component. None of a field: the settings do not name it.
#[derive(Debug, Default)]
pub(super) struct Adapter {
    /// `peft_type`.
    method: Option<Method>,
    /// `lora_alpha`, or `alpha` of LoHa and LoKr, and of some modules.
    alpha: ByModule,
    /// `r`, and of some modules.
    rank: ByModule,
    /// Rank-stabilised LoRA (Kalajdzievski, 2023): alpha is divided by the square root of the rank.
    rank_stabilised: bool,
    /// Whether it is a DoRA.
    pub dora: Option<bool>,
    /// What the LoRA is relative to.
    pub start: Start,
    /// IA3: the modules whose inputs are scaled, not their outputs.
    feedforward: Option<Vec<Regex>>,
    pub oft: Option<Oft>,
}

/// A number for all modules, and others by a pattern for the end of a module's name. The first pattern that matches counts.
#[derive(Debug, Default)]
struct ByModule {
    usual: Option<f64>,
    patterns: Vec<(Regex, f64)>,
}

/// A method of peft that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Lora,
    Loha,
    Lokr,
    Ia3,
    Oft,
    Boft,
}

/// The weight that a LoRA is relative to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Start {
    /// The model's.
    #[default]
    Base,
    /// The model's without what OLoRA begins with (Büyükakyüz, 2024).
    Olora,
}

/// What peft's OFT needs besides its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Oft {
    /// Constrained OFT: the largest norm of a block, times the square root of their number.
    pub most: Option<f64>,
    /// The terms of the Neumann series in place of the inverse.
    pub terms: Option<usize>,
}

impl Default for Oft {
    /// peft's defaults.
    fn default() -> Self {
        Self { most: None, terms: Some(5) }
    }
}

impl Settings {
    /// Reads them from a file's metadata, else from `config`, the text of the `adapter_config.json` beside it.
    ///
    /// # Errors
    /// The JSON does not parse, a field has a wrong type, a pattern is no regular expression or exceeds a limit, or a field would
    /// change the picture and is not supported.
    pub(super) fn read(metadata: &HashMap<String, String>, config: Option<&str>) -> Result<Self, Misfit> {
        let (source, text) = match (metadata.get(METADATA), config) {
            (Some(text), _) => (METADATA, text.as_str()),
            (None, Some(text)) => (CONFIG, text),
            (None, None) => return Ok(Self::default()),
        };
        let fault = |reason: String| match source {
            METADATA => Misfit::new("__metadata__", format!("its metadata `{METADATA}`: {reason}")),
            _ => Misfit::new(CONFIG, reason),
        };
        let document = serde_json::from_str(text).map_err(|error| fault(error.to_string()))?;
        let mut adapters = HashMap::new();
        for (component, fields) in Document::split(document).map_err(fault)? {
            adapters.insert(component, Adapter::read(&fields).map_err(fault)?);
        }
        Ok(Self { adapters, source: Some(source) })
    }

    /// The settings of a component, if there are any.
    pub(super) fn of(&self, component: Component) -> Option<&Adapter> {
        self.adapters.get(&component)
    }
}

impl Adapter {
    fn read(fields: &Map<String, Value>) -> Result<Self, String> {
        for (name, value) in fields {
            fields::check(name, value)?;
        }
        let field = |name: &'static str| Field { name, value: fields.get(name).filter(|value| !value.is_null()) };
        let method = field("peft_type").text()?.map(Method::named).transpose()?;
        let alpha = match method {
            None | Some(Method::Lora) => field("lora_alpha").number()?,
            _ => field("alpha").number()?,
        };
        if field("init_lora_weights").text()?.is_some_and(|start| start == "olora")
            && field("use_dora").truth()?.unwrap_or(false)
        {
            return Err("`use_dora` together with OLoRA is not supported".into());
        }
        let coft = field("coft").truth()?.unwrap_or(false);
        let most = field("eps").number()?.unwrap_or(6e-5);
        let series = field("use_cayley_neumann").truth()?.unwrap_or(true);
        let terms = field("num_cayley_neumann_terms").number()?.unwrap_or(5.0);
        if !(1.0..=MAX_TERMS).contains(&terms) || terms.fract() != 0.0 {
            return Err(format!("`num_cayley_neumann_terms` is {terms}; 1 to {MAX_TERMS} terms are supported"));
        }
        if method == Some(Method::Oft) && series && !fields::is_since_0_18(field("peft_version").text()?) {
            return Err(
                "OFT of peft before version 0.18 with `use_cayley_neumann` is not supported: its series was another"
                    .into(),
            );
        }
        Ok(Self {
            method,
            alpha: ByModule { usual: alpha, patterns: field("alpha_pattern").patterns()? },
            rank: ByModule { usual: field("r").number()?, patterns: field("rank_pattern").patterns()? },
            rank_stabilised: field("use_rslora").truth()?.unwrap_or(false),
            dora: field("use_dora").truth()?,
            start: match field("init_lora_weights").text()? {
                Some("olora") => Start::Olora,
                _ => Start::Base,
            },
            feedforward: field("feedforward_modules").names()?,
            oft: (method == Some(Method::Oft))
                .then_some(Oft { most: coft.then_some(most), terms: series.then_some(terms as usize) }),
        })
    }

    /// Checks that a module's tensors are of the method that the settings name.
    pub(super) fn expects(&self, method: Method) -> Result<(), String> {
        match self.method {
            Some(named) if named != method => {
                Err(format!("the settings are for {}, and this is {}", named.name(), method.name()))
            }
            _ => Ok(()),
        }
    }

    /// The alpha of a module.
    pub(super) fn alpha(&self, path: &str) -> Option<f64> {
        self.alpha.of(path)
    }

    /// The rank of a module.
    pub(super) fn rank(&self, path: &str) -> Option<f64> {
        self.rank.of(path)
    }

    /// What alpha is divided by.
    pub(super) fn divisor(&self, rank: f64) -> f64 {
        if self.rank_stabilised { rank.sqrt() } else { rank }
    }

    /// IA3: whether the inputs of that module are scaled.
    pub(super) fn scales_inputs(&self, path: &str) -> Option<bool> {
        (self.method == Some(Method::Ia3))
            .then(|| self.feedforward.iter().flatten().any(|pattern| pattern.is_match(path)))
    }
}

impl ByModule {
    fn of(&self, path: &str) -> Option<f64> {
        let own = self.patterns.iter().find(|(pattern, _)| pattern.is_match(path)).map(|(_, number)| *number);
        own.or(self.usual)
    }
}

impl Method {
    const ALL: [(&'static str, Self); 6] = [
        ("LORA", Self::Lora),
        ("LOHA", Self::Loha),
        ("LOKR", Self::Lokr),
        ("IA3", Self::Ia3),
        ("OFT", Self::Oft),
        ("BOFT", Self::Boft),
    ];

    fn named(name: &str) -> Result<Self, String> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name);
        found.map(|(_, method)| *method).ok_or_else(|| format!("`peft_type` {name} is not supported"))
    }

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, method)| *method == self).map_or("", |(name, _)| name)
    }
}

/// A pattern for module names that must match to the end, as in peft. `before` may stand before it.
fn compiled(before: &str, pattern: &str) -> Result<Regex, String> {
    if pattern.len() > MAX_PATTERN_LENGTH {
        return Err(format!("a pattern of {} bytes, the limit is {MAX_PATTERN_LENGTH}", pattern.len()));
    }
    RegexBuilder::new(&format!("^{before}(?:{pattern})$"))
        .size_limit(MAX_COMPILED)
        .dfa_size_limit(MAX_COMPILED)
        .build()
        .map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
