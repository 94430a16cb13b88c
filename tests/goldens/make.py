#!/usr/bin/env python3
"""Makes the golden values: what torch, transformers, diffusers, peft and LyCORIS themselves compute.

    tests/goldens/make.py [--venv DIR] [PART ...]
    python3 tests/goldens/make.py --here PART ...

Creates the virtual environment if it is missing, installs requirements.txt and open_clip_torch (only for CLIP's vocabulary,
without its dependencies) and writes the files beside this one. With --here it takes the Python that runs it as it is. Nothing
but this script needs torch: the Rust tests read the files.
"""

import argparse
import importlib
import os
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
PARTS = ["schedulers", "noise", "tokenizer", "tokenizer_folders", "models", "prompts", "inversions", "seeds", "pictures"]
PARTS += ["semantics", "images", "lora", "lora_layouts", "lora_blocks", "long_prompts", "settings", "shards", "checkpoint"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=HERE.parents[1] / "target" / "goldens-venv")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; default: all")
    parser.add_argument("--here", action="store_true", help="no virtual environment")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    python = options.venv / "bin" / "python"
    if not options.here and Path(sys.prefix).resolve() != options.venv.resolve():
        prepare(options.venv, python)
        os.execv(python, [str(python), *sys.argv])
    sys.dont_write_bytecode = True
    for part in options.parts or PARTS:
        print(f"{part} …", flush=True)
        importlib.import_module(f"parts.{part}").make(HERE)
    for path in HERE.glob("*.safetensors"):
        path.chmod(0o644)


def prepare(folder: Path, python: Path) -> None:
    if not python.exists():
        venv.create(folder, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, "-r", str(HERE / "requirements.txt")], check=True)
    subprocess.run([*pip, "--no-deps", "open_clip_torch==3.3.0"], check=True)


if __name__ == "__main__":
    main()
