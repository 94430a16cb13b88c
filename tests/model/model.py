"""easel-tiny: Stable Diffusion 1.5's classes, narrow. How it is built, saved, loaded and asked for a picture."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from vocabulary import VOCABULARY_SIZE, write_tokenizer

WIDTH = 128  # of the text encoder and of the cross attention

TEXT_ENCODER = dict(
    vocab_size=VOCABULARY_SIZE, hidden_size=WIDTH, intermediate_size=4 * WIDTH, projection_dim=WIDTH, num_hidden_layers=3,
    num_attention_heads=4, max_position_embeddings=77, hidden_act="quick_gelu", bos_token_id=49406, eos_token_id=49407, pad_token_id=1,
)
# No attention at the highest resolution: it would cost more than all the rest.
UNET = dict(
    sample_size=64, in_channels=4, out_channels=4, cross_attention_dim=WIDTH, layers_per_block=1, norm_num_groups=8,
    block_out_channels=(48, 96, 144, 144), attention_head_dim=6,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
)
VAE = dict(
    sample_size=512, latent_channels=4, scaling_factor=0.18215, layers_per_block=1, norm_num_groups=8, block_out_channels=(32, 48, 96, 128),
    down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
)
# As Stable Diffusion 1.5 ships it: no timestep_spacing, so every scheduler takes its own default.
SCHEDULER = dict(
    _class_name="PNDMScheduler", _diffusers_version="0.6.0", beta_end=0.012, beta_schedule="scaled_linear", beta_start=0.00085,
    clip_sample=False, num_train_timesteps=1000, set_alpha_to_one=False, skip_prk_steps=True, steps_offset=1, trained_betas=None,
)
FILES = {"text_encoder": "model.safetensors", "unet": "diffusion_pytorch_model.safetensors", "vae": "diffusion_pytorch_model.safetensors"}


def new_text_encoder() -> CLIPTextModel:
    return CLIPTextModel(CLIPTextConfig(**TEXT_ENCODER))


def new_unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(**UNET)


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(**VAE)


def save(part: torch.nn.Module, name: str, folder: Path) -> None:
    """One part in fp16, with its config, under the names that Stable Diffusion 1.5 uses."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    state = {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in part.state_dict().items()}
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    if name == "text_encoder":
        state = {key if key.startswith("text_model.") else f"text_model.{key}": value for key, value in state.items()}
    save_file(state, folder / name / FILES[name], metadata={"format": "pt"})
    (folder / name / FILES[name]).chmod(0o644)
    if name == "text_encoder":
        config = {"_name_or_path": "easel-tiny", "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", **TEXT_ENCODER}
        config |= {"attention_dropout": 0.0, "dropout": 0.0, "initializer_factor": 1.0, "initializer_range": 0.02, "layer_norm_eps": 1e-5, "torch_dtype": "float32"}
        (folder / name / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    else:
        part.save_config(folder / name)


def load(part: torch.nn.Module, name: str, folder: Path) -> None:
    """Reads weights back into a part that has this shape."""
    state = {key: value.float() for key, value in load_file(folder / name / FILES[name]).items()}
    if name == "text_encoder" and not any(key.startswith("text_model.") for key in part.state_dict()):
        state = {key.removeprefix("text_model."): value for key, value in state.items()}
    missing, unexpected = part.load_state_dict(state, strict=False)
    assert not unexpected and all(key.endswith("position_ids") for key in missing), (missing, unexpected)


def write_layout(folder: Path) -> None:
    """Everything of the diffusers layout that is not trained."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer" / "vocab.json").exists():
        write_tokenizer(folder / "tokenizer")
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER, indent=2) + "\n")
    # `checker.py` writes the folders of both.
    index = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1", "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "requires_safety_checker": True, "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def noise_schedule(device: str) -> torch.Tensor:
    """The cumulative products of alpha for the 1000 training steps."""
    betas = torch.linspace(SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float().to(device)


def pipeline(tokenizer: CLIPTokenizer, text_encoder, unet, vae) -> StableDiffusionPipeline:
    """Diffusers' own pipeline over these parts, with the default scheduler of the function."""
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=DPMSolverMultistepScheduler.from_config(SCHEDULER),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe
