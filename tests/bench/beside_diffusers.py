#!/usr/bin/env python3
"""Paints with diffusers and with `handler bench picture`, taking turns on the same model and machine, and prints the ratio.

    tests/bench/beside_diffusers.py HANDLER [--model DIR] [--aspect-ratio 1:1] [--rounds 3] [--threads N] [--device cpu] [--cpu-vectors avx2]

Needs torch, diffusers and transformers, as tests/goldens/make.py installs them. Each time is from the prompt's text to the JPEG
file in memory, after a first picture that is not counted; the table has the medians. With --cpu-vectors avx2 neither side uses AVX-512.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import diffusers
import torch

MODEL = Path(__file__).resolve().parents[1] / "model" / "easel-tiny"
SIZES = {"1:1": (512, 512), "2:2": (768, 768), "1:2": (512, 1024)}
PROMPT, STEPS, GUIDANCE = "lighthouse sunset sea", 50, 7.5
# What keeps torch and its libraries, oneDNN and MKL, from wider vectors. They read it when they are loaded.
NARROW = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
DTYPES = {"cpu": torch.float32, "cuda": torch.float16}


class Diffusers:
    """diffusers' pipeline as it comes, with the function's scheduler."""

    def __init__(self, options: argparse.Namespace):
        self.device, self.size = options.device, SIZES[options.aspect_ratio]
        self.pipe = diffusers.StableDiffusionPipeline.from_pretrained(options.model, torch_dtype=DTYPES[self.device], safety_checker=None)
        self.pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(self.pipe.scheduler.config)
        self.pipe.set_progress_bar_config(disable=True)
        self.pipe.to(self.device)

    def paint(self) -> float:
        """Milliseconds of one picture."""
        start = time.perf_counter()
        generator = torch.Generator(self.device).manual_seed(42)
        width, height = self.size
        image = self.pipe(PROMPT, width=width, height=height, num_inference_steps=STEPS, guidance_scale=GUIDANCE, generator=generator).images[0]
        image.save(io.BytesIO(), format="JPEG", quality=95)
        return (time.perf_counter() - start) * 1e3


def easel(options: argparse.Namespace) -> dict:
    """The figures of one run of `handler bench picture` with one counted picture."""
    command = [options.handler, "bench", "picture", "--model", options.model, "--prompt", PROMPT, "--steps", STEPS, "--guidance-scale", GUIDANCE]
    command += ["--aspect-ratio", options.aspect_ratio, "--device", options.device, "--cpu-vectors", options.cpu_vectors]
    command += ["--repeat", 1, "--json"]
    environment = os.environ | {"RAYON_NUM_THREADS": str(options.threads)}
    return json.loads(subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True, env=environment).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("handler", type=Path)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--aspect-ratio", choices=SIZES, default="1:1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=DTYPES, default="cpu")
    parser.add_argument("--cpu-vectors", choices=("auto", "avx2"), default="auto")
    options = parser.parse_args()
    if options.cpu_vectors == "avx2" and not NARROW.items() <= os.environ.items():
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | NARROW)
    options.handler = options.handler.resolve()
    torch.set_num_threads(options.threads)
    theirs = Diffusers(options)
    theirs.paint()
    rows = []
    for _ in range(options.rounds):
        rows.append((theirs.paint(), easel(options)))
        print(f"diffusers {rows[-1][0]:.0f} ms, easel {rows[-1][1]['picture_ms']:.0f} ms", flush=True)
    base = statistics.median(ms for ms, _ in rows)
    ours = {key: statistics.median(run[key] for _, run in rows) for key in ("picture_ms", "denoise_ms", "decode_ms")}
    print(f"\n{options.device}, {options.threads} threads, vectors {torch.backends.cpu.get_cpu_capability()}, {options.aspect_ratio}, {STEPS} steps; torch {torch.__version__}, diffusers {diffusers.__version__}")
    print("| diffusers | easel | ratio | of it denoise | decode |\n| --- | --- | --- | --- | --- |")
    print(f"| {base:.0f} ms | {ours['picture_ms']:.0f} ms | {ours['picture_ms'] / base:.2f} | {ours['denoise_ms']:.0f} ms | {ours['decode_ms']:.0f} ms |")


if __name__ == "__main__":
    main()
