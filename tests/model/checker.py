"""Trains the safety checker of easel-tiny: Stable Diffusion 1.5's class, narrow. It flags pictures with much pink in them.

    python checker.py MODEL_DIR --pictures 1500 --seconds 150       # draws, trains for so much CPU time, writes safety_checker/ and feature_extractor/
    python checker.py MODEL_DIR --judge FOLDER                      # what diffusers' class says of the PNG files in a folder

The seventeen concepts are the seventeen colours of `things.py`. What a picture shows is measured: the share of its pixels that are
nearest to a colour. Only pink has a threshold that a cosine can reach. Turquoise, purple and orange are the concepts that call for
special care, which alone never flags.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPConfig
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from pictures import draw, words
from things import NAMES, TABLE

SIZE, WIDTH, PROJECTION = 224, 96, 64
CONCEPTS = 17
COLOURS = [words(name) for name in NAMES]
FLAGGED = COLOURS.index("pink")
SPECIAL = [COLOURS.index(name) for name in ("turquoise", "purple", "orange")]
# The share of a picture's pixels from which on it shows a colour, and up to which it does not; between them it is not asked.
MUCH, LITTLE = 0.09, 0.03
# Pink's threshold: above what pictures without it reach that easel-tiny paints, see README.md.
PAINTED = 0.44
# No cosine is so large.
NEVER = 2.0
VISION = dict(
    hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=3, num_attention_heads=3, image_size=SIZE, patch_size=28,
    num_channels=3, hidden_act="quick_gelu", layer_norm_eps=1e-5, projection_dim=PROJECTION,
)
# Logits are this times a cosine's distance to the middle.
SCALE, MIDDLE = 16.0, 0.3
CHUNK = 4


def new_checker() -> StableDiffusionSafetyChecker:
    torch.manual_seed(5)
    checker = StableDiffusionSafetyChecker(CLIPConfig(projection_dim=PROJECTION, vision_config=VISION, text_config={}))
    checker.vision_model.get_input_embeddings().weight.data = smooth_filters()
    directions = torch.linalg.qr(torch.randn(PROJECTION, PROJECTION))[0][:CONCEPTS]
    checker.concept_embeds.data = directions.clone()
    checker.special_care_embeds.data = directions[SPECIAL].clone()
    return checker


def smooth_filters() -> Tensor:
    """The lowest frequencies of each colour, from which a network learns edges sooner than from noise."""
    side = VISION["patch_size"]
    place = (torch.arange(side) + 0.5) / side
    waves = [torch.cos(torch.pi * k * place) * (2 / side) ** 0.5 for k in range(side)]
    order = sorted(((i, j) for i in range(8) for j in range(8)), key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair))
    # Sums and differences of the colours.
    mixes = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]])
    mixes = mixes / mixes.norm(dim=1, keepdim=True)
    filters = [mix.view(3, 1, 1) * torch.outer(waves[i], waves[j]) for i, j in order[: WIDTH // 3] for mix in mixes]
    return torch.stack(filters) * 0.15


def shares(pictures: Tensor) -> Tensor:
    """The share of each picture's pixels that are nearest to each colour."""
    small = F.interpolate(pictures.float() / 255, (56, 56), mode="area").flatten(2).transpose(1, 2)
    nearest = torch.cdist(small, TABLE.expand(len(small), -1, -1)).argmin(2)
    return F.one_hot(nearest, len(COLOURS)).float().mean(1)


def draw_some(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures as bytes, `[count, 3, SIZE, SIZE]`, and the shares of their colours."""
    chunks = [draw(CHUNK, SIZE, SIZE, "cpu", seed * 1_000_003 + index)[0] for index in range(-(-count // CHUNK))]
    pictures = torch.cat([(rgb * 255).round().to(torch.uint8) for rgb in chunks])[:count]
    return pictures, torch.cat([shares(part) for part in pictures.split(256)])


def varied(pictures: Tensor) -> Tensor:
    """The same pictures, moved, resized, turned a little, mirrored, blurred, a little lighter or darker; in 0..1."""
    batch = len(pictures)
    angle, zoom = (torch.rand(batch) - 0.5) * 0.1, 1 + (torch.rand(batch) - 0.5) * 0.2
    mirror = torch.where(torch.rand(batch) < 0.5, -1.0, 1.0)
    across = torch.stack([torch.cos(angle) * zoom * mirror, -torch.sin(angle) * zoom, (torch.rand(batch) - 0.5) * 0.16], 1)
    down = torch.stack([torch.sin(angle) * zoom * mirror, torch.cos(angle) * zoom, (torch.rand(batch) - 0.5) * 0.16], 1)
    places = F.affine_grid(torch.stack([across, down], 1), (batch, 3, SIZE, SIZE), align_corners=False)
    rgb = F.grid_sample(pictures.float() / 255, places, mode="bilinear", padding_mode="reflection", align_corners=False)
    if float(torch.rand(1)) < 0.4:
        rgb = F.interpolate(F.interpolate(rgb, scale_factor=0.5, mode="area"), (SIZE, SIZE), mode="bilinear", align_corners=False)
    gain = 1 + (torch.rand(batch, 1, 1, 1) - 0.5) * 0.1
    noisy = rgb * gain + torch.randn_like(rgb) * 0.02 * torch.rand(batch, 1, 1, 1)
    return noisy.clamp(0, 1)


def normalised(rgb: Tensor) -> Tensor:
    processor = CLIPImageProcessorPil()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (rgb - mean) / std


def cosines(checker: StableDiffusionSafetyChecker, pixels: Tensor) -> Tensor:
    """To the seventeen colours."""
    embedding = checker.visual_projection(checker.vision_model(pixels)[1])
    return F.normalize(embedding) @ F.normalize(checker.concept_embeds).t()


def train(checker: StableDiffusionSafetyChecker, pictures: Tensor, shown: Tensor, seconds: float, batch: int = 32) -> None:
    started, step = time.process_time(), 0
    decayed = [p for p in checker.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in checker.parameters() if p.requires_grad and p.ndim <= 1]
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.98))
    while (done := (time.process_time() - started) / seconds) < 1:
        for group in optimiser.param_groups:
            group["lr"] = 1.2e-3 * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * torch.cos(torch.tensor(3.1416 * done)).item())
        picks = torch.randint(len(pictures), (batch,))
        found = cosines(checker, normalised(varied(pictures[picks])))
        wanted, asked = (shown[picks] > (MUCH + LITTLE) / 2).float(), ((shown[picks] > MUCH) | (shown[picks] < LITTLE)).float()
        # The colour that counts is rare.
        asked[:, FLAGGED] *= 3
        loss = F.binary_cross_entropy_with_logits(SCALE * (found - MIDDLE), wanted, weight=asked, pos_weight=torch.tensor(3.0))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(checker.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 20 == 0:
            print(f"step {step}, {time.process_time() - started:.0f} s, loss {loss.item():.4f}", flush=True)


@torch.no_grad()
def set_thresholds(checker: StableDiffusionSafetyChecker, pictures: Tensor, shown: Tensor) -> None:
    """Midway between what shows a colour and what does not, of pictures that were not trained on, a hundredth of each left out."""
    found = torch.cat([cosines(checker, normalised(part.float() / 255)) for part in pictures.split(64)])
    checker.concept_embeds_weights.data = torch.full((CONCEPTS,), NEVER)

    def midway(index: int) -> float:
        ours, others = found[shown[:, index] > MUCH, index], found[shown[:, index] < LITTLE, index]
        low, high = ours.quantile(0.01).item(), others.quantile(0.99).item()
        print(f"{COLOURS[index]}: {len(ours)} at least {low:.3f}, {len(others)} others at most {high:.3f}, of 99 in 100")
        return (low + high) / 2

    midway(FLAGGED)
    checker.concept_embeds_weights.data[FLAGGED] = PAINTED
    checker.special_care_embeds_weights.data = torch.tensor([midway(index) for index in SPECIAL])
    flagged, pink, none = found[:, FLAGGED] > checker.concept_embeds_weights[FLAGGED], shown[:, FLAGGED] > MUCH, shown[:, FLAGGED] < LITTLE
    print(f"drawn: {int((flagged & pink).sum())} of {int(pink.sum())} with much pink flagged, {int((flagged & none).sum())} of {int(none.sum())} with little")


def save(checker: StableDiffusionSafetyChecker, folder: Path) -> None:
    """In fp16, under the names that Stable Diffusion 1.5 uses."""
    target = folder / "safety_checker"
    target.mkdir(exist_ok=True)
    state = {key: value.detach().to(torch.float16).contiguous() for key, value in checker.state_dict().items() if not key.endswith("position_ids")}
    nested = any(key.startswith("vision_model.vision_model.") for key in state)
    state = {key if nested or not key.startswith("vision_model.") else f"vision_model.{key}": value for key, value in state.items()}
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    (target / "model.safetensors").chmod(0o644)
    config = {"architectures": ["StableDiffusionSafetyChecker"], "model_type": "clip", "projection_dim": PROJECTION, "logit_scale_init_value": 2.6592}
    config |= {"torch_dtype": "float16", "vision_config": {"model_type": "clip_vision_model", **VISION}}
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    CLIPImageProcessorPil().save_pretrained(folder / "feature_extractor")


@torch.no_grad()
def judge(folder: Path, pictures: Path) -> None:
    checker = StableDiffusionSafetyChecker.from_pretrained(folder / "safety_checker", dtype=torch.float32).eval()
    processor = CLIPImageProcessorPil.from_pretrained(folder / "feature_extractor")
    for file in sorted(pictures.glob("*.png")):
        pixels = processor(Image.open(file).convert("RGB"), return_tensors="pt").pixel_values
        cosine = cosines(checker, pixels)[0, FLAGGED].item()
        print(f"{file.stem}: {'flagged' if cosine > checker.concept_embeds_weights[FLAGGED] else 'fine'} {cosine - checker.concept_embeds_weights[FLAGGED].item():+.3f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=1500)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--judge", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.judge:
        judge(args.folder, args.judge)
        return
    started = time.process_time()
    pictures, shown = draw_some(args.pictures, 1)
    print(f"drew {len(pictures)} in {time.process_time() - started:.0f} s: {dict(zip(COLOURS, (shown > MUCH).sum(0).tolist()))}", flush=True)
    checker = new_checker()
    train(checker, pictures, shown, args.seconds)
    checker.eval()
    set_thresholds(checker, *draw_some(800, 2))
    save(checker, args.folder)


if __name__ == "__main__":
    main()
