#!/usr/bin/env python3
"""Writes noise-cuda.json: what torch.randn draws on a CUDA GPU. Needs a GPU and torch, and nothing else of this project.

    tests/goldens/cuda_noise.py [FILE]

FILE is noise-cuda.json beside this script unless given. Each case is a generator with a fresh seed and two draws, one after the
other. Of each draw the file has the first and last eight values, some in between, and the sum of all in float64.
"""

import json
import sys
from pathlib import Path

import torch

SEEDS = [0, 1, 42, 123456789, 2**31, 2**32 + 7, 2**63, 2**64 - 1]
# Latents of one and of several pictures. The last has more elements than an H100 holds threads.
SHAPES = [(1, 4, 64, 64), (1, 4, 96, 96), (1, 4, 128, 64), (4, 4, 64, 64), (8, 4, 96, 96)]
DTYPES = {"f32": torch.float32, "f16": torch.float16}
DRAWS = 2


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().with_name("noise-cuda.json")
    device = torch.cuda.get_device_properties(0)
    threads = device.multi_processor_count * device.max_threads_per_multi_processor
    cases = [case(seed, shape, dtype, threads) for seed in SEEDS for shape in SHAPES for dtype in DTYPES]
    text = {
        "made_with": {"torch": torch.__version__, "cuda": torch.version.cuda},
        "device": device.name,
        "multiprocessors": device.multi_processor_count,
        "threads_per_multiprocessor": device.max_threads_per_multi_processor,
        "cases": cases,
    }
    # One case a line: a diff then shows which case changed.
    lines = json.dumps({**text, "cases": []}, indent=1).removesuffix("[]\n}")
    body = ",\n".join("  " + json.dumps(case) for case in cases)
    out.write_text(f"{lines}[\n{body}\n ]\n}}\n")
    print(f"{out}: {len(cases)} cases, {device.name}, {threads} threads")


def case(seed: int, shape: tuple[int, ...], dtype: str, threads: int) -> dict:
    generator = torch.Generator("cuda").manual_seed(seed)
    draws = [torch.randn(shape, generator=generator, device="cuda", dtype=DTYPES[dtype]) for _ in range(DRAWS)]
    return {"seed": seed, "shape": shape, "dtype": dtype, "draws": [summary(draw, threads) for draw in draws]}


def summary(draw: torch.Tensor, threads: int) -> dict:
    values = draw.flatten().cpu().to(torch.float64)
    count = len(values)
    # Around the place where the threads are used up, each thread turns to its second value.
    places = {count // 5, count // 3, count // 2, count * 2 // 3, count * 9 // 10, threads - 1, threads, threads + 1}
    places = sorted(place for place in places if place < count)
    return {
        "first": values[:8].tolist(),
        "last": values[-8:].tolist(),
        "places": places,
        "between": values[places].tolist(),
        "sum": values.sum().item(),
    }


if __name__ == "__main__":
    main()
