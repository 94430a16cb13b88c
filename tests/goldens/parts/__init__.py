"""One module for each group of golden values; each has `make(folder)`."""

import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def made_with(*packages: str) -> dict[str, str]:
    """The versions that a file was made with, to be stored in it."""
    return {package: version(package) for package in packages}


def metadata(**about: dict) -> dict[str, str]:
    """Metadata of a safetensors file under one key; with several, their order would change from run to run."""
    return {"about": json.dumps(about)}


def sort_metadata(file: Path) -> None:
    """Of a safetensors file that a library wrote: with several entries, their order changes from run to run."""
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    file.write_bytes(content[:8] + text.ljust(end - 8) + content[end:])


def toy_model(folder: str, size: str, settings: dict | None = None) -> None:
    """Writes the model with random weights that the tests use, with other settings of its files if they are given as FILE/SETTING.

    Builds all programs: one alone would build everything anew.
    """
    subprocess.run(["cargo", "build", "--quiet", "--workspace", "--bins"], check=True, cwd=ROOT)
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    others = [f"--setting={name}={json.dumps(value)}" for name, value in (settings or {}).items()]
    subprocess.run([target / "debug" / "toy-model", "--out", folder, "--size", size, *others], check=True, cwd=ROOT)
