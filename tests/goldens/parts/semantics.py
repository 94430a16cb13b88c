"""Measures of colour and style in diffusers' own pictures of easel-tiny: whether a picture shows what its prompt says.

`semantics.rs` takes the same measures of Easel's pictures. A picture is divided into ground and subject by its frame: the
ground's colour is the median of the frame's pixels, and what is far from it is the subject.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from . import made_with
from .pictures import DEFAULTS, DEVICE, load, paint

# The colours that easel-tiny's captions name, as in tests/model/things.py.
PALETTE = {
    "red": (218, 38, 44), "orange": (244, 132, 30), "yellow": (250, 210, 50), "green": (48, 164, 72), "turquoise": (24, 168, 164),
    "blue": (36, 94, 218), "purple": (126, 58, 184), "pink": (244, 130, 182), "brown": (132, 82, 48), "white": (247, 247, 243),
    "gray": (142, 146, 152), "black": (26, 26, 32), "light blue": (136, 196, 242), "dark blue": (18, 32, 92),
    "light green": (152, 216, 104), "dark green": (16, 82, 44), "beige": (240, 224, 188),
}
# Subject's colour, shape, ground's colour.
GRID = [
    ("red", "circle", "blue"), ("blue", "square", "yellow"), ("green", "triangle", "white"), ("yellow", "star", "dark blue"),
    ("pink", "heart", "black"), ("purple", "diamond", "orange"), ("white", "ring", "green"), ("orange", "hexagon", "turquoise"),
    ("black", "cross", "light blue"), ("turquoise", "oval", "pink"),
]
STYLED = GRID[:2] + GRID[5:6]
STYLES = ["halftone", "stained-glass"]
STEPS, SEED = 8, 42
# Pixels of the frame, the distance of a subject's colour from the ground's (of 255), and the luminance of leading (of 1).
FRAME, APART, DARK = 32, 90.0, 0.16
# The halftone's dots repeat after as many pixels, in both diagonals.
PERIOD = 16


def make(folder: Path) -> None:
    pipeline = load("f32")
    cases = []
    for subject, shape, ground in GRID:
        for style in [None, *STYLES] if (subject, shape, ground) in STYLED else [None]:
            prompt = f"{subject} {shape} {ground} background"
            lora = style and f"{style}.safetensors"
            image = paint(pipeline, DEFAULTS | {"prompt": prompt, "steps": STEPS, "seed": SEED, "lora": lora})[0]
            cases.append({"prompt": prompt, "subject": subject, "ground": ground, "style": style, "measures": measure(image)})
    about = {
        "made_with": made_with("torch", "diffusers", "transformers", "peft"), "steps": STEPS, "seed": SEED, "noise_source": DEVICE, "frame": FRAME, "apart": APART,
        "dark": DARK, "period": PERIOD, "palette": PALETTE,
    }
    (folder / "semantics.json").write_text(json.dumps(about | {"cases": cases}, indent=1) + "\n")


def measure(image: Image.Image) -> dict:
    """The commonest named colour of ground and subject with its share of their pixels, dots, and leading."""
    rgb = np.array(image, dtype=np.float64)
    inside = np.zeros(rgb.shape[:2], dtype=bool)
    inside[FRAME:-FRAME, FRAME:-FRAME] = True
    frame = rgb[~inside]
    median = np.sort(frame, axis=0)[len(frame) // 2]
    away = np.linalg.norm(rgb - median, axis=2) > APART
    luminance = rgb @ [0.299, 0.587, 0.114] / 255
    return {
        "ground": commonest(frame), "subject": commonest(rgb[away]), "subject_share": float(away.mean()),
        "dots": dots(luminance), "leading": float((luminance < DARK).mean()),
    }


def commonest(pixels: np.ndarray) -> dict:
    names, table = list(PALETTE), np.array(list(PALETTE.values()), dtype=np.float64)
    nearest = np.square(pixels[:, None] - table).sum(2).argmin(1)
    counts = np.bincount(nearest, minlength=len(names))
    return {"colour": names[counts.argmax()], "share": float(counts.max() / max(1, len(pixels)))}


def dots(luminance: np.ndarray) -> float:
    """The mean amplitude of the two diagonal waves of the halftone's period."""
    rows, columns = np.indices(luminance.shape)
    waves = [np.exp(-2j * np.pi * (rows + sign * columns) / PERIOD) for sign in (1, -1)]
    return float(np.mean([abs((luminance * wave).mean()) for wave in waves]))
