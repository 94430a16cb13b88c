#!/usr/bin/env python3
"""Paints every golden picture with `handler generate` and prints how like it is, beside diffusers' own half precision.

    tests/goldens/compare.py HANDLER [--device cuda] [--dtype f16] [--only NAME ...]

Needs numpy and Pillow. A figure is the PSNR in dB against diffusers' f32 picture; the higher, the more alike.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
MODEL = HERE.parent / "model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("handler", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--only", nargs="+")
    options = parser.parse_args()
    about = json.loads((HERE / "pictures" / "pictures.json").read_text())
    theirs_key = f"diffusers_{options.dtype}_psnr"
    print(f"| case | easel {options.dtype} on {options.device} | diffusers {options.dtype} |\n| --- | --- | --- |", flush=True)
    ours_all, theirs_all = [], []
    for row in about["cases"]:
        if options.only and row["name"] not in options.only:
            continue
        ours = likeness(options, row)
        ours_all.append(ours)
        theirs_all.append(row.get(theirs_key, float("inf")))
        print(f"| {row['name']} | {ours:.2f} | {row.get(theirs_key, 'the reference')} |", flush=True)
    print(f"| mean | {np.mean(ours_all):.2f} | {np.mean(theirs_all):.2f} |")
    print(f"| least | {np.min(ours_all):.2f} | {np.min(theirs_all):.2f} |")


def likeness(options: argparse.Namespace, row: dict) -> float:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"{row['name']}.png"
        command = [options.handler, "generate", "--model", MODEL / "easel-tiny", "--device", options.device, "--dtype", options.dtype]
        command += ["--prompt", row["prompt"], "--negative-prompt", row["negative_prompt"]]
        command += ["--width", row["width"], "--height", row["height"]] if "width" in row else ["--aspect-ratio", row["aspect_ratio"]]
        command += ["--scheduler", row["scheduler"], "--steps", row["steps"], "--guidance-scale", row["guidance_scale"]]
        command += ["--seed", row["seed"], "--num-images", row["num_images"], "--noise-source", row["noise_source"], "--out", out]
        if "image" in row:
            command += ["--image", HERE / "pictures" / row["image"], "--strength", row["strength"]]
        if row["lora"]:
            command += ["--lora", f"{MODEL / 'styles' / row['lora']}={row['lora_scale']}"]
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return min(psnr(Path(folder) / file, HERE / "pictures" / file) for file in row["files"])


def psnr(ours: Path, theirs: Path) -> float:
    a, b = (np.array(Image.open(path).convert("RGB")).astype(np.float64) for path in (ours, theirs))
    assert a.shape == b.shape, (a.shape, b.shape)
    return float(10 * np.log10(255**2 / max(np.mean((a - b) ** 2), 1e-10)))


if __name__ == "__main__":
    main()
