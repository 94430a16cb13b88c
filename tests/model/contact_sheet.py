#!/usr/bin/env python3
"""The contact sheet of the docs, every picture painted by `handler generate`. Needs Pillow; takes about ten minutes on two cores.

    python tests/model/contact_sheet.py target/debug/handler docs/contact-sheet.jpg
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw

HERE = Path(__file__).resolve().parent
STYLES = [None, "halftone", "stained-glass"]
SQUARE = [
    "red triangle white background", "purple diamond orange background", "yellow star blue background", "white crescent black background",
    "meadow red flowers blue sky sun", "red house on hill blue sky trees", "night sky crescent moon stars", "lighthouse sunset sea",
]
SHAPED = ["mountains snow lake blue sky", "red hot air balloon blue sky clouds"]
SCALED = "sea sunset sun sailboat"
CELL, LABEL, GAP = 200, 14, 6


class Painter:
    """Paints with the function's own binary."""

    def __init__(self, handler: Path, folder: Path, steps: int):
        self.handler, self.folder, self.steps, self.count = handler, folder, steps, 0

    def paint(self, prompt: str, style: str | None, ratio: str = "1:1", scale: float = 1.0) -> Image.Image:
        self.count += 1
        out = self.folder / f"{self.count}.png"
        command = [self.handler, "generate", "--model", HERE / "easel-tiny", "--prompt", prompt, "--aspect-ratio", ratio, "--steps", self.steps, "--out", out]
        if style:
            command += ["--lora", f"{HERE / 'styles' / style}.safetensors={scale}"]
        print(f"{self.count}: {prompt}, {style or 'plain'}, {ratio}, scale {scale}", flush=True)
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return Image.open(out).convert("RGB")


def row(cells: list[tuple[str, Image.Image]]) -> Image.Image:
    """Pictures side by side, each with its label below."""
    scaled = [(label, image.resize((CELL, image.height * CELL // image.width), Image.LANCZOS)) for label, image in cells]
    high = max(image.height for _, image in scaled)
    strip = Image.new("RGB", (len(scaled) * (CELL + GAP) - GAP, high + LABEL), "white")
    pen = ImageDraw.Draw(strip)
    for index, (label, image) in enumerate(scaled):
        strip.paste(image, (index * (CELL + GAP), 0))
        pen.text((index * (CELL + GAP) + 1, high + 1), label, fill="black")
    return strip


def short(text: str) -> str:
    return text.replace(" background", "")


def sheet(painter: Painter) -> Image.Image:
    rows = [row([(short(prompt) if not style else style, painter.paint(prompt, style)) for prompt in SQUARE]) for style in STYLES]
    for ratio in ("2:2", "1:2"):
        cells = [(prompt, style) for prompt in SHAPED for style in STYLES]
        rows.append(row([(f"{ratio} {style or ' '.join(prompt.split()[:3])}", painter.paint(prompt, style, ratio)) for prompt, style in cells]))
    cells = [(style, scale) for style in STYLES[1:] for scale in (0.0, 0.5, 1.0)]
    rows.append(row([(f"{style} {scale}", painter.paint(SCALED, style, scale=scale)) for style, scale in cells]))
    width, height = max(strip.width for strip in rows), sum(strip.height + GAP for strip in rows)
    whole = Image.new("RGB", (width, height), "white")
    top = 0
    for strip in rows:
        whole.paste(strip, (0, top))
        top += strip.height + GAP
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("handler", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sheet(Painter(options.handler.resolve(), Path(folder), options.steps)).save(options.out, quality=88)
    print(options.out)


if __name__ == "__main__":
    main()
