"""Textual inversions as their programs write them, and the embeddings that diffusers' own pipeline makes of prompts with their tokens."""

import json
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from . import made_with, metadata, toy_model

PROMPTS = [
    "a <cat-toy> here", "A <CAT-TOY>, two <cat-toy>s<cat-toy>", "<waves>", "by <waves> and <Waves> and <waves>_1", "charturner, a view",
    "no token", "charturners <cat-toy> <waves> charturner", "<waves> " * 30, "a <Cased> and a <cased>",
]
# Numbers of each token's embedding that are kept.
CHANNELS = 4
# The files of each case, with the token if it is told.
CASES = {
    "none": [],
    "one": [("learned_embeds", None)],
    "one, renamed": [("learned_embeds", "<waves>")],
    "several vectors": [("several", None)],
    "web UI": [("emb_params", "charturner")],
    "half precision": [("half", None)],
    "flat": [("flat", None)],
    "upper case": [("cased", None)],
    "three files": [("learned_embeds", None), ("several", None), ("emb_params", "charturner")],
}


def write_files(folder: Path, width: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(7)
    draw = lambda *shape: torch.randn(*shape, generator=generator) * scale  # noqa: E731
    files = {
        # diffusers' training script.
        "learned_embeds": {"<cat-toy>": draw(1, width)},
        "several": {"<waves>": draw(3, width)},
        # AUTOMATIC1111's web UI and kohya's scripts.
        "emb_params": {"emb_params": draw(2, width)},
        "half": {"<cat-toy>": draw(2, width).half()},
        "flat": {"<cat-toy>": draw(width).bfloat16()},
        "cased": {"<Cased>": draw(2, width)},
        # SDXL's, with the width of its two encoders.
        "sdxl": {"clip_l": draw(1, 768), "clip_g": draw(1, 1280)},
        "sd2": {"<cat-toy>": draw(1, 1024)},
    }
    for name, tensors in files.items():
        path = folder / f"{name}.safetensors"
        save_file(tensors, path)
        path.chmod(0o644)


@torch.no_grad()
def make(folder: Path) -> None:
    files = folder / "inversions"
    files.mkdir(exist_ok=True)
    tensors = {}
    with tempfile.TemporaryDirectory() as model:
        toy_model(model, "tiny")
        for index, (name, wanted) in enumerate(CASES.items()):
            pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
            weight = pipeline.text_encoder.get_input_embeddings().weight
            if index == 0:
                write_files(files, weight.shape[1], weight.std().item())
            for file, token in wanted:
                pipeline.load_textual_inversion(load_file(files / f"{file}.safetensors"), token=token)
            for number, prompt in enumerate(PROMPTS):
                tensors[f"{index}/{number}"] = pipeline.encode_prompt(prompt, "cpu", 1, False)[0][:, :, :CHANNELS].contiguous()
    about = metadata(made_with=made_with("torch", "transformers", "diffusers"), prompts=PROMPTS, cases=list(CASES.items()))
    save_file(tensors, folder / "inversions-tiny.safetensors", about)
