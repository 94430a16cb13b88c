"""Colours by name, the plain shapes, and things that are drawn from several shapes: a tree, a house, a cat."""

import math

import torch
from torch import Tensor

import canvas as sdf
from canvas import Canvas, Dice, Frame, noise

COLOURS = {
    "red": (218, 38, 44),
    "orange": (244, 132, 30),
    "yellow": (250, 210, 50),
    "green": (48, 164, 72),
    "turquoise|teal": (24, 168, 164),
    "blue": (36, 94, 218),
    "purple|violet": (126, 58, 184),
    "pink": (244, 130, 182),
    "brown": (132, 82, 48),
    "white": (247, 247, 243),
    "gray|grey": (142, 146, 152),
    "black": (26, 26, 32),
    "light blue|sky blue": (136, 196, 242),
    "dark blue|navy blue": (18, 32, 92),
    "light green|lime green": (152, 216, 104),
    "dark green": (16, 82, 44),
    "beige|cream": (240, 224, 188),
}
NAMES = list(COLOURS)
TABLE = torch.tensor([COLOURS[name] for name in NAMES]) / 255
# Pairs that a stranger would not tell apart at a glance.
CLOSE = {
    frozenset(pair)
    for pair in (
        ("white", "beige|cream"), ("white", "light blue|sky blue"), ("black", "dark blue|navy blue"),
        ("black", "dark green"), ("blue", "dark blue|navy blue"), ("green", "dark green"),
        ("yellow", "beige|cream"), ("green", "turquoise|teal"), ("red", "brown"), ("blue", "purple|violet"),
        ("dark blue|navy blue", "dark green"), ("light green|lime green", "yellow"), ("gray|grey", "turquoise|teal"),
        ("black", "brown"), ("dark blue|navy blue", "purple|violet"), ("gray|grey", "light blue|sky blue"),
        ("brown", "dark green"), ("red", "orange"), ("orange", "yellow"),
    )
}


def pick_colours(dice: Dice, avoid: list[str] | None = None, among: list[str] = NAMES) -> tuple[list[str], Tensor]:
    """A named colour for each picture, told apart from the one to avoid."""
    names = []
    for item in range(dice.batch):
        free = [n for n in among if not avoid or (n != avoid[item] and frozenset((n, avoid[item])) not in CLOSE)]
        weights = torch.tensor([2.0 if NAMES.index(n) < 12 else 1.0 for n in free])
        names.append(free[int(torch.multinomial(weights, 1, generator=dice.source))])
    return names, dice.jitter(dice.colours([COLOURS[n] for n in names]) / 255)


def rgb(dice: Dice, red: int, green: int, blue: int, jitter: float = 0.03) -> Tensor:
    return dice.jitter(dice.colours([[red / 255, green / 255, blue / 255]] * dice.batch), jitter)


def mix(colour: Tensor, other: Tensor, amount) -> Tensor:
    return colour + (other - colour) * amount


def lighter(colour: Tensor, amount: float = 0.3) -> Tensor:
    return colour + (1 - colour) * amount


SHAPES = {
    "circle|disc": sdf.circle,
    "square": lambda f: sdf.box(f, 0.8, 0.8, 0.03),
    "triangle": lambda f: sdf.convex(f, (0.0, -0.95), (0.95, 0.75), (-0.95, 0.75)) - 0.02,
    "star": lambda f: sdf.star(f) - 0.02,
    "heart": lambda f: sdf.heart(f),
    "diamond|rhombus": lambda f: sdf.convex(f, (0, -1), (0.72, 0), (0, 1), (-0.72, 0)),
    "hexagon": lambda f: sdf.regular(f, 6),
    "ring": sdf.ring,
    "crescent": sdf.crescent,
    "cross|plus": sdf.cross,
    "oval|ellipse": lambda f: sdf.ellipse(f, 1.0, 0.62),
    "blossom": lambda f: torch.minimum(sdf.petals(f, 6), sdf.circle(f, 0.45)),
}


class Brush:
    """Draws things on one canvas. `tint` is the light of the scene, `shown` hides the thing in some of the pictures."""

    def __init__(self, canvas: Canvas, dice: Dice, tint: Tensor | None = None, lit: Tensor | float = 0.0):
        self.canvas, self.dice, self.tint, self.lit = canvas, dice, tint, lit

    def fill(self, frame: Frame, distance: Tensor, colour: Tensor, opacity=1.0, sheen=0.0, soft=0.0, tinted=True):
        if tinted and self.tint is not None:
            colour = colour * self.tint
        self.canvas.fill(frame, distance, colour, opacity, soft, sheen)

    def rgb(self, *value: int) -> Tensor:
        return rgb(self.dice, *value)

    def tree(self, frame: Frame, colour: Tensor, shown=1.0) -> None:
        trunk = sdf.box(frame.moved(0, 0.62), 0.10, 0.40, 0.04)
        self.fill(frame, trunk, self.rgb(112, 74, 44), shown)
        crown = sdf.union(
            sdf.circle(frame.moved(0, -0.42), 0.50), sdf.circle(frame.moved(-0.38, -0.08), 0.40),
            sdf.circle(frame.moved(0.38, -0.08), 0.40), sdf.circle(frame.moved(0, 0.02), 0.42),
        )
        self.fill(frame, crown, colour * 0.9, shown, sheen=0.22)
        for u, v, r in ((-0.16, -0.50, 0.22), (-0.42, -0.14, 0.17), (0.22, -0.20, 0.18)):
            self.fill(frame, sdf.circle(frame.moved(u, v), r), lighter(colour, 0.16), 0.8 * shown, soft=0.03)

    def pine(self, frame: Frame, colour: Tensor, shown=1.0, snow=0.0) -> None:
        self.fill(frame, sdf.box(frame.moved(0, 0.82), 0.09, 0.20), self.rgb(96, 62, 40), shown)
        for v, wide, high in ((0.72, 0.62, 0.62), (0.30, 0.50, 0.60), (-0.12, 0.37, 0.62)):
            layer = frame.moved(0, v)
            tier = sdf.convex(layer, (0.0, -high - 0.2), (wide, 0.0), (-wide, 0.0))
            self.fill(frame, tier, colour, shown, sheen=0.2)
            cap = sdf.convex(layer, (0.0, -high - 0.2), (wide * 0.52, -high * 0.42), (-wide * 0.52, -high * 0.42))
            self.fill(frame, cap, self.rgb(244, 248, 252), shown * snow)

    def house(self, frame: Frame, wall: Tensor, roof: Tensor, shown=1.0) -> None:
        self.fill(frame, sdf.box(frame.moved(0.46, -0.62), 0.10, 0.26), wall * 0.72, shown)
        self.fill(frame, sdf.box(frame.moved(0, 0.38), 0.72, 0.58), wall, shown, sheen=0.10)
        gable = sdf.convex(frame, (0.0, -0.92), (0.95, -0.14), (-0.95, -0.14))
        self.fill(frame, gable, roof, shown, sheen=0.12)
        self.fill(frame, sdf.box(frame.moved(0, 0.62), 0.16, 0.34), self.rgb(104, 64, 40), shown)
        glass = mix(self.rgb(150, 206, 236), self.rgb(255, 222, 120), self.lit_channel())
        for u in (-0.44, 0.44):
            self.fill(frame, sdf.box(frame.moved(u, 0.26), 0.19, 0.19), self.rgb(250, 250, 246), shown)
            self.fill(frame, sdf.box(frame.moved(u, 0.26), 0.145, 0.145), glass, shown, tinted=False)
            self.fill(frame, sdf.box(frame.moved(u, 0.26), 0.02, 0.17), self.rgb(250, 250, 246), shown)

    def lit_channel(self):
        return self.lit.view(-1, 1) if isinstance(self.lit, Tensor) else self.lit

    def flower(self, frame: Frame, colour: Tensor, shown=1.0) -> None:
        stem = self.rgb(58, 140, 66)
        self.fill(frame, sdf.box(frame.moved(0, 0.52), 0.045, 0.50, 0.03), stem, shown)
        for side in (-1, 1):
            leaf = sdf.ellipse(frame.moved(0.22 * side, 0.62).turned(-0.6 * side), 0.25, 0.10)
            self.fill(frame, leaf, stem * 1.1, shown)
        bloom = frame.moved(0, -0.36, 0.60)
        self.fill(bloom, sdf.petals(bloom, 7), colour, shown, sheen=0.12)
        self.fill(bloom, sdf.circle(bloom, 0.36), self.rgb(252, 204, 60), shown)
        self.fill(bloom, sdf.circle(bloom, 0.22), self.rgb(226, 150, 40), 0.7 * shown, soft=0.05)

    def sun(self, frame: Frame, colour: Tensor, shown=1.0, rays=1.0) -> None:
        self.canvas.glow(frame, sdf.circle(frame, 0.55), lighter(colour, 0.35), 0.35, 0.55 * shown)
        angle = torch.atan2(frame.u, -frame.v)
        radius = torch.sqrt(frame.u**2 + frame.v**2)
        step = 2 * math.pi / 12
        folded = torch.remainder(angle + step / 2, step) - step / 2
        ray = torch.maximum((radius * torch.sin(folded)).abs() - 0.13 * (1.05 - radius).clamp(min=0), 0.62 - radius)
        self.fill(frame, ray, colour, shown * rays, tinted=False)
        self.fill(frame, sdf.circle(frame, 0.55), colour, shown, sheen=0.08, tinted=False)

    def moon(self, frame: Frame, colour: Tensor, shown=1.0, full=0.0) -> None:
        sickle, disc = sdf.crescent(frame.moved(0, 0, 0.85)) * 0.85, sdf.circle(frame, 0.8)
        self.canvas.glow(frame, mix(sickle, disc, full), lighter(colour, 0.2), 0.22, 0.32 * shown)
        self.fill(frame, sickle, colour, shown * (1 - full), tinted=False)
        self.fill(frame, disc, colour, shown * full, tinted=False)
        for u, v, r in ((-0.25, -0.2, 0.2), (0.3, 0.15, 0.15), (-0.1, 0.4, 0.12)):
            self.fill(frame, sdf.circle(frame.moved(u, v), r), colour * 0.88, shown * full, tinted=False)

    def cloud(self, frame: Frame, colour: Tensor, shown=1.0) -> None:
        puffs = sdf.union(
            sdf.circle(frame.moved(-0.52, 0.06), 0.30), sdf.circle(frame.moved(-0.12, -0.16), 0.40),
            sdf.circle(frame.moved(0.36, -0.04), 0.34), sdf.box(frame.moved(0, 0.16), 0.82, 0.20, 0.20),
        )
        self.fill(frame, puffs, colour, shown, sheen=0.10)

    def boat(self, frame: Frame, hull: Tensor, sail: Tensor, shown=1.0) -> None:
        self.fill(frame, sdf.box(frame.moved(0, -0.22), 0.03, 0.72), self.rgb(96, 66, 44), shown)
        main = sdf.convex(frame, (0.07, -0.92), (0.72, 0.34), (0.07, 0.34))
        self.fill(frame, main, sail, shown, sheen=0.10)
        jib = sdf.convex(frame, (-0.07, -0.72), (-0.07, 0.34), (-0.58, 0.34))
        self.fill(frame, jib, sail * 0.92, shown, sheen=0.10)
        body = sdf.convex(frame, (-0.85, 0.44), (0.92, 0.44), (0.58, 0.86), (-0.55, 0.86))
        self.fill(frame, body, hull, shown, sheen=0.12)

    def mushroom(self, frame: Frame, cap: Tensor, shown=1.0) -> None:
        self.fill(frame, sdf.box(frame.moved(0, 0.45), 0.24, 0.48, 0.16), self.rgb(246, 236, 214), shown, sheen=0.12)
        dome = torch.maximum(sdf.ellipse(frame.moved(0, 0.12), 0.92, 0.98), frame.v - 0.16)
        self.fill(frame, dome, cap, shown, sheen=0.15)
        for u, v, r in ((-0.42, -0.16, 0.15), (0.05, -0.46, 0.17), (0.48, -0.10, 0.13), (0.02, -0.02, 0.10)):
            self.fill(frame, sdf.circle(frame.moved(u, v), r), self.rgb(252, 248, 240), shown)

    def balloon(self, frame: Frame, colour: Tensor, other: Tensor, shown=1.0) -> None:
        """A hot air balloon with gores in two colours."""
        envelope = sdf.union(
            sdf.circle(frame.moved(0, -0.30), 0.66),
            sdf.convex(frame, (-0.58, 0.02), (0.58, 0.02), (0.17, 0.52), (-0.17, 0.52)),
        )
        self.fill(frame, envelope, colour, shown, sheen=0.14)
        bulge = torch.sqrt((1 - ((frame.v + 0.30) / 0.86) ** 2).clamp(min=0.04))
        gore = torch.cos(frame.u / (0.66 * bulge) * 4.2)
        stripe = torch.maximum(envelope, -gore * 0.12)
        self.fill(frame, stripe, other, shown, sheen=0.14)
        for side in (-1, 1):
            rope = sdf.convex(frame, (0.13 * side - 0.015, 0.5), (0.13 * side + 0.015, 0.5), (0.10 * side + 0.015, 0.8), (0.10 * side - 0.015, 0.8))
            self.fill(frame, rope, self.rgb(90, 64, 44), shown)
        self.fill(frame, sdf.box(frame.moved(0, 0.86), 0.15, 0.11, 0.03), self.rgb(140, 92, 52), shown)

    def fish(self, frame: Frame, colour: Tensor, shown=1.0) -> None:
        tail = sdf.convex(frame, (-0.96, -0.45), (-0.40, 0.0), (-0.96, 0.45))
        self.fill(frame, tail, colour * 0.85, shown)
        fin = sdf.convex(frame, (0.05, -0.62), (0.30, -0.25), (-0.25, -0.25))
        self.fill(frame, fin, colour * 0.85, shown)
        body = sdf.ellipse(frame.moved(0.15, 0), 0.74, 0.42)
        self.fill(frame, body, colour, shown, sheen=0.18)
        band = torch.maximum(body, (frame.u + 0.05 + 0.25 * frame.v**2).abs() - 0.09)
        self.fill(frame, band, lighter(colour, 0.6), shown)
        self.fill(frame, sdf.circle(frame.moved(0.56, -0.10), 0.11), self.rgb(252, 252, 250), shown)
        self.fill(frame, sdf.circle(frame.moved(0.58, -0.10), 0.06), self.rgb(20, 20, 26), shown)

    def cat(self, frame: Frame, colour: Tensor, shown=1.0) -> None:
        dark = colour * 0.78
        tail = torch.maximum((sdf.circle(frame.moved(0.58, 0.40), 0.34)).abs() - 0.08, -(frame.u - 0.5))
        self.fill(frame, tail, dark, shown)
        self.fill(frame, sdf.ellipse(frame.moved(0, 0.52), 0.50, 0.46), colour, shown, sheen=0.12)
        self.fill(frame, sdf.ellipse(frame.moved(0, 0.62), 0.26, 0.32), lighter(colour, 0.45), shown)
        for side in (-1, 1):
            corners = ((0.10, -0.62), (0.46, -0.98), (0.50, -0.40)) if side > 0 else ((-0.46, -0.98), (-0.10, -0.62), (-0.50, -0.40))
            self.fill(frame, sdf.convex(frame, *corners), colour, shown)
            inner = sdf.convex(frame.moved(0.375 * side, -0.64, 0.55), *((u - 0.36 * side, v + 0.66) for u, v in corners))
            self.fill(frame.moved(0, 0, 0.55), inner, self.rgb(246, 170, 180), shown)
        self.fill(frame, sdf.ellipse(frame.moved(0, -0.30), 0.52, 0.42), colour, shown, sheen=0.12)
        for side in (-1, 1):
            self.fill(frame, sdf.ellipse(frame.moved(0.20 * side, -0.36), 0.11, 0.13), self.rgb(196, 226, 110), shown)
            self.fill(frame, sdf.ellipse(frame.moved(0.20 * side, -0.36), 0.045, 0.11), self.rgb(20, 20, 24), shown)
        nose = sdf.convex(frame, (-0.06, -0.20), (0.06, -0.20), (0.0, -0.12))
        self.fill(frame, nose, self.rgb(238, 120, 140), shown)

    def butterfly(self, frame: Frame, colour: Tensor, other: Tensor, shown=1.0) -> None:
        half = Frame(frame.u.abs(), frame.v, frame.size)
        upper = half.moved(0.48, -0.30).turned(-0.6)
        lower = half.moved(0.38, 0.38).turned(0.7)
        self.fill(frame, sdf.ellipse(lower, 0.40, 0.30), colour * 0.85, shown)
        self.fill(frame, sdf.ellipse(upper, 0.55, 0.36), colour, shown, sheen=0.1)
        self.fill(frame, sdf.ellipse(upper.moved(0.12, 0), 0.26, 0.18), other, shown)
        self.fill(frame, sdf.ellipse(lower.moved(0.06, 0), 0.17, 0.13), other, shown)
        self.fill(frame, sdf.ellipse(frame, 0.09, 0.58), self.rgb(48, 36, 36), shown)
        feeler = torch.maximum(sdf.circle(half.moved(0.34, -0.62), 0.30).abs() - 0.025, torch.maximum(half.u - 0.30, half.v + 0.52))
        self.fill(frame, feeler, self.rgb(48, 36, 36), shown)

    def rocket(self, frame: Frame, colour: Tensor, shown=1.0) -> None:
        flame = sdf.convex(frame, (-0.16, 0.62), (0.16, 0.62), (0.0, 1.02))
        self.fill(frame, flame, self.rgb(255, 170, 40), shown, tinted=False)
        for side in (-1, 1):
            fin = ((0.24, 0.15), (0.56, 0.66), (0.20, 0.60)) if side > 0 else ((-0.24, 0.15), (-0.20, 0.60), (-0.56, 0.66))
            self.fill(frame, sdf.convex(frame, *fin), colour, shown)
        body = torch.maximum(sdf.ellipse(frame.moved(0, 0.12), 0.36, 1.06), frame.v - 0.64)
        self.fill(frame, body, self.rgb(238, 240, 244), shown, sheen=0.12)
        self.fill(frame, torch.maximum(body, frame.v + 0.42), colour, shown, sheen=0.12)
        self.fill(frame, sdf.circle(frame.moved(0, -0.08), 0.18), self.rgb(96, 108, 124), shown)
        self.fill(frame, sdf.circle(frame.moved(0, -0.08), 0.13), self.rgb(130, 206, 240), shown)

    def cactus(self, frame: Frame, colour: Tensor, shown=1.0) -> None:
        arms = sdf.union(
            sdf.box(frame, 0.17, 0.98, 0.17),
            sdf.box(frame.moved(-0.32, 0.12), 0.30, 0.12, 0.12), sdf.box(frame.moved(-0.50, -0.14), 0.12, 0.36, 0.12),
            sdf.box(frame.moved(0.32, -0.10), 0.30, 0.12, 0.12), sdf.box(frame.moved(0.50, -0.38), 0.12, 0.38, 0.12),
        )
        self.fill(frame, arms, colour, shown, sheen=0.18)

    def lighthouse(self, frame: Frame, colour: Tensor, shown=1.0) -> None:
        tower = sdf.convex(frame, (-0.20, -0.52), (0.20, -0.52), (0.32, 1.0), (-0.32, 1.0))
        self.fill(frame, tower, self.rgb(248, 248, 244), shown)
        stripes = torch.maximum(tower, (torch.remainder(frame.v + 0.52, 0.62) - 0.46).abs() - 0.155)
        self.fill(frame, stripes, colour, shown)
        self.fill(frame, sdf.box(frame.moved(0, -0.55), 0.28, 0.04), self.rgb(54, 56, 66), shown)
        lamp = mix(self.rgb(190, 220, 236), self.rgb(255, 232, 140), self.lit_channel())
        self.fill(frame, sdf.box(frame.moved(0, -0.68), 0.15, 0.12), lamp, shown, tinted=False)
        self.fill(frame, sdf.convex(frame, (0, -1.0), (0.22, -0.78), (-0.22, -0.78)), colour * 0.9, shown)

    def stars(self, density: float, shown) -> None:
        """Small stars scattered over the whole sky, on a jittered grid."""
        canvas = self.canvas
        for grid, radius in ((0.21 / density, 3.4), (0.43 / density, 5.4)):
            seed = self.dice.between(0, 50)
            column, row = torch.floor(canvas.x / grid), torch.floor(canvas.y / grid)
            cell = column * 7.13 + row * 3.71
            across = canvas.x / grid - column - 0.2 - 0.6 * noise(cell, seed)
            down = canvas.y / grid - row - 0.2 - 0.6 * noise(cell, seed + 1.7)
            size = (0.45 + 0.55 * noise(cell, seed + 3.1)) * radius / 256
            there = (noise(cell, seed + 5.3) > 0.35).float()
            frame = Frame(across * grid, down * grid, 1.0)
            self.canvas.fill(frame, sdf.circle(frame, size), self.rgb(255, 250, 224), shown * there)
