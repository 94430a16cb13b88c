//! What to paint.

use crate::{
    error::{PipelineError, Result},
    noise, prompt, schedulers,
};
use image::RgbImage;
use std::sync::Arc;

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
    /// The picture to begin from. Without it, a run begins from noise.
    pub start: Option<StartImage>,
}

/// A picture to begin from, and how far the run goes from it.
#[derive(Debug, Clone)]
pub struct StartImage {
    /// Of any size: it is scaled until it fills the picture's, and what is over on two sides is cut off.
    pub picture: Arc<RgbImage>,
    /// The share of the steps that are painted, above 0 and up to 1, as diffusers' `strength`: the noise that is added is that of the first
    /// of them.
    pub strength: f64,
}

/// How many steps are painted from a picture, of all: the first ones are left out.
pub fn steps_of_strength(steps: usize, strength: f64) -> usize {
    // As Python's `int`, which cuts off.
    ((steps as f64 * strength) as usize).min(steps)
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
            start: None,
        }
    }

    /// How many steps are painted: all, or those that are left where a run begins from a picture.
    pub fn painted_steps(&self) -> usize {
        self.start.as_ref().map_or(self.steps, |start| steps_of_strength(self.steps, start.strength))
    }

    /// The number of the first step that is painted.
    ///
    /// # Errors
    /// None is left.
    pub(super) fn first_step(&self) -> Result<usize> {
        let Some(start) = &self.start else { return Ok(0) };
        let in_range = start.strength > 0.0 && start.strength <= 1.0;
        match self.painted_steps() {
            painted if in_range && painted > 0 => Ok(self.steps - painted),
            _ => {
                let limit = format!("it must leave one of the {} steps and be at most 1", self.steps);
                Err(PipelineError::Request { field: "strength", value: start.strength.to_string(), limit })
            }
        }
    }

    /// Whether both can be painted at once, as one batch. Not with a scheduler that draws noise at its steps, because it would draw for
    /// all pictures from one stream. Long prompts must have as many chunks, too: see [`Pipeline::chunks`](super::Pipeline::chunks).
    pub fn goes_with(&self, other: &Self) -> bool {
        let shared = |request: &Self| {
            let Self { width, height, steps, scheduler, karras_sigmas, clip_skip, .. } = *request;
            // Those that begin from pictures begin at the same step.
            let strength = request.start.as_ref().map(|start| start.strength.to_bits());
            (width, height, steps, scheduler, karras_sigmas, clip_skip, request.guidance_scale.to_bits(), strength)
        };
        !self.scheduler.draws() && shared(self) == shared(other)
    }
}
