//! What a task asks the batcher for.

use crate::{
    engine::GenerationRequest,
    picture::{Credential, PictureOrigin, options::PictureConfig},
    task::Task,
};
use diffusion::{lora::AppliedLora, pipeline::Request};
use std::sync::Arc;
use tracing::Span;

/// What a task asks for, with its LoRAs fetched.
pub(super) fn generation_request(
    task: &Task,
    loras: Vec<AppliedLora>,
    file: PictureConfig,
    credential: Option<Arc<Credential>>,
) -> GenerationRequest {
    GenerationRequest {
        request: Request {
            prompt: task.prompt.clone(),
            negative_prompt: task.negative_prompt.clone(),
            prompt_weighting: task.prompt_weighting,
            width: task.width,
            height: task.height,
            seed: task.seed_bits(),
            steps: task.steps,
            guidance_scale: task.guidance_scale,
            scheduler: task.scheduler,
            karras_sigmas: task.karras_sigmas,
            noise_source: task.noise_source,
        },
        images: task.num_images,
        loras,
        signature: Some((task.artist_name.clone(), task.signature.clone())),
        format: task.format,
        file,
        span: Span::current(),
        origin: PictureOrigin { generation_id: Some(task.generation_id), created_at: task.created_at, seed: task.seed },
        credential,
    }
}
