"""Pictures from nothing but a seed: torch's CPU generator draws the first latents and every later noise, as a pipeline does."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from . import made_with, metadata, toy_model
from .schedulers import SCHEDULERS, known_by

PROMPT = "red circle on blue, halftone"
NEGATIVE = "blurry, grey"
SEED = 1234
GUIDANCE = 7.5
STEPS = 20
SIDE = 64
IMAGES = 2


@torch.no_grad()
def make(folder: Path) -> None:
    torch.set_num_threads(1)
    tensors = {}
    with tempfile.TemporaryDirectory() as model:
        toy_model(model, "tiny")
        pipeline = StableDiffusionPipeline.from_pretrained(model, dtype=torch.float32, safety_checker=None)
        pipeline.set_progress_bar_config(disable=True)
        config = pipeline.scheduler.config
        for name, scheduler in SCHEDULERS.items():
            pipeline.scheduler = scheduler.from_config(config)
            tensors |= paint(pipeline, name)
            if "use_karras_sigmas" in known_by(scheduler):
                pipeline.scheduler = scheduler.from_config(config, use_karras_sigmas=True)
                tensors |= paint(pipeline, f"{name}/karras")
    inputs = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": SEED, "guidance_scale": GUIDANCE}
    inputs |= {"steps": STEPS, "side": SIDE, "images": IMAGES}
    about = metadata(made_with=made_with("torch", "diffusers", "transformers"), inputs=inputs)
    save_file(tensors, folder / "seeds-tiny.safetensors", about)


def paint(pipeline: StableDiffusionPipeline, key: str) -> dict[str, torch.Tensor]:
    """The final latents of all images, and the first picture before JPEG."""
    arguments = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "guidance_scale": GUIDANCE, "num_inference_steps": STEPS}
    arguments |= {"height": SIDE, "width": SIDE, "num_images_per_prompt": IMAGES}
    arguments["generator"] = torch.Generator("cpu").manual_seed(SEED)
    latents = pipeline(**arguments, output_type="latent").images
    picture = pipeline.vae.decode(latents[:1] / pipeline.vae.config.scaling_factor).sample
    picture = pipeline.image_processor.postprocess(picture, output_type="pil")[0]
    return {f"{key}/latents": latents, f"{key}/picture": torch.from_numpy(np.array(picture))}
