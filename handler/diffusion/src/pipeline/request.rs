//! What to paint.

use crate::{noise, prompt, schedulers};

/// A request for one or more pictures.
#[derive(Debug, Clone)]
pub struct Request {
    /// What the picture shows.
    pub prompt: String,
    /// What the picture must not show. May be empty.
    pub negative_prompt: String,
    /// Whether brackets in both prompts are weights.
    pub prompt_weighting: prompt::Weighting,
    /// Whether prompts of more tokens than the encoder reads at once are read in chunks. Without it, the rest is cut off.
    pub long_prompt: bool,
    /// How many of the text encoder's last layers the prompt skips, as diffusers' `clip_skip`: not the negative prompt. 0 for none.
    pub clip_skip: usize,
    /// Width in pixels, a multiple of 8.
    pub width: usize,
    /// Height in pixels, a multiple of 8.
    pub height: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// The number of denoising steps.
    pub steps: usize,
    /// Scale of classifier-free guidance (Ho & Salimans, "Classifier-free diffusion guidance", 2022). No guidance at 1 and below. A UNet
    /// with `time_cond_proj_dim` takes any scale as an input instead, and then no negative prompt.
    pub guidance_scale: f64,
    /// How the latents move from noise to picture.
    pub scheduler: schedulers::Kind,
    /// Whether to use the noise levels of Karras et al. Without it, the model's file decides.
    pub karras_sigmas: Option<bool>,
    /// The generator that draws the noise.
    pub noise_source: noise::Source,
}

impl Request {
    /// A prompt with the defaults of Stable Diffusion 1.5: 512x512, 50 steps of DPM-Solver++, guidance scale 7.5, seed 0.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            negative_prompt: String::new(),
            prompt_weighting: prompt::Weighting::None,
            long_prompt: false,
            clip_skip: 0,
            width: 512,
            height: 512,
            seed: 0,
            steps: 50,
            guidance_scale: 7.5,
            scheduler: schedulers::Kind::DpmSolverPlusPlus,
            karras_sigmas: None,
            noise_source: noise::Source::Cuda,
        }
    }

    /// Whether both can be painted at once, as one batch. Not with a scheduler that draws noise at its steps, because it would draw for
    /// all pictures from one stream. Long prompts must have as many chunks, too: see [`Pipeline::chunks`](super::Pipeline::chunks).
    pub fn goes_with(&self, other: &Self) -> bool {
        let shared = |request: &Self| {
            let Self { width, height, steps, scheduler, karras_sigmas, clip_skip, .. } = *request;
            (width, height, steps, scheduler, karras_sigmas, clip_skip, request.guidance_scale.to_bits())
        };
        !self.scheduler.draws() && shared(self) == shared(other)
    }
}
