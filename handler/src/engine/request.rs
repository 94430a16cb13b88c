//! What goes into the engine and what comes out: a request, its pictures, their files. Making files needs no model.

use crate::{
    observe::trace::{Stage, StageTime},
    picture::{
        self, Credential, CredentialError, EmbedError, EncodeError, ModelName, PictureOrigin, Provenance,
        options::PictureConfig,
        signature::{self, SignatureError, sign},
    },
    task::{Checked, Format, SafetyMode, Warning, signature::Signature},
};
use diffusion::{
    error::PipelineError,
    lora::{AppliedLora, LoraError},
    pipeline::Request,
    prompt::inversion::{AppliedInversion, InversionError},
};
use image::RgbImage;
use std::{mem, ops::ControlFlow, sync::Arc};
use tracing::Span;

/// Pictures to paint, and how to make their files.
pub struct GenerationRequest {
    /// What the pipeline gets: prompt, size, steps and so on.
    pub inputs: Request,
    /// How many pictures of the seed.
    pub images: usize,
    /// Where in the prompt each tag ends, in bytes; empty if it is not made of tags.
    pub tag_ends: Vec<usize>,
    /// LoRAs to apply.
    pub loras: Vec<AppliedLora>,
    /// Textual inversions, for both prompts.
    pub inversions: Vec<AppliedInversion>,
    /// Whether small pictures of the painting will be asked for.
    pub previews: bool,
    /// The safety mode that must hold at least; by default the engine's.
    pub safety: Option<SafetyMode>,
    /// The artist's name and how it is drawn.
    pub signature: Option<(String, Signature)>,
    /// File format.
    pub format: Format,
    /// How the files are written.
    pub file: PictureConfig,
    /// What the files say of the task.
    pub origin: PictureOrigin,
    /// Signs the files with Content Credentials, if there is a certificate.
    pub credential: Option<Arc<Credential>>,
    /// The task's span, parent of its stages; none in the shell.
    pub span: Span,
}

/// Progress of one attempt. An attempt paints all pictures at once or, if memory is short, in several parts, one after the other. An
/// attempt that fails may be followed by another, which begins at the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Finished steps of this part, from 0 to all.
    pub finished: usize,
    /// The part, from 0.
    pub part: usize,
    /// Parts of the attempt.
    pub parts: usize,
    /// Pictures of the batch, those of other requests included.
    pub pictures: usize,
}

/// Gives a small picture of what is painted so far, of the request's first picture. `None` if there is nothing to see, or the request asks
/// for no previews.
pub type Preview<'a> = dyn FnMut() -> Option<RgbImage> + 'a;

/// Called before the first step of each part and after each step; may stop the painting.
pub type OnStep<'a> = dyn FnMut(Step, &mut Preview<'_>) -> ControlFlow<()> + 'a;

/// A request of a batch, with its callback.
pub type BatchItem<'a> = (&'a GenerationRequest, &'a mut OnStep<'a>);

/// The painted pictures of a request, not yet signed or encoded.
pub struct Pictures {
    /// The pixels; black where they are not to be seen.
    pub pictures: Vec<RgbImage>,
    /// What the safety checker said of each picture; empty if no check was made.
    pub checked: Vec<Checked>,
    /// The model that painted them.
    pub model: ModelName,
    /// What the request asks for and did not get.
    pub warnings: Vec<Warning>,
    /// Stages in order, with their names.
    pub stages: Vec<StageTime>,
}

/// The files of a request.
pub struct Output {
    /// One file per picture.
    pub files: Vec<Vec<u8>>,
    /// What the safety checker said of each picture; empty if no check was made.
    pub checked: Vec<Checked>,
    /// Stages in order, with their names.
    pub stages: Vec<StageTime>,
}

/// Why a request has no files.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A LoRA does not fit the model.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// A textual inversion does not fit the model.
    #[error(transparent)]
    Inversion(#[from] InversionError),
    /// The pipeline failed.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The safety checker flagged pictures, and the mode is refuse.
    #[error(
        "the safety checker flagged {flagged} of {pictures} pictures as not safe for work, and the safety mode is refuse: no picture of this \
         task is stored; ask for another picture, by the prompt or the seed"
    )]
    Nsfw {
        /// How many it flagged.
        flagged: usize,
        /// Of how many.
        pictures: usize,
    },
    /// The name cannot be drawn.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The picture could not be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The metadata could not be written.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// The Content Credentials could not be written.
    #[error(transparent)]
    Credential(#[from] CredentialError),
}

impl EngineError {
    /// Whether the device ran out of memory.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Lora(error) => error.is_out_of_memory(),
            Self::Pipeline(error) => error.is_out_of_memory(),
            _ => false,
        }
    }

    /// Whether the request itself is wrong, so that a retry would fail the same way.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Lora(error) => error.is_permanent(),
            Self::Inversion(error) => error.is_permanent(),
            Self::Nsfw { .. } | Self::Signature(_) | Self::Pipeline(PipelineError::Request { .. }) => true,
            Self::Pipeline(_) | Self::Encode(_) | Self::Embed(_) | Self::Credential(_) => false,
        }
    }
}

impl GenerationRequest {
    /// Plain pictures: no LoRA, no signature, no credential, in the default format.
    pub fn new(inputs: Request, images: usize) -> Self {
        Self {
            images,
            tag_ends: Vec::new(),
            loras: Vec::new(),
            inversions: Vec::new(),
            previews: false,
            safety: None,
            signature: None,
            format: Format::default(),
            file: PictureConfig::default(),
            origin: PictureOrigin { seed: inputs.seed.into(), ..PictureOrigin::default() },
            credential: None,
            span: Span::none(),
            inputs,
        }
    }

    /// Whether both can be in one batch.
    pub fn goes_with(&self, other: &Self) -> bool {
        let same = self.images == other.images && self.loras == other.loras && self.inversions == other.inversions;
        same && self.inputs.goes_with(&other.inputs)
    }

    /// Checks before the painting that the signature can be drawn.
    ///
    /// # Errors
    /// It cannot.
    pub fn check(&self) -> Result<(), SignatureError> {
        let Some((name, options)) = &self.signature else { return Ok(()) };
        signature::check((self.inputs.width as u32, self.inputs.height as u32), name, options)
    }

    /// Makes the files: draws the signature, encodes, writes the metadata and then the credential.
    ///
    /// # Errors
    /// The first of these that fails. No file is made of pictures that are refused.
    pub fn finish(&self, pictures: Pictures) -> Result<Output, EngineError> {
        let Pictures { mut pictures, checked, model, stages, .. } = pictures;
        let flagged = checked.iter().filter(|each| each.nsfw && each.mode == SafetyMode::Refuse).count();
        if flagged > 0 {
            return Err(EngineError::Nsfw { flagged, pictures: pictures.len() });
        }
        let mut timer = StageTimer::start("sign", vec![self.span.clone()], stages);
        if let Some((name, options)) = &self.signature {
            for picture in &mut pictures {
                sign(picture, name, options)?;
            }
        }
        timer.next("encode");
        let encode = |picture| picture::encode(picture, self.format, &self.file);
        let files = pictures.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
        timer.next("metadata");
        let images = files.len();
        let provenance = |index| Provenance {
            origin: &self.origin,
            artist: self.signature.as_ref().map(|(name, _)| name.as_str()),
            model: &model,
            loras: &self.loras,
            inversions: &self.inversions,
            request: &self.inputs,
            image: (index + 1, images),
            checked: checked.get(index).copied(),
            prompts: self.file.metadata_prompt,
        };
        let files = files.into_iter().enumerate();
        let files = files.map(|(index, file)| picture::embed(file, self.format, &provenance(index)));
        let mut files: Vec<Vec<u8>> = files.collect::<Result<_, _>>()?;
        if let Some(credential) = &self.credential {
            timer.next("credential");
            for (index, file) in files.iter_mut().enumerate() {
                *file = credential.sign(mem::take(file), self.format, &provenance(index))?;
            }
        }
        Ok(Output { files, checked, stages: timer.finish() })
    }
}

/// Measures the stages of one or several tasks, one after the other.
pub(super) struct StageTimer {
    tasks: Vec<Span>,
    now: Stage,
    past: Vec<StageTime>,
}

impl StageTimer {
    /// Starts with a stage; `past` are the stages before it.
    pub(super) fn start(stage: &'static str, tasks: Vec<Span>, past: Vec<StageTime>) -> Self {
        Self { now: Stage::of(stage, &tasks), tasks, past }
    }

    /// Ends the current stage and starts the next.
    pub(super) fn next(&mut self, stage: &'static str) {
        let next = Stage::of(stage, &self.tasks);
        self.past.push(mem::replace(&mut self.now, next).end());
    }

    /// Ends the last stage and returns all.
    pub(super) fn finish(mut self) -> Vec<StageTime> {
        self.past.push(self.now.end());
        self.past
    }
}
