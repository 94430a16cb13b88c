"""What diffusers' safety checker and transformers' CLIPImageProcessor make of pictures that a formula draws, in f32 on the CPU.

Weights and pictures follow from a formula that `handler/diffusion/src/pipeline/safety/tests/formula.rs` has as well, so that the
checker of the published shapes needs no file of 1.2 GB.
"""

import hashlib
import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion import safety_checker as reference
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from . import made_with, metadata

EASEL_TINY = Path(__file__).resolve().parents[2] / "model" / "easel-tiny"
# Width and height in pixels, as of tasks.
SIZES = [(512, 512), (768, 768), (512, 1024)]
KINDS = ["noise", "cross", "disc"]
# easel-tiny's checker flags pink.
PINK = "pink"
# The published checker's settings, and those of a small one with the same parts.
VISION = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
NARROW = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 14, "layer_norm_eps": 1e-3}
# By how much cosines are over their thresholds: those of special care, and those of concepts; the rest are under theirs.
CASES = {
    "fine": ({}, {}),
    "special care alone": ({1: 0.0123}, {2: -0.0118}),
    "flagged by special care's addition": ({0: 0.02}, {5: -0.0043}),
    "special care adds to the later ones": ({0: 0.003, 1: -0.0062, 2: -0.0007}, {16: -0.02}),
    "flagged": ({}, {3: 0.03, 11: 0.0011}),
}
UNDER = -0.031


def make(folder: Path) -> None:
    torch.set_num_threads(2)
    tensors, about = {}, {"sizes": SIZES, "kinds": KINDS, "cases": {}}
    about["preprocessing"] = preprocessing(tensors)
    about["round3"] = rounding()
    for name, projection, vision, pictures in [
        ("published", 768, VISION, [("noise", SIZES[0])]),
        ("narrow", 32, NARROW, [(kind, size) for kind in KINDS for size in SIZES]),
    ]:
        about[name] = {"projection_dim": projection, "vision": vision} | random_checker(name, projection, vision, pictures, tensors)
    if (EASEL_TINY / "safety_checker").is_dir():
        about["easel-tiny"] = trained(tensors)
    versions = made_with("torch", "diffusers", "transformers", "pillow", "numpy")
    save_file(tensors, folder / "safety.safetensors", metadata(made_with=versions))
    (folder / "safety.json").write_text(json.dumps({"made_with": versions, **about}, indent=1) + "\n")


def mixed(index: np.ndarray, seed: int) -> np.ndarray:
    """The finaliser of MurmurHash3 over numbered items."""
    h = index.astype(np.uint32) * np.uint32(0x9E3779B1) + np.uint32(seed)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        h = (h ^ (h >> np.uint32(shift))) * np.uint32(factor)
    return h ^ (h >> np.uint32(16))


def seed_of(name: str) -> int:
    """FNV-1a."""
    h = 0x811C9DC5
    for byte in name.encode():
        h = (h ^ byte) * 0x01000193 & 0xFFFFFFFF
    return h


def weights(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Uniform numbers whose size depends on the tensor's name and shape."""
    numbers = (mixed(np.arange(math.prod(shape), dtype=np.uint64), seed_of(name)) >> np.uint32(8)).astype(np.float32)
    numbers = numbers * np.float32(2**-23) - np.float32(1)
    if "norm" in name and name.endswith("weight"):
        numbers = numbers * np.float32(0.1) + np.float32(1)
    elif name.endswith("bias"):
        numbers = numbers * np.float32(0.05)
    elif name.endswith(("class_embedding", "position_embedding.weight")):
        numbers = numbers * np.float32(0.5)
    elif not name.endswith("_embeds"):
        numbers = numbers * np.float32(math.sqrt(3 / math.prod(shape[1:])))
    return torch.from_numpy(numbers.reshape(shape))


def picture(kind: str, width: int, height: int) -> np.ndarray:
    """Bytes `[height, width, 3]`."""
    x, y, c = np.meshgrid(np.arange(width), np.arange(height), np.arange(3), indexing="xy")
    u, v = np.abs(2 * x - width), np.abs(2 * y - height)
    if kind == "noise":
        # A gradient, with blocks and single pixels of noise.
        blocks = mixed((y // 37 * 64 + x // 29) * 3 + c, 7) & np.uint32(63)
        pixels = mixed((y * width + x) * 3 + c, 11) & np.uint32(63)
        return ((x * 90 // width + y * 38 // height + c) + blocks + pixels).astype(np.uint8)
    ground, ink = np.array([40, 90, 200])[c], np.array([244, 130, 182] if kind == PINK else [240, 230, 60])[c]
    if kind == "cross":
        inside = (np.minimum(u, v) * 100 < 16 * width) & (np.maximum(u, v) * 100 < 48 * width)
    else:
        inside = (u * u + v * v) * 10000 < 2304 * width * width
    return np.where(inside, ink, ground).astype(np.uint8)


def preprocessing(tensors: dict) -> list[dict]:
    """The middle of each resized picture by its hash, with three of its lines, and how far the other back end is from it."""
    ours, rows = CLIPImageProcessorPil(), []
    theirs = None
    if importlib.util.find_spec("torchvision"):
        from transformers.models.clip.image_processing_clip import CLIPImageProcessor

        theirs = CLIPImageProcessor()
    for width, height in SIZES:
        for kind in KINDS:
            image = Image.fromarray(picture(kind, width, height))
            key = f"preprocessing/{kind}/{width}x{height}"
            pixels = ours(image, return_tensors="np").pixel_values[0]
            levels = np.stack([ours.center_crop(ours.resize(ours.process_image(image, do_convert_rgb=True), ours.size, ours.resample), ours.crop_size)])[0]
            row = {"kind": kind, "size": [width, height]}
            row["levels_sha256"] = hashlib.sha256(np.ascontiguousarray(levels.astype(np.uint8)).tobytes()).hexdigest()
            row["pixels_sha256"] = hashlib.sha256(np.ascontiguousarray(pixels.astype("<f4")).tobytes()).hexdigest()
            tensors[key] = torch.from_numpy(np.ascontiguousarray(levels[:, [0, 111, 223]].astype(np.uint8)))
            if theirs:
                other = theirs(image, return_tensors="pt").pixel_values[0].numpy()
                std = np.array(ours.image_std, dtype=np.float32)[:, None, None]
                row["torchvision_levels"] = float(np.abs((other - pixels) * std * 255).max().round(3))
            rows.append(row)
    return rows


def rounding() -> list[list[float]]:
    """What `round(x, 3)` makes of numpy's f32, halves among them."""
    halves = [(2 * n + 1) / 2000 for n in range(-40, 40)]
    others = [-0.2374, 0.00049, 0.000501, -0.0004999, 0.1, 0.01 + 0.0123, 1e-9, -1e-9]
    return [[float(np.float32(x)), float(round(np.float32(x), 3))] for x in halves + others]


def random_checker(name: str, projection: int, vision: dict, pictures: list, tensors: dict) -> dict:
    config = CLIPConfig(projection_dim=projection, vision_config=vision, text_config={"num_hidden_layers": 1})
    with torch.device("meta"):
        checker = reference.StableDiffusionSafetyChecker(config)
    checker = checker.to_empty(device="cpu").eval()
    state = checker.state_dict()
    for key, tensor in state.items():
        if key.endswith("position_ids"):
            tensor.copy_(torch.arange(tensor.shape[1]).expand(tensor.shape))
        elif not key.endswith("_weights"):
            tensor.copy_(weights(key.replace("vision_model.vision_model.", "vision_model."), tuple(tensor.shape)))
    for key, buffer in checker.named_buffers():
        if key.endswith("position_ids"):
            buffer.copy_(torch.arange(buffer.shape[1]).expand(buffer.shape))
    rows = []
    for kind, (width, height) in pictures:
        pixels = CLIPImageProcessorPil()(Image.fromarray(picture(kind, width, height)), return_tensors="pt").pixel_values
        key = f"{name}/{kind}/{width}x{height}"
        found = cosines(checker, pixels)
        tensors |= {f"{key}/{part}": tensor for part, tensor in found.items()}
        rows.append({"kind": kind, "size": [width, height], "cases": verdicts(checker, pixels, found)})
    half = cosines(checker.half(), pixels.half())
    most = max(float((half[part].float() - found[part]).abs().max()) for part in found)
    return {"pictures": rows, "most_of_f16": most}


@torch.no_grad()
def cosines(checker, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    embedding = checker.visual_projection(checker.vision_model(pixels)[1])
    distance = reference.cosine_distance
    found = {"concepts": distance(embedding, checker.concept_embeds), "special_care": distance(embedding, checker.special_care_embeds)}
    return {part: tensor[0].clone() for part, tensor in found.items()}


def verdicts(checker, pixels: torch.Tensor, found: dict) -> list[dict]:
    """Of each case: thresholds, scores as the class computes them, and what the class itself says."""
    rows = []
    for name, over in CASES.items():
        for part, given in zip(("special_care", "concepts"), over):
            excess = torch.tensor([given.get(index, UNDER) for index in range(len(found[part]))])
            getattr(checker, "special_care_embeds_weights" if part == "special_care" else "concept_embeds_weights").data = found[part] - excess
        rows.append({"name": name, **scores(checker, found), "nsfw": says(checker, pixels)})
    return rows


def scores(checker, found: dict) -> dict:
    adjustment, rows = 0.0, {}
    for part, thresholds in (("special_care", checker.special_care_embeds_weights), ("concepts", checker.concept_embeds_weights)):
        rows[f"{part}_thresholds"], rows[part] = thresholds.tolist(), []
        for cosine, threshold in zip(found[part].float().numpy(), thresholds):
            rows[part].append(float(round(cosine - threshold.item() + adjustment, 3)))
            if part == "special_care" and rows[part][-1] > 0:
                adjustment = 0.01
    return rows


def says(checker, pixels: torch.Tensor) -> bool:
    _, flagged = checker(clip_input=pixels, images=np.ones((1, 2, 2, 3), dtype=np.float32))
    return bool(flagged[0])


def trained(tensors: dict) -> dict:
    checker = reference.StableDiffusionSafetyChecker.from_pretrained(EASEL_TINY / "safety_checker", dtype=torch.float32).eval()
    processor = CLIPImageProcessorPil.from_pretrained(EASEL_TINY / "feature_extractor")
    rows = []
    for kind in [*KINDS, PINK]:
        for width, height in SIZES:
            pixels = processor(Image.fromarray(picture(kind, width, height)), return_tensors="pt").pixel_values
            found = cosines(checker, pixels)
            tensors |= {f"easel-tiny/{kind}/{width}x{height}/{part}": tensor for part, tensor in found.items()}
            rows.append({"kind": kind, "size": [width, height], **scores(checker, found), "nsfw": says(checker, pixels)})
    return {"pictures": rows}
