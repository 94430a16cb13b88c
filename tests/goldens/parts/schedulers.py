"""Timesteps, noise levels and whole trajectories of diffusers' schedulers, built from SD1.5's config as its pipeline does."""

import inspect
import json
import math
import tempfile
from pathlib import Path

import diffusers
import torch
from safetensors.torch import save_file

from . import made_with, metadata

SD15 = {
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SCHEDULERS = {
    "dpmsolver++": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "ddim": diffusers.DDIMScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "lcm": diffusers.LCMScheduler,
}
# What the file says beside SD1.5's own fields. "default" names no spacing; each scheduler then takes its own.
VARIANTS = {
    "default": {},
    "leading": {"timestep_spacing": "leading"},
    "trailing": {"timestep_spacing": "trailing"},
    "zero_snr": {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    "karras": {"use_karras_sigmas": True},
    "clipped": {"clip_sample": True, "clip_sample_range": 1.5, "set_alpha_to_one": True},
}
PREDICTIONS = ["epsilon", "v_prediction"]
STEPS = [1, 2, 7, 20, 50]
LCM_STEPS = [1, 2, 4, 7, 8, 20, 50]
SHAPE = (1, 4, 4, 4)
# Of the CPU's generator, which draws the first sample and then every noise of a stochastic scheduler.
SEED = 0


def make(folder: Path) -> None:
    tensors = {"noise": torch.randn(SHAPE, generator=torch.Generator("cpu").manual_seed(SEED))}
    for name, scheduler_class in SCHEDULERS.items():
        known = known_by(scheduler_class)
        for variant, fields in VARIANTS.items():
            if not set(fields) <= known:
                continue
            for prediction in PREDICTIONS:
                # An epsilon says nothing where the noise is all there is.
                if variant == "zero_snr" and prediction == "epsilon":
                    continue
                for steps in LCM_STEPS if name == "lcm" else STEPS:
                    config = SD15 | {"prediction_type": prediction} | fields
                    for part, tensor in run(scheduler_class, config, steps).items():
                        tensors[f"{name}/{prediction}/{variant}/{steps}/{part}"] = tensor
    about = metadata(made_with=made_with("torch", "diffusers"))
    save_file(tensors, folder / "schedulers.safetensors", about)


def known_by(scheduler_class: type) -> set[str]:
    """The settings that a scheduler has."""
    return set(inspect.signature(scheduler_class.__init__).parameters)


def run(scheduler_class: type, config: dict, steps: int) -> dict[str, torch.Tensor]:
    scheduler = scheduler_class.from_config(loaded(config))
    scheduler.set_timesteps(steps)
    generator = torch.Generator("cpu").manual_seed(SEED)
    sample = torch.randn(SHAPE, generator=generator) * scheduler.init_noise_sigma
    draws = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    trajectory = []
    for step, timestep in enumerate(scheduler.timesteps):
        output = model(scheduler.scale_model_input(sample, timestep), step)
        sample = scheduler.step(output, timestep, sample, **draws).prev_sample
        trajectory.append(sample)
    init = torch.as_tensor(scheduler.init_noise_sigma, dtype=torch.float64)
    return {
        "timesteps": scheduler.timesteps.to(torch.float64),
        "init_noise_sigma": init.reshape(1),
        # The start is noise times init_noise_sigma; what follows each step is stored.
        "trajectory": torch.stack(trajectory).reshape(steps, -1).to(torch.float32),
    }


def loaded(config: dict) -> dict:
    """The config as a pipeline holds it: read from a file by the class that the file names, its defaults marked as such."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "scheduler_config.json").write_text(json.dumps(config))
        return diffusers.PNDMScheduler.from_pretrained(folder).config


def model(scaled: torch.Tensor, step: int) -> torch.Tensor:
    """Stands in for the UNet: depends on what it sees, and a test can compute it exactly."""
    wave = [math.sin(0.37 * index + step) for index in range(scaled.numel())]
    return 0.1 * scaled + torch.tensor(wave, dtype=torch.float64).to(torch.float32).reshape(scaled.shape)
