"""Pools of latents and captions to train on, drawn by several processes at once."""

import math
import queue
import tempfile
import time
from pathlib import Path

import torch
import torch.multiprocessing as processes
from torch import Tensor
from transformers import CLIPTokenizer

import model
from captions import Captions
from restyle import RESTYLE
from pictures import draw

# Latent height and width, and how often: 512x512, 768x768, and 512 wide by 1024 high.
SHAPES = {(64, 64): 0.6, (96, 96): 0.2, (128, 64): 0.2}
# Most of the training is on squares, so most of the pictures are.
POOL_SHARES = {(64, 64): 0.74, (96, 96): 0.13, (128, 64): 0.13}
CAPTIONS_EACH = 4
# Files that each drawing process writes.
PARTS_EACH = 6


def say(*words) -> None:
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def draw_many(count: int, height: int, width: int, device: str, seed: int, chunk: int, styled: bool):
    """Chunks of pictures with their tags; with `styled`, some are redrawn in a style."""
    for index in range(math.ceil(count / chunk)):
        rgb, tags = draw(chunk, height, width, device, seed * 1_000_003 + index)
        style = (None, None, "halftone", "stained-glass")[index % 4] if styled else None
        yield (RESTYLE[style](rgb, index) if style else rgb), tags


def load_vae(folder: Path, device: str):
    """The VAE for encoding only: half precision on a GPU."""
    vae = model.new_vae()
    model.load(vae, "vae", folder)
    vae.to(device, torch.float16 if device == "cuda" else torch.float32, memory_format=torch.channels_last)
    return vae.eval().requires_grad_(False)


class Pool:
    """Latents of drawn pictures with some captions each, all on the device."""

    def __init__(self, latents: Tensor, ids: Tensor):
        self.latents, self.ids = latents, ids

    def with_more(self, other: "Pool") -> "Pool":
        return Pool(torch.cat([self.latents, other.latents]), torch.cat([self.ids, other.ids]))

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        device = self.latents.device
        picks = torch.randint(len(self.latents), (size,), device=device)
        which = torch.randint(CAPTIONS_EACH, (size,), device=device)
        return self.latents[picks].float(), self.ids[picks, which].long()


@torch.no_grad()
def fill(folder: Path, device: str, counts: dict, seed: int, style: str | None, place: Path, done: processes.Queue) -> None:
    """Draws one process's share, in parts of equal size, and tells the name of each part's file."""
    torch.set_num_threads(1)
    captions = Captions(CLIPTokenizer.from_pretrained(folder / "tokenizer"), seed)
    vae = load_vae(folder, device)
    for part in range(PARTS_EACH):
        result = {}
        for shape, count in counts.items():
            latents, ids = [], []
            # As many pixels in every chunk, and few enough that ten processes fit on one GPU.
            chunk = max(1, min(count, 32 * 4096 // (shape[0] * shape[1])))
            first = seed * 31 + shape[0] + 7_919 * part
            for index, (rgb, tags) in enumerate(draw_many(count, shape[0] * 8, shape[1] * 8, device, first, chunk, False)):
                if style:
                    rgb = RESTYLE[style](rgb, seed + index)
                truth = (rgb * 2 - 1).to(vae.dtype).contiguous(memory_format=torch.channels_last)
                mean = vae.quant_conv(vae.encoder(truth)).float().chunk(2, 1)[0]
                latents.append((mean * vae.config.scaling_factor).to("cpu", torch.float16))
                ids += [[captions.caption(row) for _ in range(CAPTIONS_EACH)] for row in tags]
            result[shape] = (torch.cat(latents), torch.tensor(ids, dtype=torch.int32))
        file = place / f"{seed}-{part}.pt"
        torch.save({"pools": result, "seen": captions.seen}, file)
        done.put(file)


class Drawing:
    """Processes that fill the pools while the caller compiles, and trains on what is there."""

    def __init__(self, folder: Path, device: str, count: int, seed: int, workers: int, style: str | None = None):
        self.device, self.place = device, tempfile.TemporaryDirectory()
        self.pools: dict[tuple[int, int], Pool] = {}
        self.seen: set[int] = set()
        self.awaited = workers * PARTS_EACH
        counts = {shape: max(2, int(count * share / self.awaited)) for shape, share in POOL_SHARES.items()}
        spawn = processes.get_context("spawn")
        self.done = spawn.Queue()
        self.workers = [
            spawn.Process(target=fill, args=(folder, device, counts, seed * 100 + index, style, Path(self.place.name), self.done), daemon=True)
            for index in range(workers)
        ]
        for worker in self.workers:
            worker.start()

    def take(self, wait: bool) -> None:
        """Adds what has been drawn since; with `wait`, at least one part of all."""
        while self.awaited:
            try:
                file = self.done.get(wait, timeout=5)
            except queue.Empty:
                assert all(worker.exitcode in (None, 0) for worker in self.workers), "a drawing process failed"
                if wait:
                    continue
                return
            part = torch.load(file, weights_only=False)
            file.unlink()
            for shape, tensors in part["pools"].items():
                fresh = Pool(*(tensor.to(self.device) for tensor in tensors))
                self.pools[shape] = self.pools[shape].with_more(fresh) if shape in self.pools else fresh
            self.seen |= part["seen"]
            self.awaited -= 1
            wait = False

    def finish(self) -> dict[tuple[int, int], Pool]:
        """Waits for all parts."""
        while self.awaited:
            self.take(wait=True)
        return self.pools
