"""Timesteps, noise levels and whole trajectories of diffusers' schedulers, built from SD1.5's config as its pipeline does."""

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
}
# "default" is SD1.5's own file, which names no spacing; both schedulers then take linspace.
SPACINGS = ["default", "leading", "trailing"]
PREDICTIONS = ["epsilon", "v_prediction"]
STEPS = [1, 2, 7, 20, 50]
SHAPE = (1, 4, 4, 4)


def make(folder: Path) -> None:
    torch.manual_seed(0)
    noise = torch.randn(SHAPE)
    tensors = {"noise": noise}
    for name, scheduler_class in SCHEDULERS.items():
        for prediction in PREDICTIONS:
            for spacing in SPACINGS:
                config = SD15 | {"prediction_type": prediction}
                if spacing != "default":
                    config["timestep_spacing"] = spacing
                for steps in STEPS:
                    key = f"{name}/{prediction}/{spacing}/{steps}"
                    for part, tensor in run(scheduler_class, config, steps, noise).items():
                        tensors[f"{key}/{part}"] = tensor
    about = metadata(made_with=made_with("torch", "diffusers"))
    save_file(tensors, folder / "schedulers.safetensors", about)


def run(scheduler_class: type, config: dict, steps: int, noise: torch.Tensor) -> dict[str, torch.Tensor]:
    scheduler = scheduler_class.from_config(loaded(config))
    scheduler.set_timesteps(steps)
    sample = noise * scheduler.init_noise_sigma
    trajectory = [sample]
    for step, timestep in enumerate(scheduler.timesteps):
        output = model(scheduler.scale_model_input(sample, timestep), step)
        sample = scheduler.step(output, timestep, sample).prev_sample
        trajectory.append(sample)
    init = torch.as_tensor(scheduler.init_noise_sigma, dtype=torch.float64)
    return {
        "timesteps": scheduler.timesteps.to(torch.float64),
        "sigmas": scheduler.sigmas.to(torch.float64),
        "init_noise_sigma": init.reshape(1),
        # The start is noise times init_noise_sigma; what follows each step is stored.
        "trajectory": torch.stack(trajectory[1:]).reshape(steps, -1).to(torch.float32),
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
