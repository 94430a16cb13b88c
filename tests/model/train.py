"""Trains easel-tiny from scratch on pictures that `pictures.py` draws: the VAE first, then UNet and text encoder.

Each stage runs for a number of seconds and goes on from what the folder holds, so the work can be spread over calls.

    python train.py OUT --vae 150 --unet 280 --of 600          # the first call: 280 of 600 seconds of the UNet
    python train.py OUT --decoder 40 --unet 320 --of 600 --done 280
"""

import argparse
import math
import shutil
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPTokenizer

import model
from captions import UNKNOWN_ID, Captions
from pool import SHAPES, Drawing, draw_many, say
from samples import contact_sheet

EMPTY_CAPTION = 0.12
BORN = time.time()
# Noise that is the same over large patches hides from the model, while it trains, what it will not see when it paints: at
# the last timestep SD1.5's schedule still leaves 7 % of the picture, and over a patch of many latents that shows a shape or
# a background clearly. Deviations of each scale: at timestep 0, and what is added at the last.
COARSE_SIDES, COARSE_LEAST, COARSE_MORE = (1, 2, 4, 8), 0.03, 0.15
# The weight of the error of the clean picture is the signal to noise ratio, between these. The floor is for the first
# steps, which choose colours and places: without it they hardly count, and the text is learnt late.
LEAST_SNR, MOST_SNR = 0.4, 5.0
# Below 1, noisier timesteps are drawn more often: a shape is decided there.
TIMES_POWER = 0.65
# Beside the weights: what the next call on the same machine goes on from.
STATE = "state.pt"
# The last part of the training paints all three shapes; before, squares only, which are compiled and so twice as fast.
ALL_SHAPES_FROM = 0.74


def keep(folder: Path, name: str, out: Path | None) -> None:
    """Copies the weights of a part to where they outlast the machine."""
    if out:
        shutil.copyfile(folder / name / model.FILES[name], out / f"{name}.safetensors")


class Clock:
    """How far a stage is, by time: 0 at its start, 1 at its end."""

    def __init__(self, seconds: float, of: float | None = None, done: float = 0.0):
        self.start, self.seconds, self.of, self.done = time.time(), seconds, of or seconds, done

    def progress(self) -> float:
        return min(1.0, (self.done + time.time() - self.start) / self.of)

    def over(self) -> bool:
        return time.time() - self.start >= self.seconds

    def rate(self, peak: float, step: int, warmup: int = 100) -> float:
        """Cosine over the whole stage, with a warm-up at the start of every call."""
        return peak * min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.progress())))


def optimizer(parameters: list, rate: float, device: str) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01, fused=device == "cuda")


class Average:
    """The exponential moving average of some parameters."""

    def __init__(self, parameters: list[Tensor]):
        self.live, self.kept, self.steps = parameters, [p.detach().clone() for p in parameters], 0

    @torch.no_grad()
    def update(self, longest: float = 0.9985) -> None:
        self.steps += 1
        decay = min(longest, (1 + self.steps) / (12 + self.steps))
        torch._foreach_lerp_(self.kept, self.live, 1 - decay)

    @torch.no_grad()
    def store(self) -> None:
        """Puts the averages into the model."""
        for live, kept in zip(self.live, self.kept):
            live.copy_(kept)


# --- VAE -------------------------------------------------------------------------------------------------------------


def gallery(count: int, device: str, seed: int, side: int = 512) -> Tensor:
    """Pictures as bytes, shuffled over families and styles."""
    rows = [(rgb * 255).round().to(torch.uint8) for rgb, _ in draw_many(count, side, side, device, seed, min(count, 32), True)]
    return torch.cat(rows)


def crops(pictures: Tensor, batch: int, side: int) -> Tensor:
    """Random squares of the pictures, on the grid of the latents, in -1..1."""
    room = (pictures.shape[-1] - side) // 8 + 1
    picks = torch.randint(len(pictures), (batch,)).tolist()
    places = (torch.randint(room, (batch, 2)) * 8).tolist()
    rows = [pictures[i, :, y : y + side, x : x + side] for i, (y, x) in zip(picks, places)]
    return torch.stack(rows).float() / 127.5 - 1


def picture_loss(ours: Tensor, truth: Tensor) -> Tensor:
    """Absolute error of the colours, and of their differences across and down, which is what a sharp edge is."""
    error = ours.float() - truth
    return error.abs().mean() + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean() + 2 * error.square().mean()


def train_vae(args, device: str, folder: Path, seconds: float, decoder_only: bool) -> None:
    vae = model.new_vae().to(device)
    if decoder_only:
        model.load(vae, "vae", folder)
    vae = vae.to(memory_format=torch.channels_last)
    trained = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()] if decoder_only else list(vae.parameters())
    pictures = gallery(args.gallery, device, 21 if decoder_only else 11, args.side)
    say(f"vae: {len(pictures)} pictures drawn")
    optim, average = optimizer(trained, 1e-3, device), Average(trained)
    peak = 4e-4 if decoder_only else 1.2e-3
    encoder, decoder = (torch.compile(vae.encoder), torch.compile(vae.decoder)) if args.compile else (vae.encoder, vae.decoder)
    clock, step, side = None, 0, min(256, args.side)
    while clock is None or not clock.over():
        truth = crops(pictures, args.vae_batch, side).to(device, memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16, enabled=args.amp):
            with torch.set_grad_enabled(not decoder_only):
                mean, log_variance = vae.quant_conv(encoder(truth)).float().chunk(2, 1)
            log_variance = log_variance.clamp(-20, 10)
            spread = torch.exp(0.5 * log_variance)
            if decoder_only:
                # The decoder also learns to stand small errors of the UNet.
                ours = decoder(vae.post_quant_conv(mean + 0.04 * mean.std() * torch.randn_like(mean)))
                loss = picture_loss(ours, truth)
            else:
                latents, paint = mean + torch.randn_like(mean) * spread, decoder
                if clock and step % 4 == 0:
                    # Half the latents must paint half the picture: that makes them smooth, and easier for the UNet.
                    latents, truth, paint = F.avg_pool2d(latents, 2), F.avg_pool2d(truth, 2), vae.decoder
                ours = paint(vae.post_quant_conv(latents))
                divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
                loss = picture_loss(ours, truth) + 2e-4 * divergence
        optim.param_groups[0]["lr"] = clock.rate(peak, step) if clock else peak / 100
        optim.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optim.step()
        average.update()
        # Compiling is not training.
        if clock is None:
            if device == "cuda":
                torch.cuda.synchronize()
            clock = Clock(seconds)
        if step % 250 == 1:
            noise = (ours.float() - truth).square().mean()
            say(f"vae step {step} progress {clock.progress():.2f} loss {loss.item():.4f} psnr {10 * math.log10(4 / noise.item()):.2f} latent std {mean.std().item():.3f} posterior std {spread.mean().item():.4f}")
        step += 1
    average.store()
    del pictures
    report_vae(args, vae, device, folder, step, decoder_only)


@torch.no_grad()
def report_vae(args, vae, device: str, folder: Path, steps: int, decoder_only: bool) -> None:
    """Measures whole pictures that were not trained on; a new VAE gets latents as large as Stable Diffusion's."""
    fresh = gallery(min(192, args.gallery), device, 31, args.side)
    means, error = [], 0.0
    for rows in fresh.split(8):
        truth = rows.float() / 127.5 - 1
        means.append(vae.encode(truth).latent_dist.mean)
        error += (vae.decode(means[-1]).sample.clamp(-1, 1) - truth).square().mean().item() * len(rows) / len(fresh)
    plain = torch.cat(means)
    if not decoder_only:
        rescale(vae, plain.mean((0, 2, 3)), plain.std((0, 2, 3)))
        say(f"vae: channel stds {[round(v, 3) for v in plain.std((0, 2, 3)).tolist()]} now {[round(v, 3) for v in vae.encode(fresh[:8].float() / 127.5 - 1).latent_dist.mean.std((0, 2, 3)).tolist()]}")
    say(f"vae: {steps} steps, psnr {10 * math.log10(4 / error):.2f} dB on {len(fresh)} whole unseen pictures")
    model.save(vae, "vae", folder)
    keep(folder, "vae", args.keep)


def rescale(vae, mean: Tensor, deviation: Tensor) -> None:
    """Folds a shift and a scale per channel into the two 1x1 convolutions around the latents.

    The pictures stay the same, and `scaling_factor` is Stable Diffusion 1.5's with unit deviation in every channel.
    """
    grow = 1 / (deviation * vae.config.scaling_factor)
    channels = len(grow)
    before, after = vae.quant_conv, vae.post_quant_conv
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(1)
    after.weight /= grow.view(1, -1, 1, 1)
    before.weight[:channels] *= grow.view(-1, 1, 1, 1)
    before.bias[:channels] = (before.bias[:channels] - mean) * grow
    before.bias[channels:] += 2 * grow.log()


# --- UNet and text encoder -------------------------------------------------------------------------------------------


def coarse_noise(latents: Tensor) -> Tensor:
    """Noise over the whole picture and over halves, quarters and eighths of its sides, added up."""
    height, width = latents.shape[-2:]
    total = torch.zeros_like(latents)
    for side in COARSE_SIDES:
        patches = torch.randn(len(latents), 4, side * height // min(height, width), side, device=latents.device)
        total += F.interpolate(patches, size=(height, width), mode="bilinear" if side > 1 else "nearest")
    return total


def denoising_loss(unet, text_encoder, latents: Tensor, ids: Tensor, alphas: Tensor, amp: bool, latest: int = 1000) -> Tensor:
    """The error of the predicted noise at timesteps below `latest`, weighted by the ratio of signal to noise."""
    size, device = len(latents), latents.device.type
    # Evenly spread over the batch, which makes the gradient steadier.
    spread = (torch.rand(1, device=device) + torch.arange(size, device=device) / size) % 1
    times = (spread**TIMES_POWER * latest).long().clamp(max=latest - 1)
    depth = (COARSE_LEAST + COARSE_MORE * (times / 1000) ** 3).view(-1, 1, 1, 1)
    noise = torch.randn_like(latents) + depth * coarse_noise(latents)
    alpha = alphas[times].view(-1, 1, 1, 1)
    noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
    with torch.autocast(device, torch.bfloat16, enabled=amp):
        states = text_encoder(ids).last_hidden_state
        ours = unet(noisy.contiguous(memory_format=torch.channels_last), times, states, return_dict=False)[0]
    ratio = alpha / (1 - alpha)
    weight = (ratio + LEAST_SNR).clamp(max=MOST_SNR) / ratio
    return (weight * (ours.float() - noise).square()).mean()


def forget_unknown(text_encoder, seen: set[int]) -> None:
    """Gives every word that no caption had the embedding that stood for unknown words."""
    table = text_encoder.get_input_embeddings().weight
    unseen = torch.ones(len(table), dtype=torch.bool, device=table.device)
    unseen[torch.tensor(sorted(seen), device=table.device)] = False
    with torch.no_grad():
        table[unseen] = table[UNKNOWN_ID].clone()


def restore(state: Path, trained: list[Tensor], optim: torch.optim.Optimizer, average: Average, device: str) -> None:
    """Goes on where an earlier call on the same machine stopped: the weights before averaging, and the optimizer."""
    saved = torch.load(state, map_location=device, weights_only=False)
    with torch.no_grad():
        torch._foreach_copy_(trained, saved["live"])
    optim.load_state_dict(saved["optimizer"])
    average.kept, average.steps = saved["average"], saved["steps"]
    say(f"unet: goes on after {average.steps} steps")


def train_unet(args, device: str, folder: Path) -> None:
    drawing = Drawing(folder, device, args.pool, args.seed, args.workers)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    captions = Captions(tokenizer, args.seed)
    unet, text_encoder = model.new_unet().to(device), model.new_text_encoder().to(device)
    if args.done:
        model.load(unet, "unet", folder)
        model.load(text_encoder, "text_encoder", folder)
    unet = unet.to(memory_format=torch.channels_last)
    nothing = torch.tensor([captions.empty(), captions.strangers()], device=device)
    trained = [*unet.parameters(), *text_encoder.parameters()]
    optim, average = optimizer(trained, args.rate, device), Average(trained)
    state = folder / STATE
    alphas = model.noise_schedule(device)
    square, shapes = (64, 64), list(SHAPES)
    run = torch.compile(unet) if args.compile else unet

    def step_on(latents: Tensor, ids: Tensor, rate: float) -> Tensor:
        drop = torch.rand(len(ids), 1, device=device)
        ids = torch.where(drop < EMPTY_CAPTION, nothing[:1], ids)
        ids = torch.where(drop > 0.99, nothing[1:], ids)
        net = run if latents.shape[-2:] == square else unet
        loss = denoising_loss(net, text_encoder, latents, ids, alphas, args.amp)
        optim.param_groups[0]["lr"] = rate
        optim.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=True)
        optim.step()
        return loss.detach()

    # Compiles on noise while other processes draw.
    if args.compile:
        step_on(torch.randn(args.batch, 4, *square, device=device), nothing[:1].repeat(args.batch, 1), 0.0)
        optim.state.clear()
        say("unet: compiled")
    if args.done and state.exists():
        restore(state, trained, optim, average, device)
    drawing.take(wait=True)
    pools = drawing.pools
    say(f"unet: starts with {sum(len(p.latents) for p in pools.values())} pictures, latent std {pools[square].latents[:999].float().std().item():.3f}")
    say("caption:", tokenizer.decode(pools[square].ids[0, 0].tolist(), skip_special_tokens=True))
    seconds = min(args.unet, BORN + args.stop_after - time.time())
    clock, step, total, painted, window = Clock(seconds, args.of or args.done + seconds, args.done), 0, 0.0, 0, 0
    while not clock.over():
        mixed = clock.progress() > ALL_SHAPES_FROM
        shape = shapes[int(torch.multinomial(torch.tensor(list(SHAPES.values())), 1))] if mixed else square
        size = max(2, args.batch * 4096 // (shape[0] * shape[1]))
        total += step_on(*pools[shape].batch(size), clock.rate(args.rate, step))
        average.update()
        step, window, painted = step + 1, window + 1, painted + size
        if step % 50 == 0:
            drawing.take(wait=False)
        if step % 250 == 0:
            say(f"unet step {step} progress {clock.progress():.3f} loss {float(total) / window:.4f} pictures {painted} ({painted / (time.time() - clock.start):.0f}/s)")
            total, window = 0.0, 0
    drawing.take(wait=False)
    say(f"unet: {sum(len(p.latents) for p in pools.values())} pictures drawn, {len(drawing.seen)} tokens")
    say(f"unet: {step} steps, {painted} pictures; {args.done + time.time() - clock.start:.0f} seconds done in all")
    torch.save({"live": trained, "optimizer": optim.state_dict(), "average": average.kept, "steps": average.steps}, state)
    average.store()
    forget_unknown(text_encoder, drawing.seen)
    for name, part in (("unet", unet), ("text_encoder", text_encoder)):
        model.save(part, name, folder)
        keep(folder, name, args.keep)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--vae", type=float, default=0, help="seconds of the VAE from scratch")
    parser.add_argument("--decoder", type=float, default=0, help="seconds of the VAE's decoder alone, going on")
    parser.add_argument("--unet", type=float, default=0, help="seconds of UNet and text encoder")
    parser.add_argument("--of", type=float, help="seconds of UNet training over all calls, unless this is the last")
    parser.add_argument("--done", type=float, default=0, help="seconds of UNet training in earlier calls")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pool", type=int, default=64_000)
    parser.add_argument("--gallery", type=int, default=12_000)
    parser.add_argument("--side", type=int, default=512, help="side of the VAE's pictures")
    parser.add_argument("--workers", type=int, default=4, help="processes that draw")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--vae-batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--no-amp", dest="amp", action="store_false")
    parser.add_argument("--stop-after", type=float, default=math.inf, help="end the UNet's training this long after the start")
    parser.add_argument("--keep", type=Path, help="copy the weights here after each stage")
    parser.add_argument("--sheet", type=Path, help="paint a contact sheet here at the end")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    model.write_layout(args.out)
    if args.vae:
        train_vae(args, device, args.out, args.vae, decoder_only=False)
    if args.decoder:
        train_vae(args, device, args.out, args.decoder, decoder_only=True)
    if args.unet:
        train_unet(args, device, args.out)
    if args.sheet:
        contact_sheet(args.out, args.sheet, device)
        say("sheet painted")


if __name__ == "__main__":
    main()
