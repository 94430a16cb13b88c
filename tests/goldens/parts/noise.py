"""Draws of torch.randn on the CPU (mt19937). Those on CUDA (Philox) need a GPU: see cuda_noise.py."""

import json
from pathlib import Path

import torch

from . import made_with

SEEDS = [0, 1, 42, 2**31, 2**32 + 7, 2**63 - 1, -1]
# torch draws fewer than 16 values one by one, and more in blocks of 16 of which the last may overlap.
COUNTS = [1, 2, 3, 15, 16, 17, 40, 64]
# Drawn from one generator one after the other: an odd number leaves half a pair for the next small draw.
MIXED = [3, 16, 2, 1, 700, 5]
LATENTS = (1, 4, 64, 64)


def make(folder: Path) -> None:
    draws = []
    for seed in SEEDS:
        for count in COUNTS:
            draws.append({"seed": seed, "count": count, "values": draw(seed, (count,)).tolist()})
    halves = []
    for seed in SEEDS[:3]:
        for count in COUNTS:
            halves.append({"seed": seed, "count": count, "values": draw(seed, (count,), torch.float16).tolist()})
    latents = draw(42, LATENTS).flatten()
    generator = torch.Generator("cpu").manual_seed(42)
    pair = [torch.randn((64,), generator=generator)[:4].tolist() for _ in range(2)]
    generator = torch.Generator("cpu").manual_seed(42)
    mixed = [torch.randn((count,), generator=generator).tolist() for count in MIXED]
    text = {
        "made_with": made_with("torch"),
        "cpu": draws,
        "cpu_f16": halves,
        "cpu_latents": {"seed": 42, "shape": LATENTS, "first": latents[:16].tolist(), "last": latents[-16:].tolist()},
        "cpu_two_draws_of_64": {"seed": 42, "first_of_each": pair},
        "cpu_one_after_the_other": {"seed": 42, "draws": mixed},
    }
    (folder / "noise.json").write_text(json.dumps(text, indent=1) + "\n")


def draw(seed: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed), dtype=dtype)
