"""The pictures that easel-tiny learns from, with their tags. Everything is drawn here; no outside data.

A family draws a whole batch of pictures of one kind and returns, for each picture, its tags: the subject first.
A tag lists its wordings, `a|b|c`; a caption takes a random part of the tags, in random order (see `captions.py`).
"""

import torch
from torch import Tensor

import canvas as sdf
from canvas import Canvas, Dice, Frame, noise, ridge
from things import NAMES, SHAPES, Brush, lighter, mix, pick_colours, rgb

Tags = list[list[str]]


def words(name: str) -> str:
    """One wording of a name for use inside a longer tag."""
    return name.split("|")[0]


def backdrop(canvas: Canvas, dice: Dice, names: list[str], colour: Tensor, patterned: float = 0.15) -> list[str]:
    """A plain, striped, dotted or checkered ground; returns its tag."""
    canvas.gradient(lighter(colour, 0.08), colour * 0.93)
    kinds = dice.weighted([1 - patterned, patterned / 3, patterned / 3, patterned / 3])
    pale = dice.put([float(c) for c in dice.chance(0.5)]).view(-1, 1)
    other = mix(colour * 0.76, lighter(colour, 0.35), pale)
    # Whole numbers of latents, so that the pattern falls alike in each of them.
    period = dice.put([[16, 32, 48, 64][i] for i in dice.index(4)])
    column, row = canvas.x / canvas.pixel + canvas.width / 2, canvas.y / canvas.pixel + canvas.height / 2

    def near(place: Tensor, shift: float) -> Tensor:
        return (torch.remainder(place / period + shift, 1.0) - 0.5) * period * canvas.pixel

    def show(kind: int) -> Tensor:
        return dice.put([float(k == kind) for k in kinds])

    flat = Frame(canvas.x, canvas.y, 1.0)
    unit = period * canvas.pixel
    slanted = dice.put([float(c) for c in dice.chance(0.5)])
    canvas.fill(flat, near(column + row * slanted, 0.5).abs() - unit * 0.25, other, show(1))
    dots = torch.minimum(
        torch.hypot(near(column, 0.0), near(row, 0.0)), torch.hypot(near(column, 0.5), near(row, 0.5))
    ) - unit * 0.22
    canvas.fill(flat, dots, other, show(2))
    a, b = near(column, 0.0), near(row, 0.0)
    checks = torch.where(a * b > 0, -1.0, 1.0) * torch.minimum(a.abs(), b.abs())
    canvas.fill(flat, checks, other, show(3))
    kind_words = ("{c} background", "{c} striped background|striped background|stripes", "{c} dotted background|dotted background|dots", "{c} checkered background|checkered background|checkers")
    tags = []
    for name, kind in zip(names, kinds):
        choice = name.split("|")
        tags.append("|".join(kind_words[kind].replace("{c}", c) for c in choice) if kind == 0 else kind_words[kind].replace("{c}", choice[0]))
    return tags


def spot(canvas: Canvas, dice: Dice, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Where a single thing stands and how big it is: x, y, radius and the tag of the place ('' for the middle)."""
    low = [(0.40, 0.56), (0.18, 0.28), (0.68, 0.82)]
    radius = dice.put([low[s][0] for s in sizes]) + dice.between(0, 1) * dice.put([low[s][1] - low[s][0] for s in sizes])
    places = ["", "left", "right", "top", "bottom", "top left", "top right", "bottom left", "bottom right"]
    choice = [i if s != 2 else 0 for i, s in zip(dice.weighted([30.0, 1, 1, 1, 1, 0.7, 0.7, 0.7, 0.7]), sizes)]
    across = dice.put([("right" in places[i]) - ("left" in places[i]) for i in choice])
    down = dice.put([("bottom" in places[i]) - ("top" in places[i]) for i in choice])
    room_x, room_y = canvas.half_width - radius - 0.06, canvas.half_height - radius - 0.06
    shake = dice.between(0.78, 1.0)
    x = across * room_x.clamp(min=0.1) * shake + dice.between(-0.05, 0.05)
    y = down * room_y.clamp(min=0.1) * shake + dice.between(-0.05, 0.05)
    return x, y, radius, ["center|middle" if i == 0 else places[i] for i in choice]


def draw_shape(canvas: Canvas, dice: Dice, frame: Frame, shape: str, colour: Tensor, outlined: Tensor | float = 0.0) -> None:
    distance = SHAPES[shape](frame)
    shade = frame.moved(0.05, 0.09)
    canvas.fill(shade, SHAPES[shape](shade), torch.zeros_like(colour), 0.22, soft=0.07)
    canvas.fill(frame, distance, colour, sheen=0.10)
    canvas.fill(frame, (distance + 0.02).abs() - 0.045, rgb(dice, 24, 22, 28), outlined)


def single(canvas: Canvas, dice: Dice) -> Tags:
    """One shape."""
    shape = list(SHAPES)[dice.index(len(SHAPES))[0]]
    ground_names, ground = pick_colours(dice)
    names, colour = pick_colours(dice, ground_names)
    ground_tags = backdrop(canvas, dice, ground_names, ground)
    sizes = dice.weighted([0.76, 0.1, 0.14])
    x, y, radius, places = spot(canvas, dice, sizes)
    outlined = dice.chance(0.06)
    turn = dice.between(-0.25, 0.25) * dice.put([float(c) for c in dice.chance(0.12)])
    draw_shape(canvas, dice, canvas.frame(x, y, radius).turned(turn), shape, colour, dice.put([float(o) for o in outlined]))
    return [
        [thing_tag(name, shape, size), ground_tag, *([place] if place else []), *(["outlined|outline"] if line else [])]
        for name, size, ground_tag, place, line in zip(names, sizes, ground_tags, places, outlined)
    ]


def thing_tag(colour: str, thing: str, size: int = 0) -> str:
    """The wordings of a coloured thing, the full one first."""
    sizes = ("", "small ", "large ", "big ", "little ")
    full = [f"{c} {t}" for c in colour.split("|") for t in thing.split("|")]
    if size:
        sized = [sizes[size] + text for text in full] + [sizes[2 if size == 2 else 1] + thing.split("|")[0]]
        return "|".join(sized * 2 + [sizes[3 if size == 2 else 4] + text for text in full] + full)
    return "|".join(full * 3 + [thing.split("|")[0]] + [colour.split("|")[0]])


def pair(canvas: Canvas, dice: Dice) -> Tags:
    """Two shapes, beside or over one another."""
    kinds = list(SHAPES)
    first, second = kinds[dice.index(len(kinds))[0]], kinds[dice.index(len(kinds))[0]]
    ground_names, ground = pick_colours(dice)
    names_a, colour_a = pick_colours(dice, ground_names)
    names_b, colour_b = pick_colours(dice, ground_names)
    ground_tags = backdrop(canvas, dice, ground_names, ground, 0.1)
    upright = [c or canvas.half_height > 1.5 for c in dice.chance(0.35)]
    along = dice.put([float(u) for u in upright])
    reach = 0.50 + (canvas.half_height - 1) * 0.35 * along
    radius = dice.between(0.30, 0.40)
    for side, shape, colour in ((-1, first, colour_a), (1, second, colour_b)):
        x = side * (1 - along) * reach + dice.between(-0.04, 0.04)
        y = side * along * reach + dice.between(-0.04, 0.04)
        draw_shape(canvas, dice, canvas.frame(x, y, radius), shape, colour)
    tags = []
    for a, b, ground_tag, tall in zip(names_a, names_b, ground_tags, upright):
        one, two = f"{words(a)} {words(first)}", f"{words(b)} {words(second)}"
        sides = ("top", "bottom") if tall else ("left", "right")
        tags.append([
            f"{one} and {two}|{one} {two}|{one} {sides[0]} {two} {sides[1]}|{two} {sides[1]} {one} {sides[0]}"
            + (f"|{one} above {two}|{two} below {one}" if tall else f"|{one} beside {two}"),
            ground_tag,
        ])
    return tags


def many(canvas: Canvas, dice: Dice) -> Tags:
    """A scatter of one shape, in one colour or in all of them."""
    shape = list(SHAPES)[dice.index(len(SHAPES))[0]]
    ground_names, ground = pick_colours(dice)
    names, colour = pick_colours(dice, ground_names)
    canvas.gradient(lighter(ground, 0.08), ground * 0.93)
    motley = dice.chance(0.25)
    cell = dice.put([[0.34, 0.5, 0.67][i] for i in dice.index(3)])
    seed = dice.between(0, 90)
    column, row = torch.floor((canvas.x + 1) / cell), torch.floor((canvas.y + canvas.half_height) / cell)
    index = column * 5.17 + row * 9.31
    across = (torch.remainder((canvas.x + 1) / cell, 1) - 0.5) * cell - (noise(index, seed) - 0.5) * 0.10 * cell
    down = (torch.remainder((canvas.y + canvas.half_height) / cell, 1) - 0.5) * cell - (noise(index, seed + 2) - 0.5) * 0.10 * cell
    size = cell * (0.32 + 0.06 * noise(index, seed + 4))
    frame = Frame(across / size, down / size, size)
    hue = noise(index, seed + 6).unsqueeze(1)
    wheel = torch.cat([0.55 + 0.42 * torch.cos(6.283 * (hue + shift)) for shift in (0.0, 0.67, 0.33)], 1)
    plain = colour.view(-1, 3, 1, 1)
    paint = torch.where(dice.put([float(m) for m in motley]).unsqueeze(1) > 0, wheel, plain.expand_as(wheel))
    canvas.blend((0.5 - SHAPES[shape](frame) * size / canvas.pixel).clamp(0, 1), paint)
    plural = {"cross": "crosses", "hexagon": "hexagons"}.get(words(shape), words(shape) + "s")
    return [
        [f"colorful {plural}|rainbow {plural}" if m else f"{words(n)} {plural}|many {words(n)} {plural}|{plural}", f"{words(g)} background", "pattern"]
        for n, g, m in zip(names, ground_names, motley)
    ]


def thing(canvas: Canvas, dice: Dice) -> Tags:
    """One thing on a plain ground."""
    kinds = ["tree", "pine tree", "house", "flower", "sun", "moon", "cloud", "sailboat|boat", "mushroom", "balloon|hot air balloon",
             "fish", "cat", "butterfly", "rocket", "cactus", "lighthouse"]
    kind = kinds[dice.index(len(kinds))[0]]
    ground_names, ground = pick_colours(dice)
    names, colour = pick_colours(dice, ground_names)
    other_names, other = pick_colours(dice, names)
    ground_tags = backdrop(canvas, dice, ground_names, ground, 0.12)
    sizes = dice.weighted([0.6, 0.1, 0.3])
    x, y, radius, places = spot(canvas, dice, sizes)
    frame = canvas.frame(x, y, radius * 1.1)
    canvas.fill(frame, sdf.ellipse(frame.moved(0, 1.0), 0.7, 0.12), torch.zeros_like(colour), 0.15 * (kind not in ("sun", "moon", "cloud", "fish", "rocket", "butterfly")), soft=0.06)
    brush = Brush(canvas, dice)
    extra = [[] for _ in names]
    if kind == "pine tree":
        brush.pine(frame, colour)
    elif kind == "house":
        brush.house(frame, colour, other)
        extra = [[f"{words(o)} roof"] for o in other_names]
    elif kind.startswith("sailboat"):
        brush.boat(frame, other, colour)
    elif kind.startswith("balloon"):
        brush.balloon(frame, colour, lighter(colour, 0.65))
    elif kind == "butterfly":
        brush.butterfly(frame, colour, lighter(colour, 0.55))
    elif kind == "moon":
        full = dice.chance(0.4)
        brush.moon(frame, colour, full=dice.put([float(f) for f in full]))
        extra = [["full moon"] if f else ["crescent moon|crescent"] for f in full]
    else:
        getattr(brush, kind)(frame, colour)
    return [
        [thing_tag(name, kind, size), ground_tag, *more, *([place] if place else [])]
        for name, size, ground_tag, place, more in zip(names, sizes, ground_tags, places, extra)
    ]


SKIES = {
    "day|daytime|sunny day": (((58, 138, 220), (150, 204, 242), (214, 236, 248)), (1.0, 1.0, 1.0), (255, 222, 90)),
    "sunset|dusk|evening": (((86, 52, 132), (232, 92, 100), (255, 190, 104)), (0.92, 0.74, 0.72), (255, 214, 120)),
    "sunrise|dawn|morning": (((118, 160, 222), (246, 184, 196), (255, 232, 186)), (1.0, 0.90, 0.88), (255, 236, 160)),
    "night|at night": (((8, 12, 40), (22, 32, 84), (58, 74, 134)), (0.46, 0.50, 0.72), (250, 242, 206)),
}


class Sky:
    """The upper part of a scene: its colours, the light it gives, and what stands in it."""

    def __init__(self, canvas: Canvas, dice: Dice, weights=(3.0, 3.0, 1.5, 2.5), coloured: float = 0.12):
        self.canvas, self.dice = canvas, dice
        picks = dice.weighted(list(weights))
        keys = list(SKIES)
        self.night = [p == 3 for p in picks]
        self.dark = dice.put([float(n) for n in self.night])
        self.tint = dice.colours([SKIES[keys[p]][1] for p in picks])
        self.stops = [dice.jitter(dice.colours([SKIES[keys[p]][0][i] for p in picks]) / 255, 0.035) for i in range(3)]
        self.light = dice.jitter(dice.colours([SKIES[keys[p]][2] for p in picks]) / 255, 0.02)
        self.tags = [[keys[p]] for p in picks]
        own = ["blue|light blue|blue", "orange|red", "pink", "dark|dark blue|starry"]
        for item, pick in enumerate(picks):
            self.tags[item].append("|".join(f"{c} sky" for c in own[pick].split("|")))
        bright = [n for n in NAMES if words(n) in ("red", "orange", "yellow", "green", "turquoise", "blue", "purple", "pink", "gray", "white")]
        names, override = pick_colours(dice, among=bright)
        chosen = [c and not n for c, n in zip(dice.chance(coloured), self.night)]
        mask = dice.put([float(c) for c in chosen]).view(-1, 1)
        self.tint = mix(self.tint, torch.ones_like(self.tint), mask * 0.9)
        self.stops = [mix(s, o, mask) for s, o in zip(self.stops, (override * 0.88, override, lighter(override, 0.45)))]
        for item, (name, on) in enumerate(zip(names, chosen)):
            if on:
                self.tags[item] = [f"{words(name)} sky"]
        canvas.gradient(*self.stops)
        self.brush = Brush(canvas, dice, self.tint, self.dark)
        self.brush.stars(1.0, self.dark)

    def sun_or_moon(self, x: Tensor, y: Tensor, size: Tensor, chance: float = 0.85) -> None:
        shown = self.dice.chance(chance)
        there = self.dice.put([float(s) for s in shown])
        full = self.dice.chance(0.5)
        self.brush.sun(self.canvas.frame(x, y, size), self.light, there * (1 - self.dark), rays=0.0)
        self.brush.moon(self.canvas.frame(x, y, size * 0.75), self.light, there * self.dark, self.dice.put([float(f) for f in full]))
        for item, tags in enumerate(self.tags):
            if shown[item]:
                tags.append(("full moon|moon" if full[item] else "crescent moon|moon") if self.night[item] else "sun")

    def clouds(self, chance: float = 0.5, lowest: float = -0.1) -> None:
        shown = self.dice.chance(chance)
        there = self.dice.put([float(s) for s in shown])
        colour = mix(torch.ones_like(self.light), self.stops[2], 0.35) * mix(torch.ones_like(self.tint), self.tint, 0.8)
        for x in (-0.6, 0.55, 0.05):
            frame = self.canvas.frame(
                self.dice.between(x - 0.3, x + 0.3), self.dice.between(-0.9, lowest) - (self.canvas.half_height - 1) * self.dice.between(0, 1), self.dice.between(0.18, 0.34)
            )
            self.brush.cloud(frame, colour, there * 0.92 * (self.dice.between(0, 1) < 0.75).float())
        for item, tags in enumerate(self.tags):
            if shown[item]:
                tags.append("clouds|cloudy")

    def horizon(self, low: float, high: float) -> Tensor:
        """A height on the canvas; a tall picture has more sky."""
        return self.dice.between(low, high) + (self.canvas.half_height - 1) * self.dice.between(0.35, 0.6)

    def ground(self, top: Tensor, colour: Tensor, fade: float = 0.18) -> None:
        """Everything below a line, darker towards the bottom."""
        frame = Frame(self.canvas.x, self.canvas.y, 1.0)
        depth = ((self.canvas.y - top) / 1.2).clamp(0, 1)
        shade = (colour * self.tint).view(-1, 3, 1, 1) * (1 - fade * depth).unsqueeze(1)
        mask = (0.5 - (top - self.canvas.y) / self.canvas.pixel).clamp(0, 1).expand(self.canvas.batch, self.canvas.height, self.canvas.width)
        self.canvas.blend(mask, shade)


def sea(canvas: Canvas, dice: Dice) -> Tags:
    """The sun or the moon over the sea, often with a sailing boat."""
    sky = Sky(canvas, dice)
    line = sky.horizon(0.05, 0.35)
    x = dice.between(-0.55, 0.55)
    size = dice.between(0.28, 0.5)
    sky.sun_or_moon(x, line - dice.between(-0.1, 0.75) * 1.0, size)
    sky.clouds(0.45, -0.25)
    islands = dice.chance(0.25)
    peak = line - 0.10 - 0.14 * ridge(canvas.x * 1.5, dice.between(0, 40), 0.3)
    mask = (0.5 - (peak - canvas.y) / canvas.pixel).clamp(0, 1) * dice.put([float(i) for i in islands])
    canvas.blend(mask.expand(canvas.batch, canvas.height, canvas.width), mix(sky.stops[2], rgb(dice, 70, 96, 120) * sky.tint, 0.6))
    water = mix(rgb(dice, 22, 104, 170), rgb(dice, 20, 140, 160), dice.between(0, 1).view(-1, 1))
    top = mix(water, sky.stops[2] / sky.tint.clamp(min=0.3), 0.35).clamp(0, 1)
    frame = Frame(canvas.x, canvas.y, 1.0)
    depth = ((canvas.y - line) / (canvas.half_height - line + 1e-3)).clamp(0, 1)
    shade = mix((top * sky.tint).view(-1, 3, 1, 1), (water * sky.tint * 0.8).view(-1, 3, 1, 1), depth.unsqueeze(1))
    below = (0.5 - (line - canvas.y) / canvas.pixel).clamp(0, 1).expand(canvas.batch, canvas.height, canvas.width)
    canvas.blend(below, shade)
    # The path of light: dashes that widen and part towards the viewer.
    row = torch.floor(torch.sqrt(depth + 1e-6) * 11)
    seed = dice.between(0, 60)
    half = size * (0.30 + 0.55 * noise(row, seed)) * (0.7 + 0.5 * depth)
    inside = (canvas.x - x - (noise(row, seed + 3) - 0.5) * 0.16).abs() - half
    dash = torch.maximum(inside, ((torch.remainder(torch.sqrt(depth + 1e-6) * 11, 1) - 0.5).abs() - 0.24) * 0.1)
    sunny = dice.put([float(any(t == "sun" or "moon" in t for t in tags)) for tags in sky.tags])
    canvas.fill(frame, torch.maximum(dash, line - canvas.y), lighter(sky.light, 0.2), 0.75 * sunny * (depth > 0.012).float())
    boats = dice.chance(0.5)
    names, sail = pick_colours(dice, ["blue"] * dice.batch)
    scale = dice.between(0.20, 0.42)
    hull = rgb(dice, 120, 72, 44)
    sky.brush.tint = mix(torch.ones_like(sky.tint), sky.tint, 0.6)
    boat_x = torch.where(x > 0, -1.0, 1.0) * dice.between(0.05, 0.5)
    sky.brush.boat(canvas.frame(boat_x, line - scale * 0.5 + dice.between(0.05, 0.3), scale), hull, sail, dice.put([float(b) for b in boats]))
    return [
        ["sea|ocean|water|seascape", *tags, *([f"{words(n)} sailboat|sailboat|boat|{words(n)} sail"] if b else []), *(["island|islands"] if i else [])]
        for tags, b, n, i in zip(sky.tags, boats, names, islands)
    ]


def mountains(canvas: Canvas, dice: Dice) -> Tags:
    """Ranges fading into the distance, snow on the tops, pines or a lake in front."""
    sky = Sky(canvas, dice)
    line = sky.horizon(0.15, 0.4)
    sky.sun_or_moon(dice.between(-0.6, 0.6), line - dice.between(0.6, 1.15), dice.between(0.25, 0.45), 0.7)
    sky.clouds(0.4, -0.5)
    names, colour = pick_colours(dice, among=[n for n in NAMES if words(n) in ("purple", "blue", "gray", "green", "brown", "turquoise", "red")])
    snowy = dice.chance(0.6)
    snow = dice.put([float(s) for s in snowy])
    for layer, (lift, high) in enumerate(((0.34, 0.62), (0.12, 0.42), (-0.10, 0.26))):
        seed = dice.between(0, 90)
        skyline = ridge(canvas.x * (1.25 + 0.25 * layer), seed, 0.85)
        top = line - lift - high * skyline
        tone = mix(sky.stops[2] / sky.tint.clamp(min=0.3), colour, 0.45 + 0.275 * layer).clamp(0, 1)
        sky.ground(top, tone, 0.25)
        if layer < 2:
            edge = 0.10 + 0.05 * torch.sin(canvas.x * 31 + seed) + 0.03 * torch.sin(canvas.x * 67 + seed)
            cap = torch.maximum(top - canvas.y, canvas.y - top - edge * (0.6 + skyline.clamp(min=0)))
            flat = Frame(canvas.x, canvas.y, 1.0)
            canvas.fill(flat, torch.maximum(cap, (0.05 - skyline) * high), mix(torch.ones_like(tone), tone, 0.12) * mix(torch.ones_like(sky.tint), sky.tint, 0.75), snow)
    lakes = dice.chance(0.35)
    shore = line + 0.32 + dice.between(0, 0.1)
    lake = dice.put([float(c) for c in lakes])
    below = (0.5 - (shore - canvas.y) / canvas.pixel).clamp(0, 1).expand(canvas.batch, canvas.height, canvas.width)
    wave = 0.06 * torch.sin(canvas.y * 60 + torch.sin(canvas.x * 5) * 1.5)
    canvas.blend(below * lake, mix(rgb(dice, 44, 120, 178) * sky.tint, sky.stops[1], 0.35).view(-1, 3, 1, 1) * (1 + wave).unsqueeze(1))
    forests = [not c and p for c, p in zip(lakes, dice.chance(0.6))]
    there = dice.put([float(f) for f in forests])
    green = rgb(dice, 30, 92, 66)
    meadow = line + 0.34 + 0.04 * ridge(canvas.x * 2, dice.between(0, 9), 0)
    mask = (0.5 - (meadow - canvas.y) / canvas.pixel).clamp(0, 1) * there
    canvas.blend(mask, (rgb(dice, 60, 120, 70) * sky.tint))
    pine_row(sky, line + 0.30, 0.26, green, there)
    pine_row(sky, line + 0.62, 0.40, green * 0.8, there)
    return [
        [f"mountains|mountain|{words(n)} mountains|{words(n)} mountains|mountain landscape", *tags, *(["snow|snowy mountains|snowy peaks"] if s else []),
         *(["lake|mountain lake|water"] if k else []), *(["pine trees|pines|trees|forest"] if f else [])]
        for n, tags, s, k, f in zip(names, sky.tags, snowy, lakes, forests)
    ]


def pine_row(sky: Sky, foot: Tensor, size: float, colour: Tensor, shown, snow=0.0) -> None:
    """A row of pines that stand on a line, one in each cell of a grid, jittered."""
    canvas, seed = sky.canvas, sky.dice.between(0, 70)
    cell = size * 1.05
    place = canvas.x / cell + noise(torch.zeros_like(seed), seed)
    column = torch.floor(place)
    grown = size * (0.72 + 0.28 * noise(column, seed + 1))
    across = (place - column - 0.5) * cell - (noise(column, seed + 2) - 0.5) * 0.25 * cell
    frame = Frame(across / grown, (canvas.y - foot + grown * 0.95) / grown, grown)
    sky.brush.pine(frame, colour, shown, snow)


def hills(canvas: Canvas, dice: Dice) -> Tags:
    """A house on a hill."""
    sky = Sky(canvas, dice)
    line = sky.horizon(0.2, 0.42)
    side = torch.where(dice.between(0, 1) > 0.5, 1.0, -1.0)
    sky.sun_or_moon(-side * dice.between(0.35, 0.65), line - dice.between(0.75, 1.15), dice.between(0.26, 0.42), 0.75)
    sky.clouds(0.5, -0.35)
    winter = dice.chance(0.2)
    snow = dice.put([float(w) for w in winter]).view(-1, 1)
    names, grass = pick_colours(dice, among=["green", "green", "light green|lime green", "dark green", "yellow", "purple|violet", "orange"])
    grass = mix(grass, rgb(dice, 240, 246, 252), snow)
    far = line - 0.08 - 0.09 * ridge(canvas.x * 1.2, dice.between(0, 60), 0.0)
    sky.ground(far, mix(grass, sky.stops[2], 0.35) * 0.92)
    x = side * dice.between(0.05, 0.38)
    size = dice.between(0.26, 0.40)
    hill = line + 0.42 * (canvas.x - x) ** 2 + 0.02 * torch.sin(canvas.x * 3 + dice.between(0, 6))
    wall_names, wall = pick_colours(dice, names, among=[n for n in NAMES if "dark" not in n and n != "black"])
    roof_names, roof = pick_colours(dice, wall_names)
    trees = dice.chance(0.6)
    there = dice.put([float(t) for t in trees])
    autumn = [a and t for a, t in zip(dice.chance(0.25), trees)]
    leaf = mix(rgb(dice, 52, 140, 66), rgb(dice, 232, 126, 40), dice.put([float(a) for a in autumn]).view(-1, 1))
    sky.brush.tree(canvas.frame(x + side * size * 1.75, line - size * 0.55, size * 0.85), leaf, there)
    sky.brush.house(canvas.frame(x, line - size * 0.80, size), wall, roof)
    sky.brush.tree(canvas.frame(x - side * size * 1.7, line - size * 0.35, size * 0.7), leaf, there)
    sky.ground(hill, grass)
    way = torch.maximum((canvas.x - x - 0.25 * (canvas.y - line) ** 2 * side).abs() - 0.04 - 0.18 * (canvas.y - line), hill - canvas.y)
    canvas.fill(Frame(canvas.x, canvas.y, 1.0), way, mix(rgb(dice, 226, 200, 150), grass, 0.25) * sky.tint)
    return [
        [f"{words(w)} house|house on hill|house on a hill|{words(w)} house on hill", *tags, f"{words(r)} roof",
         "snow|winter|snowy hill" if s else f"{words(n)} hill|hill|hills|{words(n)} grass", *(["trees|tree"] if t else []), *(["autumn|fall"] if a else [])]
        for w, tags, r, n, s, t, a in zip(wall_names, sky.tags, roof_names, names, winter, trees, autumn)
    ]


def forest(canvas: Canvas, dice: Dice) -> Tags:
    """Rows of pines, paler with distance."""
    sky = Sky(canvas, dice)
    line = sky.horizon(0.0, 0.2)
    sky.sun_or_moon(dice.between(-0.5, 0.5), line - dice.between(0.55, 1.0), dice.between(0.25, 0.45), 0.7)
    winter = dice.chance(0.3)
    snow = dice.put([float(w) for w in winter])
    names, green = pick_colours(dice, among=["green", "green", "dark green", "turquoise|teal", "blue"])
    green = green * 0.8
    floor = mix(green * 1.1, rgb(dice, 238, 244, 250), snow.view(-1, 1))
    for layer, (drop, size) in enumerate(((0.05, 0.38), (0.38, 0.52), (0.85, 0.72))):
        haze = 0.50 - 0.24 * layer
        foot = line + drop
        tone = mix(green, sky.stops[2] / sky.tint.clamp(min=0.3), haze).clamp(0, 1)
        pine_row(sky, foot, size, tone, 1.0, snow)
        sky.ground(foot - 0.03 - 0.03 * ridge(canvas.x * 2, dice.between(0, 20), 0), mix(floor, tone, 0.35))
    flakes(sky, snow * (dice.between(0, 1) > 0.4).float())
    return [
        [f"forest|pine forest|trees|woods|{words(n)} forest|pine trees", *tags, *(["snow|winter|snowy forest|snowing"] if w else [])]
        for n, tags, w in zip(names, sky.tags, winter)
    ]


def flakes(sky: Sky, shown: Tensor) -> None:
    """Falling snow."""
    canvas = sky.canvas
    for grid, size in ((0.16, 0.014), (0.27, 0.024)):
        seed = sky.dice.between(0, 60)
        column, row = torch.floor(canvas.x / grid), torch.floor(canvas.y / grid)
        cell = column * 4.13 + row * 8.71
        frame = Frame(
            canvas.x - (column + 0.2 + 0.6 * noise(cell, seed)) * grid, canvas.y - (row + 0.2 + 0.6 * noise(cell, seed + 1)) * grid, 1.0
        )
        canvas.fill(frame, sdf.circle(frame, size), torch.ones_like(sky.light), shown * 0.95)


def night(canvas: Canvas, dice: Dice) -> Tags:
    """The moon and many stars over dark hills."""
    sky = Sky(canvas, dice, (0.0, 0.0, 0.0, 1.0))
    sky.brush.stars(1.25, 1.0)
    full = dice.chance(0.5)
    names, colour = pick_colours(dice, among=["white", "yellow", "yellow", "beige|cream", "orange", "red", "light blue|sky blue"])
    size = dice.between(0.28, 0.5)
    line = sky.horizon(0.45, 0.75)
    sky.brush.moon(canvas.frame(dice.between(-0.5, 0.5), line - dice.between(0.7, 1.1), size), lighter(colour, 0.25), 1.0, dice.put([float(f) for f in full]))
    for layer in range(3):
        top = line + 0.12 * layer - 0.10 * ridge(canvas.x * (1.2 + layer * 0.3), dice.between(0, 60), 0.1)
        sky.ground(top, mix(rgb(dice, 60, 84, 150), rgb(dice, 20, 40, 70), layer / 2))
    pines = dice.chance(0.4)
    pine_row(sky, line + 0.42, 0.34, rgb(dice, 16, 34, 50), dice.put([float(p) for p in pines]))
    return [
        ["night sky|starry night|starry sky|night|stars", (f"{words(n)} full moon|full moon|moon" if f else f"{words(n)} crescent moon|crescent moon|moon"), "stars", "hills|night landscape",
         *(["trees|pine trees"] if p else [])]
        for f, n, p in zip(full, names, pines)
    ]


def desert(canvas: Canvas, dice: Dice) -> Tags:
    """Dunes with pyramids or cacti."""
    sky = Sky(canvas, dice)
    line = sky.horizon(0.12, 0.34)
    sky.sun_or_moon(dice.between(-0.6, 0.6), line - dice.between(0.5, 1.1), dice.between(0.3, 0.5))
    sand = mix(rgb(dice, 238, 196, 120), rgb(dice, 226, 150, 88), dice.between(0, 1).view(-1, 1))
    pyramids = dice.chance(0.45)
    there = dice.put([float(p) for p in pyramids])
    for x0, scale in ((0.5, 0.36), (-0.2, 0.58)):
        frame = canvas.frame(x0 + dice.between(-0.2, 0.2), line + 0.14, scale)
        sky.brush.fill(frame, sdf.convex(frame, (0, -1.0), (1.05, 0.2), (-1.05, 0.2)), sand * 0.98, there)
        sky.brush.fill(frame, sdf.convex(frame, (0, -1.0), (1.05, 0.2), (0.28, 0.2)), sand * 0.72, there)
    for layer in range(3):
        top = line + 0.05 + 0.24 * layer - 0.09 * ridge(canvas.x * (1.1 + 0.2 * layer), dice.between(0, 60), 0.0)
        sky.ground(top, sand * (1.0 - 0.09 * layer))
    cacti = [c or not p for c, p in zip(dice.chance(0.4), pyramids)]
    green = rgb(dice, 58, 134, 74)
    for x0, scale in ((-0.55, 0.40), (0.5, 0.28)):
        size = dice.between(scale * 0.8, scale * 1.15)
        sky.brush.cactus(canvas.frame(x0 + dice.between(-0.2, 0.2), line + 0.42 - size * 0.6, size), green, dice.put([float(c) for c in cacti]))
    return [
        ["desert|desert dunes|sand dunes|dunes", *tags, *(["pyramids|pyramid"] if p else []), *(["cactus|cacti"] if c else [])]
        for tags, p, c in zip(sky.tags, pyramids, cacti)
    ]


def city(canvas: Canvas, dice: Dice) -> Tags:
    """A skyline of tall buildings with windows."""
    sky = Sky(canvas, dice, (2.0, 3.0, 1.0, 4.0))
    line = canvas.half_height
    sky.sun_or_moon(dice.between(-0.6, 0.6), -dice.between(0.3, 0.75) * canvas.half_height, dice.between(0.3, 0.5), 0.75)
    names, colour = pick_colours(dice, among=["blue", "gray|grey", "purple|violet", "brown", "red", "turquoise|teal"])
    for layer in range(3):
        cell = (0.20, 0.27, 0.36)[layer]
        seed = dice.between(0, 80)
        place = canvas.x / cell + noise(torch.zeros_like(seed), seed)
        column = torch.floor(place)
        across = (place - column - 0.5) * cell
        high = (0.95 - 0.25 * layer) + (0.45 - 0.08 * layer) * (noise(column, seed) * 2 - 1) + (canvas.half_height - 1) * 0.75
        frame = Frame(across, canvas.y - line + high / 2, 1.0)
        tone = mix(sky.stops[1], colour * sky.tint, (0.45, 0.72, 1.0)[layer]) * (1.0, 0.92, 0.8)[layer]
        building = sdf.box(frame, cell * (0.5 if layer == 0 else 0.44), high / 2)
        canvas.fill(frame, building, tone)
        if layer:
            grid = cell / 4.4
            u, v = across / grid, (canvas.y - line) / (grid * 1.35)
            on = (noise(column * 31.7 + torch.floor(u + 0.5) * 5.9 + torch.floor(v) * 17.3, seed + 2) > 0.42).float()
            pane = Frame((u + 0.5 - torch.floor(u + 0.5) - 0.5) * grid, (v - torch.floor(v) - 0.5) * grid * 1.35, 1.0)
            window = torch.maximum(sdf.box(pane, grid * 0.30, grid * 0.40), building + grid * 0.35)
            glass = mix(lighter(sky.stops[2], 0.3), rgb(dice, 255, 216, 110), mix(0.25, 1.0, sky.dark.view(-1, 1)))
            canvas.fill(pane, window, glass, on * (0.6 + 0.4 * sky.dark))
    return [
        [f"city|city skyline|skyline|cityscape|{words(n)} city", *tags, "buildings|skyscrapers|tall buildings|windows"]
        for tags, n in zip(sky.tags, names)
    ]


def meadow(canvas: Canvas, dice: Dice) -> Tags:
    """Flowers in the grass, the nearer the larger."""
    sky = Sky(canvas, dice, (4.0, 2.0, 2.0, 1.0))
    line = sky.horizon(-0.05, 0.15)
    sky.sun_or_moon(dice.between(-0.6, 0.6), line - dice.between(0.5, 0.9), dice.between(0.28, 0.45), 0.75)
    sky.clouds(0.5, -0.45)
    grass = rgb(dice, 92, 170, 74)
    names, colour = pick_colours(dice, ["green"] * dice.batch, among=[n for n in NAMES if words(n) in ("red", "orange", "yellow", "blue", "purple", "pink", "white")])
    sky.ground(line - 0.05 * ridge(canvas.x * 1.3, dice.between(0, 40), 0.0), lighter(grass, 0.1))
    for layer, (drop, size) in enumerate(((0.24, 0.15), (0.52, 0.24), (0.95, 0.38))):
        seed = dice.between(0, 70)
        sky.ground(line + drop - size * 0.9 - 0.02 * ridge(canvas.x * 3, seed, 0), grass * (1 - 0.08 * layer))
        cell = size * 1.25
        place = canvas.x / cell + noise(torch.zeros_like(seed), seed)
        column = torch.floor(place)
        grown = size * (0.78 + 0.3 * noise(column, seed + 1))
        across = (place - column - 0.5) * cell - (noise(column, seed + 2) - 0.5) * 0.3 * cell
        frame = Frame(across / grown, (canvas.y - line - drop + grown * 0.5) / grown, grown)
        sky.brush.flower(frame, colour)
    return [
        [f"meadow|field of flowers|flower field|flowers|{words(n)} flowers|{words(n)} flowers", *tags, "grass|green grass"] for tags, n in zip(sky.tags, names)
    ]


def balloons(canvas: Canvas, dice: Dice) -> Tags:
    """Hot air balloons over hills."""
    sky = Sky(canvas, dice, (4.0, 3.0, 2.0, 1.0))
    line = sky.horizon(0.5, 0.7)
    sky.sun_or_moon(dice.between(-0.7, 0.7), line - dice.between(0.2, 0.5), dice.between(0.25, 0.4), 0.4)
    sky.clouds(0.6, 0.1)
    names, grass = pick_colours(dice, among=["green", "light green|lime green", "dark green", "purple|violet", "orange"])
    for layer in range(3):
        top = line + 0.14 * layer - 0.10 * ridge(canvas.x * (1.0 + 0.3 * layer), dice.between(0, 60), 0.0)
        sky.ground(top, mix(grass, sky.stops[2], 0.4 - 0.2 * layer))
    colour_names, colour = pick_colours(dice, among=[n for n in NAMES if NAMES.index(n) < 8])
    other_names, other = pick_colours(dice, colour_names, among=[n for n in NAMES if NAMES.index(n) < 10])
    several = dice.chance(0.35)
    x, size = dice.between(-0.3, 0.3), dice.between(0.4, 0.6)
    sky.brush.tint = mix(torch.ones_like(sky.tint), sky.tint, 0.6)
    for shift, scale in ((-0.62, 0.42), (0.66, 0.34)):
        frame = canvas.frame(x + shift, dice.between(-0.55, 0.1) - (canvas.half_height - 1) * 0.3, size * scale)
        sky.brush.balloon(frame, other, lighter(other, 0.5), dice.put([float(s) for s in several]))
    sky.brush.balloon(canvas.frame(x, dice.between(-0.35, 0.0) - (canvas.half_height - 1) * 0.2, size), colour, lighter(colour, 0.7))
    return [
        [("hot air balloons|balloons" if s else f"{words(c)} hot air balloon|hot air balloon|{words(c)} balloon|balloon"), *tags, f"{words(n)} hills|hills"]
        for s, c, tags, n in zip(several, colour_names, sky.tags, names)
    ]


def lighthouse(canvas: Canvas, dice: Dice) -> Tags:
    """A striped lighthouse on a rock in the sea, with a beam at night."""
    sky = Sky(canvas, dice, (3.0, 3.0, 1.0, 3.0))
    line = sky.horizon(0.2, 0.4)
    side = torch.where(dice.between(0, 1) > 0.5, 1.0, -1.0)
    sky.sun_or_moon(-side * dice.between(0.4, 0.65), line - dice.between(0.6, 1.1), dice.between(0.26, 0.4), 0.6)
    sky.clouds(0.4, -0.3)
    water = rgb(dice, 26, 104, 160)
    sky.ground(line + torch.zeros_like(canvas.x), water, 0.3)
    frame = Frame(canvas.x, canvas.y, 1.0)
    wave = (torch.remainder(canvas.y * 9 + 0.12 * torch.sin(canvas.x * 14 + torch.floor(canvas.y * 9) * 2.4), 1) - 0.5).abs() - 0.07
    canvas.fill(frame, torch.maximum(wave * 0.11, line + 0.1 - canvas.y), lighter(water, 0.3) * sky.tint, 0.55)
    x, size = side * dice.between(0.1, 0.4), dice.between(0.5, 0.68)
    names, colour = pick_colours(dice, among=["red", "red", "blue", "black", "orange", "green"])
    top = line + 0.22 - size
    beam = canvas.frame(x, top - size * 0.68, 1.0)
    light = torch.maximum(beam.v.abs() - 0.03 - 0.16 * beam.u.abs(), beam.u * side)
    canvas.fill(beam, light, rgb(dice, 255, 240, 170), sky.dark * 0.55, soft=0.05)
    sky.brush.tint = mix(torch.ones_like(sky.tint), sky.tint, 0.6)
    sky.brush.lighthouse(canvas.frame(x, top, size), colour)
    rock = line + 0.16 + 0.9 * (canvas.x - x) ** 2 - 0.05 * ridge(canvas.x * 4, dice.between(0, 30), 0.8)
    shore = (0.5 - torch.maximum(rock - canvas.y, canvas.y - line - 0.62) / canvas.pixel).clamp(0, 1)
    canvas.blend(shore, rgb(dice, 92, 86, 92) * sky.tint)
    return [[f"lighthouse|{words(n)} lighthouse|lighthouse", *tags, "sea|ocean"] for n, tags in zip(names, sky.tags)]


# What is drawn, and how often.
FAMILIES = {
    single: 48, pair: 3, many: 5, thing: 24, sea: 5, mountains: 5, hills: 5, forest: 3, night: 3, desert: 3, city: 3, meadow: 3,
    balloons: 3, lighthouse: 3,
}


@torch.no_grad()
def draw(batch: int, height: int, width: int, device: str, seed: int, family=None) -> tuple[Tensor, Tags]:
    """A batch of one family, chosen by the seed unless given: pictures in 0..1, and their tags."""
    dice = Dice(batch, device, seed)
    if family is None:
        family = list(FAMILIES)[int(torch.multinomial(torch.tensor(list(FAMILIES.values()), dtype=torch.float32), 1, generator=dice.source))]
    canvas = Canvas(batch, height, width, device)
    tags = family(canvas, dice)
    return canvas.rgb.clamp(0, 1), tags
