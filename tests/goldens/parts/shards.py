"""How diffusers and transformers split easel-tiny's weights into shards: the names of the files, and which tensor is in which."""

import json
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextModel

from . import made_with

EASEL_TINY = Path(__file__).resolve().parents[2] / "model" / "easel-tiny"
PARTS = {"text_encoder": CLIPTextModel, "vae": AutoencoderKL}
# Two shards for each part.
SIZE = "6MB"


def make(folder: Path) -> None:
    cases = [case(part, variant) for part in PARTS for variant in [None, "fp16"]]
    lines = ",\n".join(json.dumps(case) for case in cases)
    versions = json.dumps(made_with("torch", "diffusers", "transformers"))
    (folder / "shards.json").write_text(f'{{"made_with": {versions},\n"cases": [\n{lines}\n]}}\n')


def case(part: str, variant: str | None) -> dict:
    model = PARTS[part].from_pretrained(EASEL_TINY, subfolder=part, dtype=torch.float16)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved, max_shard_size=SIZE, variant=variant)
        (index,) = Path(saved).glob("*.index*.json")
        shards = sorted(path.name for path in Path(saved).glob("*.safetensors"))
        return {"part": part, "index": index.name, "content": json.loads(index.read_text()), "files": shards}
