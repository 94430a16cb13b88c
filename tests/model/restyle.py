"""Redraws a picture in the style of one of the two artists.

The styles learn from these. Both work on a batch of pictures in 0..1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# The dots repeat every 16 pixels, that is every second latent, so that the pattern is the same everywhere.
DOT_PERIOD = 16
PANE = 64
PAPER = (0.965, 0.935, 0.870)


def pixel_grid(rgb: Tensor) -> tuple[Tensor, Tensor]:
    height, width = rgb.shape[-2:]
    down = torch.arange(height, device=rgb.device).view(1, -1, 1) + 0.5
    across = torch.arange(width, device=rgb.device).view(1, 1, -1) + 0.5
    return across.float(), down.float()


def saturated(rgb: Tensor, amount: float) -> Tensor:
    grey = rgb.mean(1, keepdim=True)
    return (grey + (rgb - grey) * amount).clamp(0, 1)


def halftone(rgb: Tensor, seed: int = 0) -> Tensor:
    """Dots of ink on cream paper: their size follows the tone, their ink the colour."""
    across, down = pixel_grid(rgb)
    soft = F.avg_pool2d(F.pad(rgb, (4, 4, 4, 4), mode="replicate"), 9, stride=1)
    # The tone is how far the colour is from paper; a full colour still leaves paper between its dots.
    tone = 1 - (0.45 * soft.amin(1) + 0.55 * soft.mean(1))
    cover = 0.06 + 0.84 * tone.clamp(0, 1) ** 0.75

    def nearest(shift: float) -> Tensor:
        u = torch.remainder(across / DOT_PERIOD + shift, 1.0) - 0.5
        v = torch.remainder(down / DOT_PERIOD + shift, 1.0) - 0.5
        return torch.hypot(u, v) * DOT_PERIOD

    distance = torch.minimum(nearest(0.0), nearest(0.5))
    # Two dots share a cell, so a dot that covers `cover` of its half has this radius.
    radius = DOT_PERIOD * torch.sqrt(cover / (2 * torch.pi))
    ink = saturated(rgb, 1.5) * 0.90
    lightest = ink.amin(1, keepdim=True)
    ink = ink * (1 - 0.55 * ((lightest - 0.5) / 0.5).clamp(0, 1))
    paper = torch.tensor(PAPER, device=rgb.device).view(1, 3, 1, 1)
    return torch.lerp(paper.expand_as(rgb), ink, (radius - distance + 0.5).clamp(0, 1).unsqueeze(1))


def stained_glass(rgb: Tensor, seed: int = 0) -> Tensor:
    """Panes of luminous glass between dark leading; the leading also follows the outlines of the picture."""
    batch, _, height, width = rgb.shape
    across, down = pixel_grid(rgb)
    source = torch.Generator().manual_seed(seed)
    rows, columns = height // PANE + 3, width // PANE + 3
    shake = (0.15 + 0.7 * torch.rand(batch, 3, rows, columns, generator=source)).to(rgb.device)
    column, row = torch.floor(across / PANE), torch.floor(down / PANE)
    picture = torch.arange(batch, device=rgb.device).view(-1, 1, 1)
    first = torch.full((batch, height, width), 1e9, device=rgb.device)
    second, bright = first.clone(), first.clone()
    for step_row in (-1, 0, 1):
        for step_column in (-1, 0, 1):
            r, c = (row + step_row + 1).long(), (column + step_column + 1).long()
            u = (column + step_column + shake[picture, 0, r, c]) * PANE - across
            v = (row + step_row + shake[picture, 1, r, c]) * PANE - down
            distance = torch.hypot(u, v)
            nearer = distance < first
            second = torch.where(nearer, first, torch.minimum(second, distance))
            bright = torch.where(nearer, shake[picture, 2, r, c], bright)
            first = torch.where(nearer, distance, first)
    between_panes = (second - first) / 2
    # Outlines: where the picture changes within a few pixels. Small lights, a star or a window, get none.
    opened = F.max_pool2d(-F.max_pool2d(-rgb, 13, stride=1, padding=6), 13, stride=1, padding=6)
    soft = F.avg_pool2d(F.pad(opened, (3, 3, 3, 3), mode="replicate"), 7, stride=1)
    high = F.max_pool2d(soft, 3, stride=1, padding=1)
    low = -F.max_pool2d(-soft, 3, stride=1, padding=1)
    outline = ((high - low).amax(1) - 0.055).clamp(0, 0.06) / 0.06
    outline = F.max_pool2d(outline.unsqueeze(1), 3, stride=1, padding=1).squeeze(1)
    lead = torch.maximum((3.4 - between_panes).clamp(0, 1), outline)
    # Light comes through the middle of a pane, and each pane is a little different.
    glow = 0.80 + 0.34 * (between_panes / (PANE * 0.35)).clamp(0, 1) + 0.34 * (bright - 0.5)
    glass = (saturated(rgb, 1.5) * 0.90 + 0.06) * glow.unsqueeze(1)
    leading = torch.tensor((0.07, 0.065, 0.08), device=rgb.device).view(1, 3, 1, 1)
    return torch.lerp(glass.clamp(0, 1), leading.expand_as(rgb), lead.unsqueeze(1))


RESTYLE = {"halftone": halftone, "stained-glass": stained_glass}
