"""The settings of the networks' files: their defaults in diffusers and transformers, and what those compute with others."""

import dataclasses
import inspect
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from . import made_with, metadata, toy_model

PROMPT = "red circle on blue, halftone"
SEED = 99
SIDE = 64
TIMESTEPS = [1, 519, 999]
# The scheduler file of LCM's own folders.
LCM = {
    "_class_name": "LCMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
    "clip_sample_range": 1.0, "dynamic_thresholding_ratio": 0.995, "num_train_timesteps": 1000, "original_inference_steps": 50,
    "prediction_type": "epsilon", "rescale_betas_zero_snr": False, "sample_max_value": 1.0, "set_alpha_to_one": True, "steps_offset": 1,
    "thresholding": False, "timestep_scaling": 10.0, "timestep_spacing": "leading", "trained_betas": None,
}
LCM = {f"scheduler/scheduler_config.json/{name}": value for name, value in LCM.items()} | {"scheduler": ["diffusers", "LCMScheduler"]}
UNET, TEXT = "unet/config.json", "text_encoder/config.json"
# Each model's settings, steps, and the guidance scales of its pictures.
CASES = {
    "lcm": ("tiny", LCM | {f"{UNET}/time_cond_proj_dim": 32, "_class_name": "LatentConsistencyModelPipeline"}, 4, [8.5, 1.0]),
    "lcm-as-sd": ("tiny", LCM | {f"{UNET}/time_cond_proj_dim": 256}, 8, [7.5]),
    "lcm-odd": ("sd15", LCM | {f"{UNET}/time_cond_proj_dim": 37}, 4, [0.5]),
    "eps": ("tiny", LCM | {f"{TEXT}/layer_norm_eps": 0.1, f"{UNET}/norm_eps": 0.01}, 4, [7.5]),
}


def make(folder: Path) -> None:
    settings = {"unet": defaults(UNet2DConditionModel), "vae": defaults(AutoencoderKL)}
    for name, config in (("text_encoder", CLIPTextConfig), ("safety_checker", CLIPConfig), ("vision", CLIPVisionConfig)):
        settings[name] = {field.name: field.default for field in dataclasses.fields(config)}
    processor = CLIPImageProcessorPil()
    settings["preprocessor"] = {name: plain(getattr(processor, name)) for name in processor.valid_kwargs.__annotations__}
    about = {"made_with": made_with("diffusers", "transformers")}
    (folder / "settings.json").write_text(json.dumps(about | settings, indent=1) + "\n")

    torch.set_num_threads(1)
    tensors = {"noise": torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=torch.Generator("cpu").manual_seed(SEED))}
    rows = {}
    for name, (size, settings, steps, scales) in CASES.items():
        rows[name] = {"size": size, "settings": settings, "steps": steps, "guidance_scales": scales}
        with tempfile.TemporaryDirectory() as model:
            toy_model(model, size, settings)
            tensors |= {f"{name}/{key}": tensor.contiguous() for key, tensor in compute(model, tensors["noise"], steps, scales).items()}
    inputs = {"prompt": PROMPT, "seed": SEED, "side": SIDE, "timesteps": TIMESTEPS, "cases": rows}
    versions = made_with("torch", "diffusers", "transformers")
    save_file(tensors, folder / "settings.safetensors", metadata(made_with=versions, inputs=inputs))


def plain(value: object) -> object:
    """As a JSON file has it."""
    if dataclasses.is_dataclass(value):
        return {name: number for name, number in dataclasses.asdict(value).items() if number is not None}
    return list(value) if isinstance(value, tuple) else value


def defaults(network: type) -> dict:
    parameters = list(inspect.signature(network.__init__).parameters.values())[1:]
    return {parameter.name: parameter.default for parameter in parameters}


@torch.no_grad()
def compute(model: str, latents: torch.Tensor, steps: int, scales: list[float]) -> dict[str, torch.Tensor]:
    """Embedding, UNet outputs and pictures by the class and the scheduler that the folder names."""
    pipeline = DiffusionPipeline.from_pretrained(model, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    embedding, _ = pipeline.encode_prompt(PROMPT, "cpu", 1, False)
    tensors = {"embedding": embedding}
    width = pipeline.unet.config.time_cond_proj_dim
    for scale in scales:
        condition = width and pipeline.get_guidance_scale_embedding(torch.tensor([scale - 1]), embedding_dim=width)
        for timestep in TIMESTEPS:
            output = pipeline.unet(latents, timestep, encoder_hidden_states=embedding, timestep_cond=condition).sample
            tensors[f"{scale}/unet/{timestep}"] = output
        arguments = {"prompt": PROMPT, "num_inference_steps": steps, "guidance_scale": scale, "height": SIDE, "width": SIDE}
        generator = torch.Generator("cpu").manual_seed(SEED)
        tensors[f"{scale}/latents"] = pipeline(**arguments, generator=generator, output_type="latent").images
        generator = torch.Generator("cpu").manual_seed(SEED)
        picture = pipeline(**arguments, generator=generator, output_type="pil").images[0]
        tensors[f"{scale}/picture"] = torch.from_numpy(np.array(picture))
    return tensors
