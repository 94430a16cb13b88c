#!/usr/bin/env python3
"""Measures Easel beside diffusers on one GPU, on the same weights in the same run, and prints a table with ratios.

    tests/bench/on_gpu.py HANDLER [--rows start cold lora parity products 1:1 2:2 1:2 4 8] [--eager] [--model DIR] [--repeat 5]

Needs torch with CUDA, diffusers and transformers. The weights are random, of Stable Diffusion 1.5's own shapes, and are made in DIR
first; a size is a row, and so is a number of pictures of 512x512 at once; `parity` paints with the trained tests/model/easel-tiny. f16, 50 steps of DPM-Solver++, guidance 7.5, from the prompt's text
to pixels. diffusers runs channels_last with fused projections and torch.compile(mode="reduce-overhead"), which takes a minute for
each size; `--eager` adds it as it comes. Times are medians.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
TINY = HERE.parent / "model" / "easel-tiny"
PROMPT, STEPS, GUIDANCE = "lighthouse sunset sea", 50, 7.5
SIZES = {"1:1": (512, 512), "2:2": (768, 768), "1:2": (512, 1024)}
PARTS = ["text_encoder/model.safetensors", "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"]
PARITY = ["lighthouse sunset sea", "cat garden flowers"]


def make(folder: Path) -> None:
    """A model of SD1.5's shapes with random weights, and a LoRA of rank 16 on every attention projection."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from safetensors.torch import save_file
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    with torch.device("cuda"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
        vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, **kinds)
        shape = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "projection_dim": 768}
        text = CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_act="quick_gelu", max_position_embeddings=77, **shape))
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(TINY / name, folder / name)
    index = json.loads((TINY / "model_index.json").read_text())
    # The checker of easel-tiny is not copied.
    index.update(dict.fromkeys(("safety_checker", "feature_extractor"), [None, None]))
    (folder / "model_index.json").write_text(json.dumps(index))
    for name, part in {"unet": unet, "vae": vae, "text_encoder": text}.items():
        part.half().save_pretrained(folder / name)
    lora = {}
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            lora[f"unet.{name}.lora_A.weight"] = torch.randn(16, module.in_features) * 0.01
            lora[f"unet.{name}.lora_B.weight"] = torch.randn(module.out_features, 16) * 0.01
    save_file(lora, folder / "lora.safetensors")


def pipeline(folder: Path, dtype, compiled: bool = False):
    import torch
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, safety_checker=None).to("cuda")
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    if compiled:
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
        pipe.fuse_qkv_projections()
        pipe.unet = torch.compile(pipe.unet, mode="reduce-overhead", fullgraph=True)
    return pipe


def paint(pipe, size, images=1, prompt=PROMPT):
    import torch

    generator = torch.Generator("cuda").manual_seed(42)
    options = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "num_images_per_prompt": images, "generator": generator}
    return pipe(prompt, width=size[0], height=size[1], **options).images


def clock(work, repeat: int) -> float:
    """Median milliseconds, after one run that is not counted."""
    work()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


class Bench:
    def __init__(self, options):
        self.options, self.rows = options, []

    def handler(self, *words, **kwargs):
        return subprocess.run([str(word) for word in (self.options.handler, *words)], check=True, capture_output=True, text=True, **kwargs).stdout

    def bench(self, what: str, *words) -> dict:
        model = ["--model", self.options.model, "--device", "cuda", "--dtype", "f16", "--repeat", self.options.repeat, "--json"]
        return json.loads(self.handler("bench", what, *model, *words))

    def row(self, name: str, theirs: float, ours: float, unit: str, must: str, aim: str) -> None:
        ratio = ours / theirs if theirs else float("nan")
        self.rows.append(f"| {name} | {theirs:.4g} {unit} | {ours:.4g} {unit} | {ratio:.2f} | {must} | {aim} |")
        print(self.rows[-1], flush=True)

    def speed(self, ratio: str, images: int = 1) -> None:
        import torch

        size = SIZES[ratio]
        ours = self.bench("picture", "--prompt", PROMPT, "--aspect-ratio", ratio, "--num-images", images)
        # From the text to pixels: without the file.
        mine = sum(ours[key] for key in ("lora_ms", "denoise_ms", "decode_ms"))
        name = f"{size[0]}x{size[1]}" + (f", {images} at once" if images > 1 else "")
        if self.options.eager:
            pipe = pipeline(self.options.model, torch.float16)
            self.row(f"{name}, eager", clock(lambda: paint(pipe, size, images), self.options.repeat), mine, "ms", "0.3", "0.18")
            del pipe
        torch._dynamo.reset()
        pipe = pipeline(self.options.model, torch.float16, compiled=True)
        start = time.perf_counter()
        paint(pipe, size, images)
        print(f"compiled {name} in {time.perf_counter() - start:.0f} s", flush=True)
        torch.cuda.reset_peak_memory_stats()
        theirs = clock(lambda: paint(pipe, size, images), self.options.repeat)
        must, aim = ("1.0", "0.77") if images > 1 else ("1.0", "0.65" if ratio == "1:1" else "0.8")
        self.row(f"{name}, compiled", theirs, mine, "ms", must, aim)
        peak, plain = torch.cuda.max_memory_allocated() / 2**20, ratio == "1:1" and images == 1
        self.row(f"{name}, peak GPU memory", peak, ours["gpu_memory_mib"], "MiB", "3072 MiB" if plain else "", "2560 MiB" if plain else "")
        del pipe
        torch.cuda.empty_cache()

    def start(self, cold: bool = False):
        files = [self.options.model / part for part in PARTS]
        times, reads = [], []
        with tempfile.TemporaryDirectory() as folder:
            words = ["--model", self.options.model, "--device", "cuda", "--dtype", "f16", "--prompt", PROMPT, "--out", f"{folder}/picture.png"]
            for _ in range(self.options.repeat):
                if cold:
                    forget(files)
                    start = time.perf_counter()
                    subprocess.run(["sh", "-c", " ".join(f"dd if={file} of=/dev/null bs=4M status=none;" for file in files)], check=True)
                    reads.append((time.perf_counter() - start) * 1e3)
                    forget(files)
                else:
                    for file in files:
                        file.read_bytes()
                start = time.perf_counter()
                self.handler("generate", *words)
                times.append((time.perf_counter() - start) * 1e3)
        ours = statistics.median(times)
        if cold:
            self.row("start to first picture, cold disk, against dd", statistics.median(reads), ours, "ms", "1.5", "1.1")
        else:
            code = "import sys, torch; sys.path.insert(0, sys.argv[1]); import on_gpu; from pathlib import Path\n"
            code += "on_gpu.paint(on_gpu.pipeline(Path(sys.argv[2]), torch.float16), (512, 512))[0].save(sys.argv[3])"
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                subprocess.run([sys.executable, "-c", code, HERE, self.options.model, f"{folder}/picture.png"], check=True, capture_output=True)
                theirs = (time.perf_counter() - start) * 1e3
            self.row("start to first picture written", theirs, ours, "ms", "2500 ms", "1000 ms")

    def cold(self):
        self.start(cold=True)

    def lora(self):
        import torch

        file = self.options.model / "lora.safetensors"
        ours = self.bench("lora", "--lora", file)
        pipe = pipeline(self.options.model, torch.float16)
        times = []
        for index in range(self.options.repeat):
            torch.cuda.synchronize()
            start = time.perf_counter()
            pipe.load_lora_weights(file, adapter_name=f"style{index}")
            pipe.fuse_lora()
            torch.cuda.synchronize()
            times.append((time.perf_counter() - start) * 1e3)
            pipe.unfuse_lora()
            pipe.unload_lora_weights()
        self.row("LoRA read and swapped in", statistics.median(times), ours["read_ms"] + ours["swap_in_ms"], "ms", "100 ms", "20 ms")
        print(f"first swap in {ours['first_swap_in_ms']:.1f} ms, swap out {ours['swap_out_ms']:.1f} ms")

    def parity(self):
        import numpy as np
        import torch
        from PIL import Image

        def likeness(image, reference):
            a, b = (np.asarray(x, dtype=np.float64) for x in (image, reference))
            return 10 * np.log10(255**2 / max(np.mean((a - b) ** 2), 1e-10))

        full, half = pipeline(TINY, torch.float32), pipeline(TINY, torch.float16)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        theirs, ours = [], []
        for prompt in PARITY:
            for size in SIZES.values():
                reference = paint(full, size, prompt=prompt)[0]
                theirs.append(likeness(paint(half, size, prompt=prompt)[0], reference))
                ratio = next(name for name, pixels in SIZES.items() if pixels == size)
                with tempfile.TemporaryDirectory() as folder:
                    words = ["--model", TINY, "--device", "cuda", "--dtype", "f16", "--prompt", prompt, "--aspect-ratio", ratio]
                    self.handler("generate", *words, "--out", f"{folder}/picture.png")
                    ours.append(likeness(Image.open(f"{folder}/picture.png"), reference))
                print(f"{prompt} {ratio}: diffusers f16 {theirs[-1]:.1f} dB, easel f16 {ours[-1]:.1f} dB", flush=True)
        self.row("PSNR to diffusers f32, mean (higher is better)", np.mean(theirs), np.mean(ours), "dB", ">= 1.0", "")


    def products(self):
        """Each product and convolution of a step by itself: torch's, of cuBLASLt and cuDNN without what comes after them but a bias, and Easel's."""
        kinds = {"of the card": [], "of 8.0": ["--kernels-of", "8.0"]}
        ours = {name: json.loads(self.handler("bench", "products", "--json", "--repeat", self.options.repeat, *words)) for name, words in kinds.items()}
        sums, lines = [0.0] * 3, []
        for shape, older in zip(*(times["shapes"] for times in ours.values()), strict=True):
            times = [time_of_torch(shape), shape["us"], older["us"]]
            sums = [total + shape["count"] * time for total, time in zip(sums, times, strict=True)]
            name = f"{shape['kind']} {shape['rows']} {shape['inner']}-{shape['columns']}" + (" / 2" if shape["stride"] > 1 else "")
            lines.append(f"| {name} | {shape['count']} | " + " | ".join(f"{time:.1f}" for time in times) + f" | {times[1] / times[0]:.2f} |")
        lines.append("| a step | | " + " | ".join(f"{total:.0f}" for total in sums) + f" | {sums[1] / sums[0]:.2f} |")
        print("| shape | times | torch, us | Easel, us | Easel, kernels of 8.0, us | ratio |\n| --- | --- | --- | --- | --- | --- |")
        print("\n".join(lines), flush=True)


def time_of_torch(shape: dict, launches: int = 24, repeat: int = 9) -> float:
    """Microseconds of one launch, in a graph of many that take turns with weights."""
    import torch
    from torch.nn.functional import conv2d, linear

    half = {"device": "cuda", "dtype": torch.float16}
    rows, inner, columns = shape["rows"], shape["inner"], shape["columns"]
    is_conv = shape["kind"].startswith("conv")
    bias = torch.randn(columns, **half)
    if is_conv:
        side = rows * 2 if shape["kind"] == "conv doubled" else rows
        xs = torch.randn(2, inner, side, side, **half).to(memory_format=torch.channels_last)
        weights = [torch.randn(columns, inner, 3, 3, **half).mul_(0.01).to(memory_format=torch.channels_last) for _ in range(4)]
    else:
        xs = torch.randn(rows, inner, **half)
        weights = [torch.randn(columns, inner, **half).mul_(0.01) for _ in range(4)]

    def launch(weight):
        return conv2d(xs, weight, bias, shape["stride"], 1) if is_conv else linear(xs, weight, bias)

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream), torch.no_grad():
        for weight in weights:
            launch(weight)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for index in range(launches):
                launch(weights[index % len(weights)])
    times = []
    for _ in range(repeat):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / launches * 1e3)
    return statistics.median(times)


def forget(files) -> None:
    """Drops files from the page cache."""
    for file in files:
        handle = os.open(file, os.O_RDONLY)
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("handler", type=Path)
    parser.add_argument("--rows", nargs="+", default=["start", "cold", "lora", "parity", "products", *SIZES, "4", "8"])
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--model", type=Path, default=Path(tempfile.gettempdir()) / "easel-sd15")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    options.handler = options.handler.resolve()
    if not (options.model / "lora.safetensors").exists():
        options.model.mkdir(parents=True, exist_ok=True)
        make(options.model)
    bench = Bench(options)
    for row in options.rows:
        try:
            if row in SIZES:
                bench.speed(row)
            elif row.isdecimal():
                bench.speed("1:1", int(row))
            else:
                getattr(bench, row)()
        except subprocess.CalledProcessError as error:
            sys.exit(f"{row}: {error}\n{error.stderr}")
    import diffusers
    import torch

    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, diffusers {diffusers.__version__}, f16, {STEPS} steps, median of {options.repeat}")
    print("| what | diffusers | easel | ratio | must | aim |\n| --- | --- | --- | --- | --- | --- |")
    print("\n".join(bench.rows))


if __name__ == "__main__":
    main()
