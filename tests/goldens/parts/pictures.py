"""Whole pictures of easel-tiny as diffusers paints them from a seed in f32: the reference for every device.

With a CUDA GPU the noise is that of its generator, and the file also says how far diffusers' own f16 and bf16 pictures are from
the f32 ones. Without, the noise is that of torch's CPU generator; all of them take about two minutes on two cores, and those that stand from
the same model, settings and versions are not painted again.
"""

import hashlib
import json
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image, ImageDraw

from . import made_with
from .schedulers import SCHEDULERS

REPOSITORY = Path(__file__).resolve().parents[3]
MODEL = REPOSITORY / "tests" / "model" / "easel-tiny"
STYLES = REPOSITORY / "tests" / "model" / "styles"
SIZES = {"1:1": (512, 512), "2:2": (768, 768), "1:2": (512, 1024)}
# Width and height whose latents have odd sides: 33x41 (then 17x21, 9x11, 5x6), 35x37, 32x45, 125x33 and 43x47.
ODD_SIZES = [(264, 328), (280, 296), (256, 360), (1000, 264), (344, 376)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
DEFAULTS = {
    "negative_prompt": "", "aspect_ratio": "1:1", "scheduler": "dpmsolver++", "steps": 50, "guidance_scale": 7.5, "seed": 42, "lora": None,
    "lora_scale": 1.0, "num_images": 1, "noise_source": DEVICE,
}


def cases() -> list[dict]:
    """One whole run at the usual size and steps. The others have few steps, each for what no other shows: a size, a scheduler, a LoRA file,
    a scale, a negative prompt, a long seed, a second image. Other golden values prove the schedulers step by step. Rows with a width and a
    height have no use for their aspect ratio.
    """
    mountains, glass = "mountains snow lake blue sky", "stained-glass-kohya.safetensors"
    rows = [
        {"name": "square", "prompt": "lighthouse sunset sea"},
        {"name": "large", "prompt": "lighthouse sunset sea", "aspect_ratio": "2:2", "steps": 6},
        {"name": "tall-halftone", "prompt": "meadow red flowers blue sky sun", "aspect_ratio": "1:2", "lora": "halftone.safetensors", "seed": 7, "steps": 8},
    ]
    for scheduler in list(SCHEDULERS)[1:]:
        steps = 4 if scheduler == "lcm" else 10
        rows.append({"name": scheduler.replace("_", "-"), "prompt": mountains, "scheduler": scheduler, "seed": 3, "steps": steps})
    rows.append({"name": "lcm-stained-glass", "prompt": "red circle blue background", "lora": glass, "scheduler": "lcm", "seed": 0, "steps": 4})
    rows.append({"name": "half-scale", "prompt": "house", "negative_prompt": "tree night", "lora": "stained-glass.safetensors", "lora_scale": 0.5, "steps": 10, "seed": 2**33 + 1})
    rows.append({"name": "pair", "prompt": "yellow star dark blue background", "num_images": 2, "steps": 8})
    for width, height in ODD_SIZES:
        row = {"name": f"odd-{width}x{height}", "prompt": "lighthouse sunset sea", "width": width, "height": height, "steps": 4}
        rows.append(row | ({"lora": "halftone.safetensors"} if width == 344 else {}))
    sketch = {"image": "sketch.png", "prompt": mountains}
    rows.append(sketch | {"name": "from-sketch", "strength": 0.6, "seed": 5, "steps": 15})
    rows.append(sketch | {
        "name": "from-sketch-glass", "strength": 0.75, "lora": glass, "seed": 11, "steps": 12, "scheduler": "euler_ancestral", "num_images": 2,
        "width": 264, "height": 328,
    })
    return [DEFAULTS | row for row in rows]


def draw_sketch() -> Image.Image:
    """A sketch as a customer may bring one, of a size of its own: washes of colour, and a few black lines over them."""
    sketch = Image.new("RGB", (600, 440), "white")
    draw = ImageDraw.Draw(sketch)
    mountains = [[(40, 280), (190, 70), (330, 280)], [(250, 280), (420, 40), (580, 280)]]
    draw.rectangle((0, 0, 600, 280), fill=(170, 205, 240))
    draw.rectangle((0, 280, 600, 440), fill=(60, 110, 190))
    for left, top, right in mountains:
        draw.polygon([left, top, right], fill=(120, 120, 130))
        snow = [(top[0] + (end[0] - top[0]) // 3, top[1] + (end[1] - top[1]) // 3) for end in (left, right)]
        draw.polygon([top, *snow], fill=(250, 250, 255))
        draw.line([left, top, right], fill="black", width=5)
    draw.line([(0, 280), (600, 280)], fill="black", width=4)
    for row in range(310, 440, 36):
        draw.arc((row - 220, row, row - 60, row + 18), 200, 340, fill="black", width=3)
        draw.arc((row + 20, row - 12, row + 150, row + 6), 200, 340, fill="black", width=3)
    return sketch


def make(folder: Path) -> None:
    torch.backends.cudnn.allow_tf32 = False
    target = folder / "pictures"
    target.mkdir(exist_ok=True)
    rows = cases()
    about = {
        "made_with": made_with("torch", "diffusers", "transformers", "peft"),
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU",
        "model": digest(),
    }
    draw_sketch().save(target / "sketch.png", optimize=True)
    standing = stand(target, about) if DEVICE == "cpu" else {}
    truth: dict[str, list[np.ndarray]] = {}
    for dtype in DTYPES if DEVICE == "cuda" else ["f32"]:
        pipeline = load(dtype)
        for row in rows:
            if row == {key: value for key, value in standing.get(row["name"], {}).items() if key != "files"}:
                row["files"] = standing[row["name"]]["files"]
                continue
            images = paint(pipeline, row)
            if dtype == "f32":
                truth[row["name"]] = [np.array(image) for image in images]
                row["files"] = [f"{row['name']}{f'-{index + 1}' if index else ''}.png" for index in range(len(images))]
                for file, image in zip(row["files"], images):
                    image.save(target / file, optimize=True)
            else:
                row[f"diffusers_{dtype}_psnr"] = min(psnr(np.array(image), reference) for image, reference in zip(images, truth[row["name"]]))
    (target / "pictures.json").write_text(json.dumps(about | {"cases": rows}, indent=1) + "\n")


def digest() -> str:
    """Of the weights that paint."""
    whole = hashlib.sha256()
    painting = [path for path in MODEL.rglob("*.safetensors") if path.parent.name != "safety_checker"]
    for path in sorted([*painting, *STYLES.glob("*.safetensors")]):
        whole.update(path.read_bytes())
    return whole.hexdigest()


def stand(target: Path, about: dict) -> dict[str, dict]:
    """The cases whose pictures stand, by name, if they were made with the same."""
    file = target / "pictures.json"
    if not file.exists():
        return {}
    found = json.loads(file.read_text())
    if {key: found.get(key) for key in about} != about:
        return {}
    return {row["name"]: row for row in found["cases"] if all((target / name).exists() for name in row["files"])}


def load(dtype: str) -> diffusers.StableDiffusionPipeline:
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=DTYPES[dtype], safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(DEVICE)


def paint(pipeline: diffusers.StableDiffusionPipeline, row: dict) -> list[Image.Image]:
    """The pictures of one case, before JPEG."""
    width, height = (row["width"], row["height"]) if "width" in row else SIZES[row["aspect_ratio"]]
    pipeline.scheduler = SCHEDULERS[row["scheduler"]].from_config(diffusers.PNDMScheduler.from_pretrained(MODEL / "scheduler").config)
    if row["lora"]:
        pipeline.load_lora_weights(STYLES, weight_name=row["lora"], adapter_name="style")
        pipeline.set_adapters(["style"], [row["lora_scale"]])
    size, painter = {"width": width, "height": height}, pipeline
    if "image" in row:
        # It takes the size of its picture, which is filled as the pipeline's own class does it.
        painter = diffusers.StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
        painter.set_progress_bar_config(disable=True)
        sketch = Image.open(MODEL.parents[1] / "goldens" / "pictures" / row["image"]).convert("RGB")
        size = {"image": painter.image_processor._resize_and_crop(sketch, width, height), "strength": row["strength"]}
    with torch.no_grad():
        images = painter(
            row["prompt"], negative_prompt=row["negative_prompt"], **size, num_inference_steps=row["steps"],
            guidance_scale=row["guidance_scale"], num_images_per_prompt=row["num_images"], generator=torch.Generator(DEVICE).manual_seed(row["seed"]),
        ).images
    if row["lora"]:
        pipeline.unload_lora_weights()
    return images


def psnr(ours: np.ndarray, theirs: np.ndarray) -> float:
    error = np.mean((ours.astype(np.float64) - theirs.astype(np.float64)) ** 2)
    return round(float(10 * np.log10(255**2 / max(error, 1e-10))), 2)
