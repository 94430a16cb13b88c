"""What transformers, diffusers and peft compute with easel-tiny and the two models that `toy-model` writes, in f32 on the CPU."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from safetensors.torch import save_file

from . import made_with, metadata, toy_model

EASEL_TINY = Path(__file__).resolve().parents[2] / "model" / "easel-tiny"
SIZES = ["tiny", "sd15"]
PROMPTS = ["", "red circle on blue, halftone", "Ein schöner Tag; " + "very " * 20 + "猫 🐱"]
NEGATIVE = "blurry, grey"
GUIDANCE = 7.5
STEPS = 50
LORA_SCALE = 0.7
SCHEDULERS = {"dpmsolver++": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler}
# Height and width in pixels: one square, one upright as "1:2".
PICTURES = [(64, 64), (128, 64)]


def make(folder: Path) -> None:
    torch.set_num_threads(1)
    for size in SIZES:
        with tempfile.TemporaryDirectory() as model:
            toy_model(model, size)
            write(folder / f"model-{size}.safetensors", Path(model), with_pictures=True)
    # Its pictures, at the sizes of tasks, are a part of their own.
    write(folder / "model-easel-tiny.safetensors", EASEL_TINY, with_pictures=False)


def write(file: Path, model: Path, with_pictures: bool) -> None:
    torch.manual_seed(0)
    tensors = compute(model, with_pictures)
    inputs = {"prompts": PROMPTS, "negative_prompt": NEGATIVE, "guidance_scale": GUIDANCE, "steps": STEPS, "lora_scale": LORA_SCALE}
    versions = made_with("torch", "diffusers", "transformers", "peft")
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, file, metadata(made_with=versions, inputs=inputs))


@torch.no_grad()
def compute(model: Path, with_pictures: bool) -> dict[str, torch.Tensor]:
    pipeline = StableDiffusionPipeline.from_pretrained(model, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    tensors = parts(pipeline)
    if not with_pictures:
        return tensors
    for height, width in PICTURES:
        tensors[f"noise/{width}x{height}"] = torch.randn(1, 4, height // 8, width // 8)
    for name, scheduler in SCHEDULERS.items():
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
        for height, width in PICTURES:
            noise = tensors[f"noise/{width}x{height}"]
            tensors |= picture(pipeline, f"{name}/{width}x{height}", noise)
    pipeline.load_lora_weights(model, weight_name="lora.safetensors", adapter_name="toy")
    pipeline.set_adapters(["toy"], [LORA_SCALE])
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    return tensors | picture(pipeline, "lora/64x64", tensors["noise/64x64"])


def parts(pipeline: StableDiffusionPipeline) -> dict[str, torch.Tensor]:
    """Each network on its own."""
    tensors = {}
    for index, prompt in enumerate(PROMPTS):
        embedding, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
        tensors[f"text_encoder/{index}"] = embedding
    latents = torch.randn(1, 4, 8, 8)
    tensors["latents"] = latents
    for timestep in [1, 500, 981, 999]:
        output = pipeline.unet(latents, timestep, encoder_hidden_states=tensors["text_encoder/1"]).sample
        tensors[f"unet/{timestep}"] = output
    # Euler's timesteps are fractions.
    timestep = torch.tensor(978.6122)
    tensors["unet/978.6122"] = pipeline.unet(latents, timestep, encoder_hidden_states=tensors["text_encoder/1"]).sample
    tensors["vae"] = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return tensors


def picture(pipeline: StableDiffusionPipeline, key: str, noise: torch.Tensor) -> dict[str, torch.Tensor]:
    """The final latents and the picture before JPEG."""
    height, width = (8 * side for side in noise.shape[-2:])
    arguments = {"prompt": PROMPTS[1], "negative_prompt": NEGATIVE, "guidance_scale": GUIDANCE, "num_inference_steps": STEPS}
    arguments |= {"height": height, "width": width}
    latents = pipeline(**arguments, latents=noise.clone(), output_type="latent").images
    image = pipeline(**arguments, latents=noise.clone(), output_type="pil").images[0]
    return {f"{key}/latents": latents, f"{key}/picture": torch.from_numpy(np.array(image))}
