"""What diffusers' from_single_file makes of the checkpoint that `toy-model` writes: a picture, and the folder that it saves."""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import save_file

from . import ROOT, made_with, metadata
from .models import GUIDANCE, LORA_SCALE, NEGATIVE, PROMPTS, STEPS, parts, picture

WEIGHTS = ["text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"]


@torch.no_grad()
def make(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        model, file = Path(scratch) / "model", Path(scratch) / "narrow.safetensors"
        subprocess.run(["cargo", "build", "--quiet", "--workspace", "--bins"], check=True, cwd=ROOT)
        program = Path(os.environ.get("CARGO_TARGET_DIR", "target")) / "debug" / "toy-model"
        subprocess.run([program, "--size", "narrow", "--out", model, "--checkpoint", file], check=True, cwd=ROOT)
        # Of the folder only the settings are taken.
        for weights in model.glob("*/*.safetensors"):
            weights.unlink()
        pipeline = load(file, model, torch.float32)
        tensors = parts(pipeline)
        tensors["noise/64x64"] = torch.randn(1, 4, 8, 8)
        pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
        tensors |= picture(pipeline, "dpmsolver++/64x64", tensors["noise/64x64"])
        pipeline.load_lora_weights(model, weight_name="lora.safetensors", adapter_name="toy")
        pipeline.set_adapters(["toy"], [LORA_SCALE])
        tensors |= picture(pipeline, "lora/64x64", tensors["noise/64x64"])
        saved = names(load(file, model, torch.float16), Path(scratch) / "saved")
    inputs = {"prompts": PROMPTS, "negative_prompt": NEGATIVE, "guidance_scale": GUIDANCE, "steps": STEPS, "lora_scale": LORA_SCALE}
    versions = made_with("torch", "diffusers", "transformers", "peft")
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "model-checkpoint.safetensors", metadata(made_with=versions, inputs=inputs))
    lines = ",\n".join(f"{json.dumps(file)}: {json.dumps(shapes, sort_keys=True)}" for file, shapes in saved.items())
    (folder / "checkpoint.json").write_text(f'{{"made_with": {json.dumps(versions)},\n{lines}}}\n')


def load(file: Path, config: Path, dtype: torch.dtype) -> StableDiffusionPipeline:
    pipeline = StableDiffusionPipeline.from_single_file(
        str(file), config=str(config), local_files_only=True, dtype=dtype, safety_checker=None
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def names(pipeline: StableDiffusionPipeline, folder: Path) -> dict[str, dict[str, list]]:
    """Names, shapes and dtypes of the weights in the folder that diffusers saves."""
    pipeline.save_pretrained(folder)
    found = {}
    for weights in WEIGHTS:
        with safe_open(folder / f"{weights}.safetensors", "pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}
            found[f"{weights}.safetensors"] = {name: [part.get_dtype(), *part.get_shape()] for name, part in slices.items()}
    return found
