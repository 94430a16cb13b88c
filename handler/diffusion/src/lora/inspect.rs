//! A report about a LoRA file: what is in it, and whether it would load.

use super::{BaseModel, KeyLayout, Lora, LoraError, Misfit, Target, change::Kind, files::Files, keys::Component};
use serde::Serialize;
use std::{
    collections::BTreeSet,
    fmt,
    path::{Path, PathBuf},
};

/// What is in a LoRA file. Its JSON is stable: fields are added, never renamed.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The file.
    pub file: PathBuf,
    /// Its length in bytes.
    pub bytes: u64,
    /// The model it was checked against.
    pub model: Option<PathBuf>,
    /// Whether a task with it would be painted.
    pub would_load: bool,
    /// Why not, in one sentence.
    pub refusal: Option<String>,
    /// Any of lora, locon, loha, lokr, glora, ia3, oft, boft, olora, full, dora.
    pub formats: Vec<&'static str>,
    /// Whose names the keys have.
    pub layouts: Vec<KeyLayout>,
    /// The number of tensors in the file.
    pub tensors: usize,
    /// The ranks of its products.
    pub rank: Option<Range>,
    /// The alphas, of its tensors or of its settings. None: the rank is taken.
    pub alpha: Option<Range>,
    /// What its products are multiplied with, at scale 1.
    pub scale: Option<Range>,
    /// Where the settings of peft are: `lora_adapter_metadata` or `adapter_config.json`.
    pub settings: Option<&'static str>,
    /// What is no error, and good to know.
    pub notes: Vec<String>,
    /// The base model it was made for.
    pub base: Option<BaseModel>,
    /// The key or metadata field that shows the base model.
    pub base_sign: Option<String>,
    /// How many modules it changes.
    pub modules: ModuleCounts,
    /// Every key that cannot be used.
    pub misfits: Vec<Misfit>,
}

/// The smallest and the largest of several numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Range {
    /// The smallest.
    pub least: f64,
    /// The largest.
    pub most: f64,
}

/// How many modules are changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ModuleCounts {
    /// In the UNet.
    pub unet: usize,
    /// In the text encoder.
    pub text_encoder: usize,
}

impl Report {
    /// Reads a file or the file of a folder, with the `adapter_config.json` beside it, and the headers of a model folder if one is given.
    ///
    /// # Errors
    /// A file or model folder that cannot be read. A LoRA that would not load is no error: the report says why.
    pub fn of_file(file: &Path, model: Option<&Path>) -> Result<Self, LoraError> {
        let Files { path, file: mut source, config } = Files::open(file)?;
        let bytes = source.metadata()?.len();
        let target = model.map(Target::of_folder).transpose()?;
        let mut report = Self {
            file: path,
            bytes,
            model: model.map(Path::to_path_buf),
            would_load: false,
            refusal: None,
            formats: Vec::new(),
            layouts: Vec::new(),
            tensors: 0,
            rank: None,
            alpha: None,
            scale: None,
            settings: None,
            notes: Vec::new(),
            base: None,
            base_sign: None,
            modules: ModuleCounts::default(),
            misfits: Vec::new(),
        };
        let refusal = match Lora::parse(&mut source, config.as_deref()) {
            Ok(lora) => report.describe(lora, target.as_ref()),
            Err(error) => Some(error),
        };
        if let Some(error) = refusal {
            if !error.is_permanent() {
                return Err(error);
            }
            report.refusal = Some(error.to_string());
        }
        report.would_load = report.refusal.is_none();
        Ok(report)
    }

    /// Fills in the fields. Returns the error with which the file would be refused.
    fn describe(&mut self, lora: Lora, target: Option<&Target>) -> Option<LoraError> {
        self.tensors = lora.info.tensors;
        self.layouts.clone_from(&lora.info.layouts);
        (self.base, self.base_sign) = lora.info.base.clone().unzip();
        let changes = || lora.layers.iter().flat_map(|layer| layer.weight.iter().chain(&layer.bias));
        let mut formats = BTreeSet::new();
        for change in changes() {
            formats.insert(match &change.kind {
                Kind::LowRank(product) | Kind::Residual(product, _)
                    if product.tail().iter().skip(1).any(|&side| side > 1) =>
                {
                    "locon"
                }
                Kind::LowRank(_) | Kind::Residual(..) => "lora",
                Kind::Olora(_) => "olora",
                Kind::Glora(..) => "glora",
                Kind::Rotated(rotation) if rotation.is_butterfly() => "boft",
                Kind::Rotated(_) => "oft",
                Kind::Hadamard(..) => "loha",
                Kind::Kronecker(..) => "lokr",
                Kind::Scaled(_) => "ia3",
                Kind::Difference(_) => "full",
            });
            formats.extend(change.magnitude.as_ref().map(|_| "dora"));
        }
        self.formats = formats.into_iter().collect();
        self.rank = Range::of(changes().filter_map(|change| change.rank()).map(|rank| rank as f64));
        self.alpha = Range::of(lora.layers.iter().filter_map(|layer| layer.alpha));
        self.scale = Range::of(changes().filter(|change| change.kind.has_scale()).map(|change| change.factor));
        self.settings = lora.info.settings;
        self.notes = lora.notes();
        let count = |component| lora.layers.iter().filter(|layer| layer.component == component).count();
        self.modules = ModuleCounts { unet: count(Component::Unet), text_encoder: count(Component::TextEncoder) };
        self.misfits.clone_from(&lora.misfits);
        if let Some(target) = target {
            self.misfits.extend(lora.try_fit(target).1);
        }
        match (lora.validated(), target) {
            (Err(error), _) => Some(error),
            (Ok(lora), Some(target)) => lora.fit(target).err(),
            (Ok(_), None) => None,
        }
    }
}

impl Range {
    fn of(numbers: impl Iterator<Item = f64>) -> Option<Self> {
        numbers.fold(None, |range, number| {
            let Self { least, most } = range.unwrap_or(Self { least: number, most: number });
            Some(Self { least: least.min(number), most: most.max(number) })
        })
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.least == self.most { self.least.fmt(f) } else { write!(f, "{} to {}", self.least, self.most) }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "file      {}, {} bytes, {} tensors", self.file.display(), self.bytes, self.tensors)?;
        let layouts: Vec<String> = self.layouts.iter().map(|layout| format!("{layout:?}").to_lowercase()).collect();
        let or_none = |texts: String| if texts.is_empty() { "none known".to_string() } else { texts };
        writeln!(f, "format    {}", or_none(self.formats.join(", ")))?;
        writeln!(f, "layout    {}", or_none(layouts.join(", ")))?;
        let shown = |range: Option<Range>, none: &str| range.map_or(none.to_string(), |range| range.to_string());
        writeln!(f, "rank      {}", shown(self.rank, "none"))?;
        let taken = if self.rank.is_some() { "not named, the rank is taken" } else { "none" };
        let source = self.settings.map_or(String::new(), |source| format!(", with the settings of {source}"));
        writeln!(f, "alpha     {}{source}", shown(self.alpha, taken))?;
        writeln!(f, "scale     {}", shown(self.scale, "none"))?;
        match (self.base, &self.base_sign) {
            (Some(base), Some(sign)) => writeln!(f, "made for  {base}: {sign}")?,
            _ => writeln!(f, "made for  the file does not tell")?,
        }
        let ModuleCounts { unet, text_encoder } = self.modules;
        writeln!(f, "modules   {unet} of the UNet, {text_encoder} of the text encoder")?;
        match (&self.refusal, &self.model) {
            (Some(refusal), _) => write!(f, "loads     no: {refusal}")?,
            (None, Some(model)) => write!(f, "loads     yes, onto {}", model.display())?,
            (None, None) => write!(f, "loads     yes, as far as the file tells; --model checks it against a model")?,
        }
        self.notes.iter().try_for_each(|note| write!(f, "\nnote      {note}"))?;
        self.misfits.iter().try_for_each(|Misfit { key, reason }| write!(f, "\nmisfit    {key}: {reason}"))
    }
}
