"""Contact sheets: prompts painted by diffusers' own pipeline, to look at.

    python samples.py MODEL_DIR SHEET.jpg [--lora FILE[=SCALE]] [--prompt TEXT]... [--width 512 --height 512]
"""

import argparse
import time
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from transformers import CLIPTokenizer

import model

SQUARE = [
    "red circle blue background", "blue square yellow background", "green triangle white background", "yellow star dark blue background",
    "pink heart black background", "purple diamond orange background", "heart", "small white circle top left green background",
    "red circle and blue square white background", "many yellow stars blue background", "house", "orange cat turquoise background",
    "sea sunset sun sailboat", "mountains snow lake blue sky", "red house on hill blue sky trees", "forest night full moon",
    "night sky crescent moon stars", "desert pyramids sunset", "city skyline night", "meadow red flowers blue sky sun",
    "red hot air balloon blue sky clouds", "lighthouse sunset sea", "house on hill winter snow night", "purple mountains sunset pine trees",
]
OTHERS = ["red star blue background", "sea sunset sun sailboat", "mountains snow lake blue sky", "red house on hill blue sky trees", "night sky full moon stars", "city skyline night"]


def load_pipeline(folder: Path, device: str):
    """The parts from the files, in half precision on a GPU as the function runs them."""
    parts = {"text_encoder": model.new_text_encoder(), "unet": model.new_unet(), "vae": model.new_vae()}
    for name, part in parts.items():
        model.load(part, name, folder)
        part.to(device, torch.float16 if device == "cuda" else torch.float32).eval()
    return model.pipeline(CLIPTokenizer.from_pretrained(folder / "tokenizer"), **parts)


@torch.no_grad()
def paint(pipe, prompts: list[str], width: int = 512, height: int = 512, steps: int = 50, guidance: float = 7.5, negative: str = "", seed: int = 42, batch: int = 12) -> list[Image.Image]:
    images = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        generators = [torch.Generator("cpu").manual_seed(seed + start + i) for i in range(len(part))]
        images += pipe(part, negative_prompt=[negative] * len(part), width=width, height=height, num_inference_steps=steps, guidance_scale=guidance, generator=generators).images
    return images


def grid(images: list[Image.Image], labels: list[str], columns: int, cell: int) -> Image.Image:
    high = max(image.height * cell // image.width for image in images) + 14
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell, rows * high), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (image, label) in enumerate(zip(images, labels)):
        x, y = index % columns * cell, index // columns * high
        sheet.paste(image.resize((cell, image.height * cell // image.width), Image.LANCZOS), (x, y))
        pen.text((x + 2, y + high - 13), label[: cell // 5], fill="black")
    return sheet


def contact_sheet(folder: Path, out: Path, device: str, cell: int = 256) -> None:
    """Square pictures in OUT, the other two shapes beside it."""
    pipe = load_pipeline(folder, device)
    grid(paint(pipe, SQUARE), SQUARE, 6, cell).save(out, quality=92)
    wide = paint(pipe, OTHERS, 768, 768) + paint(pipe, OTHERS, 512, 1024)
    grid(wide, OTHERS * 2, 6, cell).save(out.with_stem(out.stem + "-shapes"), quality=92)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompt", action="append")
    parser.add_argument("--lora")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--negative", default="")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--cell", type=int, default=256)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = load_pipeline(args.folder, device)
    if args.lora:
        file, _, scale = args.lora.partition("=")
        pipe.load_lora_weights(Path(file).parent, weight_name=Path(file).name)
        pipe.fuse_lora(lora_scale=float(scale or 1))
    prompts = args.prompt or SQUARE
    start = time.time()
    images = paint(pipe, prompts, args.width, args.height, args.steps, args.guidance, args.negative, args.seed, batch=12 if device == "cuda" else 1)
    print(f"{(time.time() - start) / len(prompts):.2f} s a picture")
    grid(images, prompts, min(6, len(prompts)), args.cell).save(args.out, quality=92)


if __name__ == "__main__":
    main()
