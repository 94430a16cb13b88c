"""Runs that begin from a picture, as diffusers' StableDiffusionImg2ImgPipeline makes them with easel-tiny: how a picture becomes pixels of
the task's size, what the VAE's encoder makes of them, and the final latents of every scheduler at several strengths."""

from pathlib import Path

import numpy as np
import torch
from diffusers import PNDMScheduler, StableDiffusionImg2ImgPipeline
from PIL import Image
from safetensors.torch import save_file

from . import made_with, metadata
from .pictures import MODEL
from .schedulers import SCHEDULERS, known_by

PROMPT = "lighthouse sunset sea"
NEGATIVE = "tree"
SEED = 1234
GUIDANCE = 7.5
STEPS = 8
# 2.4 steps are two, and 0.58 x 8 is 4.64.
STRENGTHS = [0.3, 0.58, 1.0]
SIDE = 64
IMAGES = 2
# Width and height: smaller than the picture in both, wider, taller, larger, and the picture's own.
SIZES = [(64, 64), (40, 24), (128, 64), (64, 128), (112, 80), (97, 61)]


@torch.no_grad()
def make(folder: Path) -> None:
    torch.set_num_threads(1)
    picture = Image.fromarray(drawn(97, 61))
    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(MODEL, torch_dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    tensors = {"picture": torch.from_numpy(np.array(picture))}
    for width, height in SIZES:
        filled = pipeline.image_processor._resize_and_crop(picture, width, height)
        tensors[f"filled/{width}x{height}"] = torch.from_numpy(np.array(filled))
    filled = Image.fromarray(tensors[f"filled/{SIDE}x{SIDE}"].numpy())
    pixels = pipeline.image_processor.preprocess(picture, height=SIDE, width=SIDE, resize_mode="crop")
    assert torch.equal(pixels, pipeline.image_processor.preprocess(filled)), "the pipeline takes the same pixels"
    tensors["moments"] = pipeline.vae.encode(pixels).latent_dist.parameters
    # Of a picture with an odd number of places on both sides.
    odd = pipeline.image_processor.preprocess(picture, height=328, width=264, resize_mode="crop")
    tensors["moments/264x328"] = pipeline.vae.encode(odd).latent_dist.parameters[:, :, ::8, ::8]
    config = PNDMScheduler.from_pretrained(MODEL / "scheduler").config
    for name, scheduler in SCHEDULERS.items():
        for karras in [False, True] if "use_karras_sigmas" in known_by(scheduler) else [False]:
            for strength in STRENGTHS:
                pipeline.scheduler = scheduler.from_config(config, **({"use_karras_sigmas": True} if karras else {}))
                key = f"{name}{'/karras' if karras else ''}/{strength}"
                tensors[key] = paint(pipeline, filled, strength)
    inputs = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "seed": SEED, "guidance_scale": GUIDANCE}
    inputs |= {"steps": STEPS, "strengths": STRENGTHS, "side": SIDE, "images": IMAGES}
    about = metadata(made_with=made_with("torch", "diffusers", "transformers", "pillow"), inputs=inputs)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "images-tiny.safetensors", about)


def drawn(width: int, height: int) -> np.ndarray:
    """A picture with edges, gradients and fine lines, which no filter leaves as they are."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x // (width - 1)
    green = np.where((x // 7 + y // 5) % 2 == 0, 230, 20)
    blue = np.where((x - width // 2) ** 2 + (y - height // 2) ** 2 < (height // 3) ** 2, 250, (x * y) % 256)
    return np.stack([red, green, blue], axis=2).astype(np.uint8)


def paint(pipeline: StableDiffusionImg2ImgPipeline, picture: Image.Image, strength: float) -> torch.Tensor:
    """The final latents of all images."""
    return pipeline(
        PROMPT, image=picture, strength=strength, negative_prompt=NEGATIVE, guidance_scale=GUIDANCE, num_inference_steps=STEPS,
        num_images_per_prompt=IMAGES, generator=torch.Generator("cpu").manual_seed(SEED), output_type="latent",
    ).images
