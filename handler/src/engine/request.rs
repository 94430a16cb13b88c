//! What the engine is asked for and gives: requests, pictures, files. Signing and encoding need no model.

use crate::{
    observe::trace::{Lap, Stage},
    picture::{
        self, Credential, CredentialError, EmbedError, EncodeError, ModelName, PictureOrigin, Provenance,
        options::PictureConfig,
        signature::{self, SignatureError, sign},
    },
    task::{Format, signature::Signature},
};
use diffusion::{
    error::PipelineError,
    lora::{AppliedLora, LoraError},
    pipeline::Request,
};
use image::RgbImage;
use std::{mem, ops::ControlFlow, sync::Arc};
use tracing::Span;

/// What to paint, and how to deliver it.
pub struct GenerationRequest {
    /// What to paint.
    pub request: Request,
    /// How many pictures of the request's seed.
    pub images: usize,
    /// LoRAs to apply.
    pub loras: Vec<AppliedLora>,
    /// The artist's name and how to sign with it.
    pub signature: Option<(String, Signature)>,
    /// File format.
    pub format: Format,
    /// How the file is written.
    pub file: PictureConfig,
    /// What the file says beside that.
    pub origin: PictureOrigin,
    /// What signs the file, if anything does.
    pub credential: Option<Arc<Credential>>,
    /// The task whose stages these are; none in the shell.
    pub span: Span,
}

/// How far a try at painting is. A try paints its pictures at once or, where memory does not suffice for that, in several parts, one after
/// the other. One that fails may be followed by another, which begins anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Steps of this part that are finished: first none, and at last all.
    pub finished: usize,
    /// Which part, from 0 on.
    pub part: usize,
    /// Parts of the try.
    pub parts: usize,
    /// Pictures that are painted at once, those of other requests too.
    pub pictures: usize,
}

/// What is called before the first step of each part of a try and after each step, and may stop the painting.
pub type OnStep<'a> = dyn FnMut(Step) -> ControlFlow<()> + 'a;

/// A request, and what is called with its steps.
pub type Order<'a> = (&'a GenerationRequest, &'a mut OnStep<'a>);

/// Pictures of a request, neither signed nor encoded, and how long each stage took.
pub struct Painted {
    /// The pictures.
    pub pictures: Vec<RgbImage>,
    /// What painted them.
    pub model: ModelName,
    /// Stages in order, with their names.
    pub stages: Vec<Lap>,
}

/// Encoded pictures and how long each stage took.
pub struct Output {
    /// One file per picture.
    pub files: Vec<Vec<u8>>,
    /// Stages in order, with their names.
    pub stages: Vec<Lap>,
}

/// Why a request was not painted.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A LoRA does not fit.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// The pipeline failed.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The name cannot be drawn.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The picture could not be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The picture's file could not be told where it comes from.
    #[error(transparent)]
    Embed(#[from] EmbedError),
    /// The picture's file could not be signed.
    #[error(transparent)]
    Credential(#[from] CredentialError),
}

impl EngineError {
    /// Whether the device's memory did not suffice.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Lora(error) => error.is_out_of_memory(),
            Self::Pipeline(error) => error.is_out_of_memory(),
            _ => false,
        }
    }

    /// Whether the request itself is at fault, so that trying again would end the same way.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Lora(error) => error.is_permanent(),
            Self::Signature(_) | Self::Pipeline(PipelineError::Request { .. }) => true,
            Self::Pipeline(_) | Self::Encode(_) | Self::Embed(_) | Self::Credential(_) => false,
        }
    }
}

impl GenerationRequest {
    /// Plain pictures: no LoRA, no signature, no credential, and in the default format.
    pub fn new(request: Request, images: usize) -> Self {
        Self {
            images,
            loras: Vec::new(),
            signature: None,
            format: Format::default(),
            file: PictureConfig::default(),
            origin: PictureOrigin { seed: request.seed.into(), ..PictureOrigin::default() },
            credential: None,
            span: Span::none(),
            request,
        }
    }

    /// Whether both can be painted at once.
    pub fn goes_with(&self, other: &Self) -> bool {
        self.images == other.images && self.loras == other.loras && self.request.goes_with(&other.request)
    }

    /// Whether the picture can be signed, to be known before it is painted.
    ///
    /// # Errors
    /// A name that cannot be drawn.
    pub fn check(&self) -> Result<(), SignatureError> {
        let Some((name, options)) = &self.signature else { return Ok(()) };
        signature::check((self.request.width as u32, self.request.height as u32), name, options)
    }

    /// Signs, encodes, writes the metadata and then the credential, which needs no model.
    ///
    /// # Errors
    /// A name that cannot be drawn, or a picture that cannot be encoded or be given a credential.
    pub fn finish(&self, painted: Painted) -> Result<Output, EngineError> {
        let Painted { mut pictures, model, stages } = painted;
        let mut watch = Watch::start("sign", vec![self.span.clone()], stages);
        if let Some((name, options)) = &self.signature {
            for picture in &mut pictures {
                sign(picture, name, options)?;
            }
        }
        watch.then("encode");
        let encode = |picture| picture::encode(picture, self.format, &self.file);
        let files = pictures.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
        watch.then("metadata");
        let images = files.len();
        let provenance = |index| Provenance {
            origin: &self.origin,
            artist: self.signature.as_ref().map(|(name, _)| name.as_str()),
            model: &model,
            loras: &self.loras,
            request: &self.request,
            image: (index + 1, images),
            prompts: self.file.metadata_prompt,
        };
        let told = files.into_iter().enumerate();
        let told = told.map(|(index, file)| picture::embed(file, self.format, &provenance(index)));
        let mut files: Vec<Vec<u8>> = told.collect::<Result<_, _>>()?;
        if let Some(credential) = &self.credential {
            watch.then("credential");
            for (index, file) in files.iter_mut().enumerate() {
                *file = credential.sign(mem::take(file), self.format, &provenance(index))?;
            }
        }
        Ok(Output { files, stages: watch.stop() })
    }
}

/// Measures one stage after the other.
pub(super) struct Watch {
    tasks: Vec<Span>,
    now: Stage,
    past: Vec<Lap>,
}

impl Watch {
    /// Begins the first stage, after those that are past.
    pub(super) fn start(stage: &'static str, tasks: Vec<Span>, past: Vec<Lap>) -> Self {
        Self { now: Stage::of(stage, &tasks), tasks, past }
    }

    /// Ends a stage and begins the next.
    pub(super) fn then(&mut self, stage: &'static str) {
        let next = Stage::of(stage, &self.tasks);
        self.past.push(mem::replace(&mut self.now, next).end());
    }

    /// Ends the last stage; all of them.
    pub(super) fn stop(mut self) -> Vec<Lap> {
        self.past.push(self.now.end());
        self.past
    }
}
