"""What diffusers' schedulers make of scheduler files: their constructors' fields, and timesteps, noise levels and whole trajectories."""

import inspect
import json
import math
import tempfile
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file

from . import made_with, metadata

SCHEDULERS = {
    "dpmsolver++": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "ddim": diffusers.DDIMScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "lcm": diffusers.LCMScheduler,
    "pndm": diffusers.PNDMScheduler,
}
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD15 = BETAS | {
    "_class_name": "PNDMScheduler",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
# What the file says beside SD1.5's own fields. "default" names no spacing; each scheduler then takes its own.
VARIANTS = {
    "default": {},
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "zero_snr": {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    "karras": {"use_karras_sigmas": True},
}
# Classes that write files which others read: each is saved with SD1.5's betas and its own defaults.
WRITERS = [
    "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler",
    "PNDMScheduler", "UniPCMultistepScheduler",
]
# The fields that a file names are all that is in it.
BARE = BETAS | {"_class_name": "PNDMScheduler"}
FILES = {
    "bare": BARE,
    "clip_range": BARE | {"clip_sample_range": 1.5},
    # The pipeline's constructor changes both.
    "outdated": SD15 | {"steps_offset": 0, "clip_sample": True, "clip_sample_range": 0.5, "timestep_spacing": "leading"},
    "offset": SD15 | {"steps_offset": 7, "timestep_spacing": "leading"},
    "nulls": BARE | dict.fromkeys(
        ["clip_sample", "rescale_betas_zero_snr", "set_alpha_to_one", "skip_prk_steps", "steps_offset", "thresholding", "trained_betas"]
    ),
    "alpha_one": SD15 | {"set_alpha_to_one": True},
    "trained_betas": BARE | {
        "num_train_timesteps": 100, "trained_betas": [round(0.002 + 0.0009 * index, 6) for index in range(100)], "skip_prk_steps": True,
    },
    "sigma_range": SD15 | {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 10.0},
    "unused_sigma_range": SD15 | {"_class_name": "EulerDiscreteScheduler", "sigma_min": 0.1, "sigma_max": 10.0},
    "fixed_large": BARE | {"_class_name": "DDPMScheduler", "variance_type": "fixed_large", "clip_sample": True},
    "learned_range": BARE | {"_class_name": "DDPMScheduler", "variance_type": "learned_range"},
    "thresholding": BARE | {
        "_class_name": "DDIMScheduler", "thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 1.5,
    },
    # Without effect: the last step is of order 1 anyway, and the rest is for other settings.
    "without_effect": SD15 | {
        "dynamic_thresholding_ratio": 0.5, "euler_at_final": True, "flow_shift": 3.0, "lower_order_final": False, "sample_max_value": 3.0,
        "time_shift_type": "linear", "timestep_type": "continuous", "use_dynamic_shifting": True,
    },
    "distilled": BARE | {"_class_name": "LCMScheduler", "original_inference_steps": 30, "timestep_scaling": 0.01, "clip_sample": False},
}
# A file's settings that Easel refuses, because it does not have them, or diffusers refuses them, or they paint nothing.
REFUSED = {
    "DEISMultistepScheduler": {"dpmsolver++": "algorithm_type"},
    "learned_range": {"dpmsolver++": "variance_type"},
    "thresholding": dict.fromkeys(["dpmsolver++", "ddim", "unipc", "lcm"], "thresholding"),
    "without_effect": {"unipc": "lower_order_final"},
    "DPMSolverSinglestepScheduler": {"unipc": "lower_order_final"},
}
PREDICTIONS = ["epsilon", "v_prediction"]
STEPS = [1, 2, 7, 20, 50]
LCM_STEPS = [1, 2, 4, 7, 8, 20, 50]
FILE_STEPS = [5]
SHAPE = (1, 4, 4, 4)
# Of the CPU's generator, which draws the first sample and then every noise of a stochastic scheduler.
SEED = 0


def make(folder: Path) -> None:
    tensors = {"noise": torch.randn(SHAPE, generator=torch.Generator("cpu").manual_seed(SEED))}
    files = {}
    for prediction in PREDICTIONS:
        for variant, fields in VARIANTS.items():
            # An epsilon says nothing where the noise is all there is.
            if variant == "zero_snr" and prediction == "epsilon":
                continue
            file = f"{prediction}/{variant}"
            files[file] = json.dumps(SD15 | {"prediction_type": prediction} | fields)
            for name, scheduler_class in SCHEDULERS.items():
                if variant != "karras" or set(fields) <= known_by(scheduler_class):
                    tensors |= runs(name, file, files[file], LCM_STEPS if name == "lcm" else STEPS)
    for title, text in file_texts().items():
        files[f"epsilon/{title}"] = text
        for name in SCHEDULERS:
            if name not in REFUSED.get(title, {}):
                tensors |= runs(name, f"epsilon/{title}", text, FILE_STEPS)
    about = made_with("torch", "diffusers")
    constructors = {name: {"class": known.__name__, "fields": constructor(known)} for name, known in SCHEDULERS.items()}
    refused = {f"epsilon/{title}": fields for title, fields in REFUSED.items()}
    page = {"made_with": about, "constructors": constructors, "files": files, "refused": refused}
    (folder / "schedulers.json").write_text(json.dumps(page, indent=1) + "\n")
    save_file(tensors, folder / "schedulers.safetensors", metadata(made_with=about))


def known_by(scheduler_class: type) -> set[str]:
    """The settings that a scheduler has."""
    return set(constructor(scheduler_class))


def constructor(scheduler_class: type) -> dict[str, object]:
    """The fields of a scheduler's constructor with their defaults. Minus infinity, which JSON does not have, is null."""
    fields = dict(inspect.signature(scheduler_class.__init__).parameters)
    fields.pop("self")
    return {name: None if field.default == -math.inf else field.default for name, field in fields.items()}


def file_texts() -> dict[str, str]:
    """The files by name, as their writers write them."""
    texts = {title: json.dumps(fields) for title, fields in FILES.items()}
    for name in WRITERS:
        writer = getattr(diffusers, name)(**BETAS)
        texts[name] = writer.to_json_string()
    return texts


def runs(name: str, file: str, text: str, steps: list[int]) -> dict[str, torch.Tensor]:
    """The runs of one scheduler from one file with each number of steps."""
    tensors = {}
    for count in steps:
        for part, tensor in run(SCHEDULERS[name], text, count).items():
            tensors[f"{name}/{file}/{count}/{part}"] = tensor
    return tensors


def run(scheduler_class: type, text: str, steps: int) -> dict[str, torch.Tensor]:
    scheduler = scheduler_class.from_config(in_pipeline(text))
    scheduler.set_timesteps(steps)
    generator = torch.Generator("cpu").manual_seed(SEED)
    sample = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    draws = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    trajectory = []
    for step, timestep in enumerate(scheduler.timesteps):
        output = model(scheduler.scale_model_input(sample, timestep), step)
        sample = scheduler.step(output, timestep, sample, **draws).prev_sample
        trajectory.append(sample)
    assert sample.isfinite().all(), f"{scheduler_class.__name__} paints nothing from {text}"
    init = torch.as_tensor(scheduler.init_noise_sigma, dtype=torch.float64)
    return {
        "timesteps": scheduler.timesteps.to(torch.float64),
        "init_noise_sigma": init.reshape(1),
        # The start is noise times init_noise_sigma; what follows each step is stored.
        "trajectory": torch.stack(trajectory).reshape(len(trajectory), -1).to(torch.float32),
    }


def in_pipeline(text: str) -> dict:
    """The config as a pipeline holds it: read from a file by the class that the file names, and changed by the pipeline's constructor."""
    parts = dict.fromkeys(["vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor"])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "scheduler_config.json").write_text(text)
        scheduler = getattr(diffusers, json.loads(text)["_class_name"]).from_pretrained(folder)
    pipeline = diffusers.StableDiffusionPipeline(**parts, scheduler=scheduler, requires_safety_checker=False)
    return pipeline.scheduler.config


def model(scaled: torch.Tensor, step: int) -> torch.Tensor:
    """Stands in for the UNet: depends on what it sees, and a test can compute it exactly."""
    wave = [math.sin(0.37 * index + step) for index in range(scaled.numel())]
    return 0.1 * scaled + torch.tensor(wave, dtype=torch.float64).to(torch.float32).reshape(scaled.shape)
