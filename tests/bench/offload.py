#!/usr/bin/env python3
"""Measures Easel's ways to paint where the GPU's memory is short, beside those of diffusers, and prints two tables.

    tests/bench/offload.py HANDLER [--model DIR] [--free 3.0 2.0 1.5 1.0 0.7] [--sizes 1:1 2:2 1:2] [--repeat 3] [--no-diffusers]
        [--safety-checker DIR]

First table: a small program fills the card by plain allocations until so many GiB are free beside a CUDA context, and `--offload auto`
paints: which way was chosen, how long, and whether the picture is the same; with `--safety-checker`, also where the checker looks at
pictures of that model, and how long it does. Second table: every way on a card with room, with the most
memory that was taken, and diffusers' three ways on the same weights. Memory is what the driver says is missing, sampled every
millisecond: the CUDA context and the libraries' kernels count.

Needs torch with CUDA and pillow; diffusers, transformers and accelerate for the weights and the comparison. Weights are random, of
Stable Diffusion 1.5's own shapes, f16, as in on_gpu.py; or `--model` names a folder with others.
"""

import argparse
import ctypes
import hashlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import on_gpu  # noqa: E402

GIB, MIB = 1 << 30, 1 << 20
WAYS = ["never", "model", "sequential"]
THEIRS = ["as it comes", "model offload", "sequential offload"]


class Driver:
    """The few calls of libcuda that are needed, in a process without torch."""

    def __init__(self):
        self.cuda = ctypes.CDLL("libcuda.so.1")
        self.call("cuInit", 0)
        device, context = ctypes.c_int(), ctypes.c_void_p()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
        self.context = context
        self.enter()

    def call(self, name, *arguments):
        code = getattr(self.cuda, name)(*arguments)
        if code:
            raise RuntimeError(f"{name}: {code}")

    def enter(self):
        self.call("cuCtxSetCurrent", self.context)

    def free(self) -> int:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value

    def take(self, size: int) -> None:
        address = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))


def context() -> None:
    """A process that holds a CUDA context until its input ends."""
    Driver()
    print("ready", flush=True)
    sys.stdin.read()


def fill(left: float) -> None:
    """Leaves so many GiB free beside a CUDA context; 0 takes nothing. Then answers each line with the least that was free since the last."""
    driver = Driver()
    before = driver.free()
    other = subprocess.Popen([sys.executable, __file__, "--context"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    other.stdout.readline()
    size = before - driver.free()
    other.stdin.close()
    other.wait()
    while left and driver.free() - size > left * GIB:
        driver.take(max(MIB, min(GIB, int(driver.free() - size - left * GIB))))
    least = [driver.free()]

    def watch():
        driver.enter()
        while True:
            least[0] = min(least[0], driver.free())
            time.sleep(0.001)

    threading.Thread(target=watch, daemon=True).start()
    print(json.dumps({"context": size, "free": driver.free()}), flush=True)
    for _ in sys.stdin:
        answer, least[0] = least[0], driver.free()
        print(json.dumps({"least": answer, "free": least[0]}), flush=True)


class Card:
    """The card, filled by another process, which also watches how much of it is taken."""

    def __init__(self, left: float = 0):
        words = [sys.executable, __file__, "--fill", str(left)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.said = json.loads(self.process.stdout.readline())

    def ask(self) -> dict:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def taken(self, work):
        """The result of `work`, and how many MiB it took at most beside a CUDA context."""
        before = self.ask()["free"]
        result = work()
        return result, (before - self.ask()["least"] - self.said["context"]) / MIB

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait()


class Easel:
    def __init__(self, options):
        self.options = options

    def run(self, *words) -> str:
        done = subprocess.run([str(word) for word in (self.options.handler, *words)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}")
        return done.stdout

    def model(self, way: str):
        return ["--model", self.options.model, "--device", "cuda", "--dtype", "f16", "--offload", way, "--prompt", on_gpu.PROMPT]

    def bench(self, way: str, ratio: str) -> dict:
        words = ["--aspect-ratio", ratio, "--repeat", self.options.repeat, "--json"]
        return json.loads(self.run("bench", "picture", *self.model(way), *words))

    def look(self, way: str, checker: Path) -> dict:
        return json.loads(self.run("bench", "safety", *self.model(way)[:-2], "--safety-checker", checker, "--repeat", self.options.repeat, "--json"))

    def picture(self, way: str, ratio: str) -> str:
        """The hash of the pixels."""
        from PIL import Image

        with tempfile.TemporaryDirectory() as folder:
            self.run("generate", *self.model(way), "--aspect-ratio", ratio, "--out", f"{folder}/picture.png")
            return hashlib.sha256(Image.open(f"{folder}/picture.png").convert("RGB").tobytes()).hexdigest()[:12]


def painted(ours: dict) -> float:
    """Milliseconds from the text to the pixels."""
    return sum(ours[key] for key in ("lora_ms", "denoise_ms", "decode_ms"))


def copied(ours: dict) -> str:
    """What a step copies, and at what rate it would if it did nothing else."""
    streamed, steps = ours["streamed_mib"] or 0, ours["steps"]
    rate = streamed * MIB * steps / ours["denoise_ms"] * 1e3 / 1e9
    return f"{streamed} MiB, {rate:.1f} GB/s" if streamed else "-"


def filled(easel: Easel, options) -> list[str]:
    rows, expected = [], easel.picture("never", "1:1")
    for left in options.free:
        with Card(left) as card:
            free = f"{left} GiB"
            try:
                (ours, peak), picture = card.taken(lambda: easel.bench("auto", "1:1")), easel.picture("auto", "1:1")
                same = "yes" if picture == expected else f"no: {picture}, not {expected}"
                look = ""
                if options.safety_checker:
                    checked = easel.look("auto", options.safety_checker)
                    look = f" {checked['checker']}, {checked['check_ms']:.1f} ms |"
                rows.append(f"| {free} | {ours['offload']} | {painted(ours):.0f} ms | {ours['gpu_memory_mib']} MiB | {peak:.0f} MiB | {copied(ours)} | {ours['lent_mib']} MiB | {same} |{look}")
            except RuntimeError as error:
                rows.append(f"| {free} | {error} | | | | | | |")
            print(rows[-1], flush=True)
    return rows


def ways(easel: Easel, options) -> list[str]:
    rows, firsts = [], {}
    for ratio in options.sizes:
        name = "x".join(map(str, on_gpu.SIZES[ratio]))
        expected, first = None, None
        for way in WAYS:
            with Card() as card:
                try:
                    (ours, peak), picture = card.taken(lambda way=way: easel.bench(way, ratio)), easel.picture(way, ratio)
                except RuntimeError as error:
                    rows.append(f"| {name} | Easel, {way} | {error} | | | | | |")
                    print(rows[-1], flush=True)
                    continue
            expected, first = expected or picture, first or painted(ours)
            same = "yes" if picture == expected else f"no: {picture}, not {expected}"
            rows.append(f"| {name} | Easel, {way} | {painted(ours):.0f} ms | {painted(ours) / first:.2f} | {ours['gpu_memory_mib']} MiB | {peak:.0f} MiB | {copied(ours)} | {same} |")
            print(rows[-1], flush=True)
        firsts[ratio] = first
    if options.diffusers:
        words = [sys.executable, __file__, "--diffusers", *options.sizes, "--model", options.model]
        with Card() as card:
            other = subprocess.Popen([str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for ratio in options.sizes:
                for way in THEIRS:
                    def paint(other=other):
                        other.stdin.write("\n")
                        other.stdin.flush()
                        return json.loads(other.stdout.readline())

                    other.stdout.readline()
                    theirs, peak = card.taken(paint)
                    name, first = "x".join(map(str, on_gpu.SIZES[ratio])), firsts[ratio] or theirs["ms"]
                    rows.append(f"| {name} | diffusers, {way} | {theirs['ms']:.0f} ms | {theirs['ms'] / first:.2f} | {theirs['mib']:.0f} MiB | {peak + card.said['context'] / MIB:.0f} MiB | | |")
                    print(rows[-1], flush=True)
            other.wait()
    return rows


def diffusers(ratios: list[str], model: Path) -> None:
    """diffusers' ways at each size, in a process of its own. Before each it says that it is ready, and waits for a line."""
    import gc

    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    torch.zeros(1, device="cuda")
    for ratio in ratios:
        for way in THEIRS:
            print("ready", flush=True)
            sys.stdin.readline()
            pipe = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float16, safety_checker=None)
            pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
            pipe.set_progress_bar_config(disable=True)
            {"as it comes": lambda: pipe.to("cuda"), "model offload": pipe.enable_model_cpu_offload, "sequential offload": pipe.enable_sequential_cpu_offload}[way]()
            on_gpu.paint(pipe, on_gpu.SIZES[ratio])
            torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            on_gpu.paint(pipe, on_gpu.SIZES[ratio])
            took = (time.perf_counter() - start) * 1e3
            print(json.dumps({"ms": took, "mib": torch.cuda.max_memory_allocated() / MIB}), flush=True)
            pipe.remove_all_hooks()
            del pipe
            gc.collect()
            torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("handler", type=Path, nargs="?")
    parser.add_argument("--model", type=Path, default=Path(tempfile.gettempdir()) / "easel-sd15")
    parser.add_argument("--free", type=float, nargs="*", default=[3.0, 2.0, 1.5, 1.0, 0.7], metavar="GIB")
    parser.add_argument("--sizes", nargs="*", default=list(on_gpu.SIZES), choices=list(on_gpu.SIZES))
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--safety-checker", type=Path, metavar="DIR")
    parser.add_argument("--no-diffusers", dest="diffusers", action="store_const", const=None, default=[])
    parser.add_argument("--diffusers", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--fill", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--context", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.context:
        return context()
    if options.fill is not None:
        return fill(options.fill)
    if options.diffusers:
        return diffusers(options.diffusers, options.model)
    options.diffusers = options.diffusers is not None
    options.handler = options.handler.resolve()
    if not (options.model / "unet").exists():
        options.model.mkdir(parents=True, exist_ok=True)
        # In a process of its own, which leaves nothing on the card.
        code = "import sys, on_gpu; from pathlib import Path; on_gpu.make(Path(sys.argv[1]))"
        subprocess.run([sys.executable, "-c", code, options.model], check=True, cwd=HERE)
    easel = Easel(options)
    easel.bench("auto", "1:1")  # So that all find the files in the page cache.
    first, second = filled(easel, options), ways(easel, options)
    look = (" checker, a look |", " --- |") if options.safety_checker else ("", "")
    print("\n| free beside the context | way chosen | picture | arenas | most memory | copied a step | copied a picture | same picture |" + look[0])
    print("| --- | --- | --- | --- | --- | --- | --- | --- |" + look[1] + "\n" + "\n".join(first))
    print("\n| size | way | picture | ratio | arenas | most memory | copied a step | same picture |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |\n" + "\n".join(second))


if __name__ == "__main__":
    main()
