#!/usr/bin/env python3
"""Breaks the engine one way after the other, in a copy, and prints which golden tests turn red.

    tests/goldens/mutations.py [--target DIR] [--tests WORD ...] [WORD ...]

Run by hand: it builds everything once, then each mutation takes as long as the tests. With words, only mutations whose names
have one of them; with --tests, only tests whose names have one of those. All mutations are in one build, each an
`if` that a number in the environment decides. A mutation that no longer applies is an error, and so is one that nothing catches.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENGINE = "handler/diffusion/src"
# Decides at run time, so that one build has them all.
SWITCH = """
pub(crate) fn mutated(number: usize) -> bool {
    std::env::var("EASEL_MUTATION").is_ok_and(|chosen| chosen == number.to_string())
}
"""
# What is wrong, the file under ENGINE, an expression in it, and what stands there instead.
MUTATIONS = [
    ("dpmsolver++: ratio of step lengths upside down", "schedulers/dpm_solver.rs", "0.5 * drift * (1.0 / r)", "0.5 * drift * r"),
    ("dpmsolver++: last step of second order", "schedulers/dpm_solver.rs", "step > 0 && step + 1 < self.levels.timesteps.len()", "step > 0"),
    ("dpmsolver++: last but one step of first order", "schedulers/dpm_solver.rs", "step + 1 < self.levels.timesteps.len()", "step + 2 < self.levels.timesteps.len()"),
    ("euler: first noise too strong", "schedulers/noise_schedule.rs", "self.sigmas.iter().copied().fold(0.0, f32::max)", "self.sigmas.iter().copied().fold(0.0, f32::max) * 1.02"),
    ("euler_ancestral: too little noise removed", "schedulers/euler_ancestral.rs", "(to.powi(2) - up.powi(2)).max(0.0).sqrt()", "to"),
    ("ddim: last step to a clean picture", "schedulers/ddim.rs", "config.set_alpha_to_one.unwrap_or(true)", "true"),
    ("unipc: corrector of first order", "schedulers/unipc.rs", "(second - before * first) / (1.0 - before)", "0.5"),
    ("lcm: the same noise at every step", "schedulers/lcm.rs", "noise.draw_like(sample)?", "noise.clone().draw_like(sample)?"),
    ("timesteps: leading instead of linspace", "schedulers/noise_schedule.rs", "self.timestep_spacing.unwrap_or(default)", "self.timestep_spacing.unwrap_or(TimestepSpacing::Leading)"),
    ("guidance: on top of the wrong half", "pipeline/networks.rs", "&halves[0] + ((&halves[1] - &halves[0])? * scale)?", "&halves[1] + ((&halves[1] - &halves[0])? * scale)?"),
    ("negative prompt dropped", "pipeline.rs", "&request.negative_prompt", '""'),
    ("seed: high bits mixed in", "noise/mt19937.rs", "vec![seed as u32; SIZE]", "vec![(seed ^ (seed >> 32)) as u32; SIZE]"),
    ("second image from the first one's noise", "pipeline.rs", "noise.draw((images, channels, request.height / factor, request.width / factor), &Device::Cpu)?",
     "Tensor::cat(&vec![noise.draw((1, channels, request.height / factor, request.width / factor), &Device::Cpu)?; images], 0)?"),
    ("noise of the other generator", "pipeline.rs", "Noise::cpu(request.seed)", "Noise::cuda(request.seed, threads)"),
    ("height and width swapped", "pipeline.rs", "(images, channels, request.height / factor, request.width / factor)", "(images, channels, request.width / factor, request.height / factor)"),
    ("attention: half the heads", "models/unet.rs", "config.heads(level)", "config.heads(level) / 2"),
    ("attention: pieces rounded down", "ops/cpu/attention.rs", "tokens.div_ceil(at_once)", "(tokens / at_once).max(1)"),
    ("VAE: scaling factor off by 2 %", "pipeline/networks.rs", "(latents / self.model.vae_config.scaling_factor)?", "(latents / (self.model.vae_config.scaling_factor * 1.02))?"),
    ("norms: epsilon ten times as large", "ops/cpu/norm.rs", "(squares / count + eps)", "(squares / count + 10.0 * eps)"),
    ("LoRA: scale dropped", "lora/merge.rs", "change.contribution(&lora.matrices, &base_f32, *scale, dora)?", "change.contribution(&lora.matrices, &base_f32, 1.0, dora)?"),
    ("LoRA: alpha / rank dropped", "lora/layer.rs", "self.scale(&change, alpha, settings)", "1.0"),
    ("LoRA: text encoder left out", "lora/merge.rs", "overlays.text_encoder.insert(name, tensor)", "None"),
]


def copy(source, mutated):
    """The tree as it stands, without what git ignores, with the mutated files. What is the same stays, so that cargo does not build it again."""
    listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
    for old in source.rglob("*"):
        if old.is_file() and str(old.relative_to(source)) not in names:
            old.unlink()
    for name in names:
        path, content = source / name, mutated[name].encode() if name in mutated else (ROOT / name).read_bytes()
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def mutate():
    """The engine's files with all mutations, each switched off, by name."""
    texts = {file: (ROOT / ENGINE / file).read_text() for _, file, _, _ in MUTATIONS}
    stale = [f"{name}: {file} has not exactly one {old!r}" for name, file, old, _ in MUTATIONS if texts[file].count(old) != 1]
    if stale:
        sys.exit("no longer applies\n" + "\n".join(stale))
    for number, (_, file, old, new) in enumerate(MUTATIONS):
        # The last one: an earlier mutation of the same place has its own new text before the old.
        before, _, after = texts[file].rpartition(old)
        texts[file] = f"{before}(if crate::mutated({number}) {{ {new} }} else {{ {old} }}){after}"
    texts["lib.rs"] = (ROOT / ENGINE / "lib.rs").read_text() + SWITCH
    return {f"{ENGINE}/{file}": text for file, text in texts.items()}


def build(source, target):
    """The golden tests of all crates."""
    command = ["cargo", "test", "--workspace", "--test", "goldens", "--no-run", "--message-format", "json-render-diagnostics"]
    # Its warnings are about the parentheses around mutations.
    built = subprocess.run(command, cwd=source, env=os.environ | {"CARGO_TARGET_DIR": str(target)}, capture_output=True, text=True, check=False)
    if built.returncode:
        sys.exit(f"the mutated copy does not compile\n{built.stderr}")
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    return [message["executable"] for message in messages if message.get("executable") and message["target"]["name"] == "goldens"]


def red(programs, number, tests):
    """The tests that fail with a mutation, those of pictures with their PSNR."""
    failed = []
    for program in programs:
        environment = os.environ | {"EASEL_MUTATION": str(number)}
        ran = subprocess.run([program, "--show-output", *tests], env=environment, capture_output=True, text=True, check=False)
        names = re.findall(r"^test (\S+) \.\.\. FAILED$", ran.stdout, re.MULTILINE)
        if ran.returncode and not names:
            sys.exit(f"{program} ended with {ran.returncode}:\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
        found = dict(re.findall(r"^([a-z-]+): PSNR (\S+) dB$", ran.stdout, re.MULTILINE))
        likeness = {name.replace("-", "_"): value for name, value in found.items()}
        failed += [f"{name} {likeness.get(name.partition('::')[2], '')}".strip() for name in names]
    return failed


def main():
    """All of them; ends with 1 if one was not caught."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=Path, default=ROOT / "target" / "mutations", help="where the copy is built")
    parser.add_argument("--tests", nargs="+", default=[], metavar="WORD")
    parser.add_argument("words", nargs="*", metavar="WORD")
    options = parser.parse_args()
    target = options.target.resolve()
    source = target / "source"
    copy(source, mutate())
    programs = build(source, target)
    if failed := red(programs, "none", options.tests):
        sys.exit(f"red without a mutation: {', '.join(failed)}")
    print("| mutation | pictures that catch it, with their PSNR in dB | other golden tests |\n| --- | --- | --- |", flush=True)
    missed = 0
    for number, (name, *_) in enumerate(MUTATIONS):
        if options.words and not any(word in name for word in options.words):
            continue
        failed = red(programs, number, options.tests)
        pictures = sorted(test.removeprefix("pictures::") for test in failed if test.startswith("pictures::"))
        others = sorted(test for test in failed if not test.startswith("pictures::"))
        print(f"| {name} | {', '.join(pictures) or 'none'} | {', '.join(others) or 'none'} |", flush=True)
        missed += not failed
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
