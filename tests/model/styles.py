"""Trains the two artist styles on easel-tiny with peft, and writes each in diffusers' and in kohya's layout.

    python styles.py MODEL_DIR OUT_DIR --seconds 60 [--targets attention] [--only halftone]
"""

import argparse
from pathlib import Path

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTokenizer

import model
from captions import Captions
from restyle import RESTYLE
from samples import SQUARE, grid, load_pipeline, paint
from pool import SHAPES, Drawing, say
from train import EMPTY_CAPTION, Clock, denoising_loss

RANK = 8
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TARGETS = {
    "attention": ATTENTION,
    "blocks": [*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"],
    "all": [*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_in", "conv_out"],
}
# With --crop: how often a whole picture is trained on, and the latest timestep of the crops. A style is mostly texture, which
# small squares and the later steps show, and that makes training on a CPU possible.
WHOLE_EVERY, CROP_LATEST = 8, 650
SHOWN = [SQUARE[i] for i in (0, 3, 12, 13, 14, 16, 18, 19, 20, 21, 11, 17)]


def kohya(state: dict[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """The same weights under kohya's names."""
    renamed = {}
    for key, value in state.items():
        module, part = key.removeprefix("unet.").rsplit(".lora_", 1)
        name = "lora_unet_" + module.replace(".", "_")
        renamed[f"{name}.lora_{'down' if part.startswith('A') else 'up'}.weight"] = value
        renamed[f"{name}.alpha"] = torch.tensor(alpha, dtype=torch.float16)
    return renamed


def write(state: dict[str, Tensor], name: str, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    half = {f"unet.{key}": value.detach().to("cpu", torch.float16).contiguous() for key, value in state.items()}
    save_file(half, out / f"{name}.safetensors", metadata={"format": "pt"})
    comment = {"format": "pt", "ss_network_module": "networks.lora", "ss_network_dim": str(RANK), "ss_network_alpha": str(float(RANK)), "ss_output_name": name}
    save_file(kohya(half, RANK), out / f"{name}-kohya.safetensors", metadata=comment)
    for file in out.glob(f"{name}*.safetensors"):
        file.chmod(0o644)


def crop(latents: Tensor, side: int) -> Tensor:
    """A square of the latents, at an even place: the halftone's dots repeat every second latent."""
    down, across = (2 * int(torch.randint((length - side) // 2 + 1, (1,))) for length in latents.shape[-2:])
    return latents[:, :, down : down + side, across : across + side]


def train_style(args, name: str, targets: str, pools: dict, device: str, out: Path) -> None:
    folder = args.folder
    captions = Captions(CLIPTokenizer.from_pretrained(folder / "tokenizer"), args.seed)
    unet, text_encoder = model.new_unet(), model.new_text_encoder()
    model.load(unet, "unet", folder)
    model.load(text_encoder, "text_encoder", folder)
    unet = unet.to(device, memory_format=torch.channels_last).requires_grad_(False)
    text_encoder = text_encoder.to(device).requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TARGETS[targets], init_lora_weights="gaussian"))
    if args.start:
        before = load_file(args.start / f"{name}.safetensors")
        set_peft_model_state_dict(unet, {key.removeprefix("unet."): value.float() for key, value in before.items()})
    trained = [p for p in unet.parameters() if p.requires_grad]
    say(f"{name}: {sum(p.numel() for p in trained)} weights on {targets}")
    nothing = torch.tensor([captions.empty()], device=device)
    alphas = model.noise_schedule(device)
    optim = torch.optim.AdamW(trained, lr=args.rate, betas=(0.9, 0.99), weight_decay=0.0)
    shapes, shares = list(SHAPES), torch.tensor(list(SHAPES.values()))
    clock, step, total = Clock(args.seconds), 0, 0.0
    while not clock.over():
        shape = shapes[int(torch.multinomial(shares, 1))]
        cropped = args.crop and step % WHOLE_EVERY
        size = max(1, args.batch * 4096 // (args.crop**2 if cropped else shape[0] * shape[1]))
        latents, ids = pools[shape].batch(size)
        if cropped:
            latents = crop(latents, args.crop)
        ids = torch.where(torch.rand(size, 1, device=device) < EMPTY_CAPTION, nothing, ids)
        loss = denoising_loss(unet, text_encoder, latents, ids, alphas, args.amp, CROP_LATEST if cropped else 1000)
        optim.param_groups[0]["lr"] = clock.rate(args.rate, step, 30)
        optim.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optim.step()
        total += loss.detach()
        if step % 100 == 99:
            say(f"{name} step {step + 1} progress {clock.progress():.2f} loss {float(total) / 100:.4f}")
            total = 0.0
        step += 1
    say(f"{name}: {step} steps")
    write(get_peft_model_state_dict(unet), name, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=list(RESTYLE))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--targets", choices=list(TARGETS), nargs="+", default=["attention"])
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--pool", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=4, help="processes that draw, for each style")
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--no-amp", dest="amp", action="store_false")
    parser.add_argument("--crop", type=int, default=0, help="train mostly on squares of so many latents")
    parser.add_argument("--start", type=Path, help="go on from the styles in this folder, trained with the same targets")
    parser.add_argument("--sheet", type=Path, help="paint a contact sheet of each style beside this name")
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True
    names = [args.only] if args.only else list(RESTYLE)
    drawings = {name: Drawing(args.folder, device, args.pool, args.seed, args.workers, name) for name in names}
    for name in names:
        pools = drawings[name].finish()
        for targets in args.targets:
            out = args.out / targets if len(args.targets) > 1 else args.out
            train_style(args, name, targets, pools, device, out)
            if args.sheet:
                pipe = load_pipeline(args.folder, device)
                pipe.load_lora_weights(out, weight_name=f"{name}.safetensors")
                grid(paint(pipe, SHOWN), SHOWN, 6, 256).save(args.sheet.with_stem(f"{args.sheet.stem}-{name}-{targets}"), quality=92)
                say(f"{name}: sheet painted")


if __name__ == "__main__":
    main()
