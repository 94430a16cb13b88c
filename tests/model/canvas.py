"""A batch of pictures, painted with signed distance fields on whatever device torch has.

Coordinates: the middle is (0, 0), y points down, and the shorter side spans -1 to 1. A distance is negative inside.
Every number may differ from picture to picture: a parameter is a tensor of shape (batch, 1, 1), a colour (batch, 3).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


class Dice:
    """Seeded random parameters, one per picture of the batch."""

    def __init__(self, batch: int, device: str, seed: int):
        self.batch, self.device = batch, device
        self.source = torch.Generator().manual_seed(seed)

    def between(self, low: float, high: float) -> Tensor:
        return self.put(low + (high - low) * torch.rand(self.batch, generator=self.source))

    def index(self, count: int) -> list[int]:
        return torch.randint(count, (self.batch,), generator=self.source).tolist()

    def weighted(self, weights: list[float]) -> list[int]:
        return torch.multinomial(torch.tensor(weights), self.batch, replacement=True, generator=self.source).tolist()

    def chance(self, probability: float) -> list[bool]:
        return (torch.rand(self.batch, generator=self.source) < probability).tolist()

    def put(self, values) -> Tensor:
        """Numbers, one per picture, as a parameter."""
        return torch.as_tensor(values, dtype=torch.float32).view(self.batch, 1, 1).to(self.device)

    def colours(self, values) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32).view(self.batch, 3).to(self.device)

    def jitter(self, colour: Tensor, amount: float = 0.04) -> Tensor:
        """The colour, a little different in each picture: in all channels together, and in each."""
        common = (torch.rand(self.batch, 1, generator=self.source) - 0.5) * 2 * amount
        own = (torch.rand(self.batch, 3, generator=self.source) - 0.5) * 2 * amount
        return (colour + (common + own).to(self.device)).clamp(0, 1)


@dataclass
class Frame:
    """Local coordinates of an object: u and v span about -1 to 1 over it, and one unit is `size` on the canvas."""

    u: Tensor
    v: Tensor
    size: Tensor | float

    def moved(self, u: Tensor | float, v: Tensor | float, scale: Tensor | float = 1.0) -> "Frame":
        return Frame((self.u - u) / scale, (self.v - v) / scale, self.size * scale)

    def turned(self, angle: Tensor | float) -> "Frame":
        angle = torch.as_tensor(angle, dtype=torch.float32)
        cos, sin = torch.cos(angle), torch.sin(angle)
        return Frame(self.u * cos + self.v * sin, self.v * cos - self.u * sin, self.size)


class Canvas:
    """The pictures under the brush: `rgb` is (batch, 3, height, width) in 0..1."""

    def __init__(self, batch: int, height: int, width: int, device: str):
        self.batch, self.height, self.width, self.device = batch, height, width, device
        short = min(height, width) / 2
        self.pixel = 1 / short
        self.half_height, self.half_width = height / 2 / short, width / 2 / short
        self.y = ((torch.arange(height, device=device) + 0.5 - height / 2) / short).view(1, -1, 1)
        self.x = ((torch.arange(width, device=device) + 0.5 - width / 2) / short).view(1, 1, -1)
        self.rgb = torch.zeros(batch, 3, height, width, device=device)

    def frame(self, x: Tensor | float = 0.0, y: Tensor | float = 0.0, size: Tensor | float = 1.0) -> Frame:
        return Frame((self.x - x) / size, (self.y - y) / size, size)

    def gradient(self, *stops: Tensor) -> None:
        """Covers everything from top to bottom with the colours, evenly spaced."""
        place = (self.y + self.half_height) / (2 * self.half_height) * (len(stops) - 1)
        place = place.unsqueeze(1)
        rgb = stops[0].view(-1, 3, 1, 1)
        for index, stop in enumerate(stops[1:]):
            rgb = rgb + (stop.view(-1, 3, 1, 1) - rgb) * (place - index).clamp(0, 1)
        self.rgb = rgb.expand(self.batch, 3, self.height, self.width).contiguous()

    def blend(self, mask: Tensor, colour: Tensor) -> None:
        """Lays the colour, one per picture or one per pixel, over the pictures where the mask is."""
        if colour.dim() == 2:
            colour = colour.view(-1, 3, 1, 1)
        self.rgb = torch.lerp(self.rgb, colour.expand_as(self.rgb), mask.unsqueeze(1).expand_as(self.rgb))

    def fill(self, frame: Frame, distance: Tensor, colour: Tensor, opacity=1.0, soft: float = 0.0, sheen: float = 0.0):
        """Fills a shape given in a frame's units. `soft` blurs its edge, `sheen` lights it from the upper left."""
        edge = soft + self.pixel
        mask = (0.5 - distance * frame.size / edge).clamp(0, 1) * opacity
        if sheen:
            light = 1 - sheen * (0.6 * frame.u + frame.v).clamp(-1, 1)
            colour = (colour.view(-1, 3, 1, 1) * light.unsqueeze(1)).clamp(0, 1)
        self.blend(mask, colour)

    def glow(self, frame: Frame, distance: Tensor, colour: Tensor, reach, opacity=1.0) -> None:
        """Light that fades away outside a shape."""
        self.blend(torch.exp(-distance.clamp(min=0) / reach) * opacity, colour)


def circle(frame: Frame, radius=1.0) -> Tensor:
    return torch.sqrt(frame.u**2 + frame.v**2 + 1e-12) - radius


def ellipse(frame: Frame, wide, high) -> Tensor:
    """Good enough near the edge for antialiasing."""
    scaled = torch.sqrt((frame.u / wide) ** 2 + (frame.v / high) ** 2 + 1e-9)
    steep = torch.sqrt((frame.u / wide**2) ** 2 + (frame.v / high**2) ** 2 + 1e-9)
    return scaled * (scaled - 1) / steep


def box(frame: Frame, wide, high, round_: float = 0.0) -> Tensor:
    across, down = frame.u.abs() - wide + round_, frame.v.abs() - high + round_
    outside = torch.sqrt(across.clamp(min=0) ** 2 + down.clamp(min=0) ** 2 + 1e-12)
    return outside + torch.maximum(across, down).clamp(max=0) - round_


def convex(frame: Frame, *corners: tuple[float, float]) -> Tensor:
    """A convex polygon, corners in clockwise order as seen (y down)."""
    distance = None
    for (u0, v0), (u1, v1) in zip(corners, corners[1:] + corners[:1]):
        length = math.hypot(u1 - u0, v1 - v0)
        side = ((v1 - v0) * (frame.u - u0) - (u1 - u0) * (frame.v - v0)) / length
        distance = side if distance is None else torch.maximum(distance, side)
    return distance


def regular(frame: Frame, sides: int, turn: float = 0.0) -> Tensor:
    """A regular polygon in the unit circle, a corner up unless turned."""
    step = 2 * math.pi / sides
    angle = torch.atan2(frame.u, -frame.v) + turn
    folded = torch.remainder(angle, step) - step / 2
    radius = torch.sqrt(frame.u**2 + frame.v**2 + 1e-12)
    return radius * torch.cos(folded) - math.cos(step / 2)


def star(frame: Frame, points: int = 5, inner: float = 0.45) -> Tensor:
    """A star in the unit circle with a point up."""
    step = 2 * math.pi / points
    angle = torch.atan2(frame.u, -frame.v)
    folded = (torch.remainder(angle + step / 2, step) - step / 2).abs()
    radius = torch.sqrt(frame.u**2 + frame.v**2 + 1e-12)
    along, across = radius * torch.cos(folded), radius * torch.sin(folded)
    corner_along, corner_across = inner * math.cos(step / 2), inner * math.sin(step / 2)
    length = math.hypot(1 - corner_along, corner_across)
    return ((along - 1) * corner_across + across * (1 - corner_along)) / length


def heart(frame: Frame) -> Tensor:
    """Inigo Quilez's heart, moved and scaled to fill the unit circle."""
    x, y = frame.u.abs() * 0.62, 0.60 - frame.v * 0.62
    lobe = torch.sqrt((x - 0.25) ** 2 + (y - 0.75) ** 2 + 1e-12) - math.sqrt(2) / 4
    low = 0.5 * (x + y).clamp(min=0)
    point = torch.minimum(x**2 + (y - 1) ** 2, (x - low) ** 2 + (y - low) ** 2)
    body = torch.sqrt(point + 1e-12) * torch.sign(x - y)
    return torch.where(x + y > 1, lobe, body) / 0.62


def crescent(frame: Frame) -> Tensor:
    return torch.maximum(circle(frame), -circle(frame.moved(0.48, -0.18, 0.86)) * 0.86)


def ring(frame: Frame) -> Tensor:
    return (circle(frame, 0.78)).abs() - 0.22


def cross(frame: Frame) -> Tensor:
    return torch.minimum(box(frame, 0.32, 0.95), box(frame, 0.95, 0.32))


def petals(frame: Frame, count: int = 6) -> Tensor:
    """A blossom with round petals in the unit circle."""
    angle = torch.atan2(frame.u, -frame.v)
    step = 2 * math.pi / count
    folded = torch.remainder(angle + step / 2, step) - step / 2
    radius = torch.sqrt(frame.u**2 + frame.v**2 + 1e-12)
    leaf = Frame(radius * torch.sin(folded), radius * torch.cos(folded) - 0.58, 1.0)
    return ellipse(leaf, 0.30, 0.42)


def union(*distances: Tensor) -> Tensor:
    result = distances[0]
    for distance in distances[1:]:
        result = torch.minimum(result, distance)
    return result


def noise(cell: Tensor, seed: Tensor | float) -> Tensor:
    """A number in 0..1 for each cell index: the usual sine hash."""
    value = torch.sin(cell * 12.9898 + seed * 78.233) * 43758.5453
    return value - torch.floor(value)


def ridge(x: Tensor, seed: Tensor, rough: float) -> Tensor:
    """A skyline of height -1..1: a few sines for `rough` 0, mountain teeth for 1."""
    height = 0.0
    for octave, weight in enumerate((0.55, 0.28, 0.17)):
        turn = x * (1.7 * 1.9**octave) + seed * (1.3 + octave * 0.7) + octave
        wave = torch.sin(turn)
        tooth = 1 - 4 * (torch.remainder(turn / (2 * math.pi), 1.0) - 0.5).abs()
        height = height + weight * (wave * (1 - rough) + tooth * rough)
    return height
