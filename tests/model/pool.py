"""Pools of latents and captions to train on, drawn by several processes at once."""

import math
import tempfile
import time
from pathlib import Path

import torch
import torch.multiprocessing as processes
from torch import Tensor
from transformers import CLIPTokenizer

import model
from captions import Captions
from hands import HANDS
from pictures import draw

# Latent height and width, and how often: 512x512, 768x768, and 512 wide by 1024 high.
SHAPES = {(64, 64): 0.6, (96, 96): 0.2, (128, 64): 0.2}
# Most of the training is on squares, so most of the pictures are.
POOL_SHARES = {(64, 64): 0.74, (96, 96): 0.13, (128, 64): 0.13}
CAPTIONS_EACH = 4


def say(*words) -> None:
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def draw_many(count: int, height: int, width: int, device: str, seed: int, chunk: int, hands: bool):
    """Chunks of pictures with their tags; with `hands`, some are as the artists would make them."""
    for index in range(math.ceil(count / chunk)):
        rgb, tags = draw(chunk, height, width, device, seed * 1_000_003 + index)
        hand = (None, None, "halftone", "stained-glass")[index % 4] if hands else None
        yield (HANDS[hand](rgb, index) if hand else rgb), tags


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

    def batch(self, size: int) -> tuple[Tensor, Tensor]:
        device = self.latents.device
        picks = torch.randint(len(self.latents), (size,), device=device)
        which = torch.randint(CAPTIONS_EACH, (size,), device=device)
        return self.latents[picks].float(), self.ids[picks, which].long()


@torch.no_grad()
def fill(folder: Path, device: str, counts: dict, seed: int, hand: str | None, out: Path) -> None:
    """Draws one process's share and writes it to a file."""
    if device == "cpu":
        torch.set_num_threads(1)
    captions = Captions(CLIPTokenizer.from_pretrained(folder / "tokenizer"), seed)
    vae, result = load_vae(folder, device), {}
    for shape, count in counts.items():
        latents, ids = [], []
        # As many pixels in every chunk, and few enough that ten processes fit on one GPU.
        chunk = max(1, min(count, 32 * 4096 // (shape[0] * shape[1])))
        for index, (rgb, tags) in enumerate(draw_many(count, shape[0] * 8, shape[1] * 8, device, seed * 31 + shape[0], chunk, False)):
            if hand:
                rgb = HANDS[hand](rgb, seed + index)
            truth = (rgb * 2 - 1).to(vae.dtype).contiguous(memory_format=torch.channels_last)
            mean = vae.quant_conv(vae.encoder(truth)).float().chunk(2, 1)[0]
            latents.append((mean * vae.config.scaling_factor).to("cpu", torch.float16))
            ids += [[captions.caption(row) for _ in range(CAPTIONS_EACH)] for row in tags]
        result[shape] = (torch.cat(latents), torch.tensor(ids, dtype=torch.int32))
    torch.save({"pools": result, "seen": captions.seen}, out)


class Drawing:
    """Processes that fill the pools while the caller compiles."""

    def __init__(self, folder: Path, device: str, count: int, seed: int, workers: int, hand: str | None = None):
        self.device, self.place = device, tempfile.TemporaryDirectory()
        self.files = [Path(self.place.name) / f"{index}.pt" for index in range(workers)]
        counts = {shape: max(2, int(count * share / workers)) for shape, share in POOL_SHARES.items()}
        spawn = processes.get_context("spawn")
        self.workers = [
            spawn.Process(target=fill, args=(folder, device, counts, seed * 100 + index, hand, file)) for index, file in enumerate(self.files)
        ]
        for worker in self.workers:
            worker.start()

    def pools(self) -> tuple[dict[tuple[int, int], Pool], set[int]]:
        """Waits for the processes; the pools, and the tokens that their captions hold."""
        for worker in self.workers:
            worker.join()
            assert worker.exitcode == 0, "a drawing process failed"
        parts = [torch.load(file, weights_only=False) for file in self.files]
        pools = {
            shape: Pool(*(torch.cat([part["pools"][shape][i] for part in parts]).to(self.device) for i in (0, 1))) for shape in SHAPES
        }
        self.place.cleanup()
        return pools, set().union(*(part["seen"] for part in parts))
