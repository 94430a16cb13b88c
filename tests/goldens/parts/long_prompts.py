"""Prompts of more than 77 tokens as compel embeds them in chunks, with weights in them, and layers of the text encoder that are skipped.

compel has no weights in AUTOMATIC1111's syntax. So each chunk of a prompt with weights is embedded by transformers, and weighted as the
web UI documents it: it restores the mean chunk by chunk.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from compel import Compel, DiffusersTextualInversionManager
from compel.embeddings_provider import SplitLongTextMode
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from . import made_with, metadata, toy_model

# The toy model's vocabulary has no merges: one token for each letter, so that 75 letters fill a chunk.
LINE = "a red circle, two blue squares on a green ground by night "
NEGATIVE = "blurry grey "
# Prompt and negative prompt.
PROMPTS = [
    ("short", "grey"), (LINE * 2, "grey"), (LINE * 2, ""), ("short", NEGATIVE * 12), (LINE * 7, NEGATIVE * 8), ("x" * 75, ""), ("x" * 76, ""),
    ("x" * 600, "y" * 151),
]
# Fragments with their weights: the first has a weight on both sides of the border between two chunks.
WEIGHTED = [
    [("long " * 12, 1.0), ("tail " * 12, 1.4), (" end", 1.0)],
    [("x" * 80, 1.0), ("y" * 40, 0.5), ("z" * 80, 1.1)],
]
# A textual inversion of three vectors, two of which are in the first chunk.
INVERSION, INVERTED = "several", "x" * 73 + " <waves> here"
# Skipped layers of twelve.
SKIPS = [0, 1, 2, 5, 11]
LAYERS = 12
# Numbers of each token's embedding that are kept.
CHANNELS = 4
SIDE, STEPS, SEED, GUIDANCE = 64, 8, 77, 7.5


@torch.no_grad()
def make(folder: Path) -> None:
    torch.set_num_threads(1)
    tensors = {}
    with tempfile.TemporaryDirectory() as model:
        toy_model(model, "tiny")
        pipeline = load(model)
        for index, (prompt, negative) in enumerate(PROMPTS):
            tensors[f"prompt/{index}"] = few(both(pipeline, prompt, negative))
        for index, fragments in enumerate(WEIGHTED):
            tensors[f"weighted/{index}"] = few(weighted(pipeline, fragments))
        negative, positive = both(pipeline, *PROMPTS[4]).chunk(2)
        tensors |= {f"long/{name}": tensor for name, tensor in paint(pipeline, prompt_embeds=positive, negative_prompt_embeds=negative).items()}
        pipeline.load_textual_inversion(load_file(folder / "inversions" / f"{INVERSION}.safetensors"))
        tensors["inversion"] = few(both(pipeline, INVERTED, "grey"))
    settings = {"text_encoder/config.json/num_hidden_layers": LAYERS}
    with tempfile.TemporaryDirectory() as model:
        toy_model(model, "tiny", settings)
        pipeline = load(model)
        for skip in SKIPS:
            positive, negative = pipeline.encode_prompt(LINE, "cpu", 1, True, NEGATIVE, clip_skip=skip or None)
            tensors[f"skip/{skip}"] = few(torch.cat([negative, positive]))
        tensors |= {f"skipped/{name}": tensor for name, tensor in paint(pipeline, prompt=LINE, negative_prompt=NEGATIVE, clip_skip=2).items()}
    inputs = {"prompts": PROMPTS, "weighted": [a1111(fragments) for fragments in WEIGHTED], "inversion": INVERSION, "inverted": INVERTED}
    inputs |= {"skips": SKIPS, "settings": settings, "skipped": [LINE, NEGATIVE], "channels": CHANNELS}
    inputs |= {"side": SIDE, "steps": STEPS, "seed": SEED, "guidance_scale": GUIDANCE}
    about = metadata(made_with=made_with("torch", "diffusers", "transformers", "compel"), inputs=inputs)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "long-prompts-tiny.safetensors", about)


def load(model: str) -> StableDiffusionPipeline:
    # diffusers 0.42.1 looks for the final norm where transformers 5 has it no more.
    if not hasattr(CLIPTextModel, "text_model"):
        CLIPTextModel.text_model = property(lambda encoder: encoder)
    pipeline = StableDiffusionPipeline.from_pretrained(model, dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def few(embeddings: torch.Tensor) -> torch.Tensor:
    return embeddings[:, :, :CHANNELS]


def both(pipeline: StableDiffusionPipeline, prompt: str, negative: str) -> torch.Tensor:
    """The negative prompt and the prompt as the UNet reads them with guidance."""
    compel = Compel(
        tokenizer=pipeline.tokenizer, text_encoder=pipeline.text_encoder, truncate_long_prompts=False,
        # After 75 tokens, wherever that is.
        split_long_text_mode=SplitLongTextMode.BRUTAL,
        textual_inversion_manager=DiffusersTextualInversionManager(pipeline),
    )
    padded = compel.pad_conditioning_tensors_to_same_length([compel(negative), compel(prompt)])
    return torch.cat(padded)


def weighted(pipeline: StableDiffusionPipeline, fragments: list[tuple[str, float]]) -> torch.Tensor:
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    text = [(token, weight) for part, weight in fragments for token in tokenizer(part, add_special_tokens=False).input_ids]
    chunks = []
    for start in range(0, len(text), 75):
        chunk = [(tokenizer.bos_token_id, 1.0), *text[start:start + 75], (tokenizer.eos_token_id, 1.0)]
        chunk += [(tokenizer.pad_token_id, 1.0)] * (77 - len(chunk))
        ids, weights = zip(*chunk)
        hidden = encoder(torch.tensor([ids])).last_hidden_state
        scaled = hidden * torch.tensor(weights)[None, :, None]
        chunks.append(scaled * (hidden.mean() / scaled.mean()))
    return torch.cat(chunks, dim=1)


def a1111(fragments: list[tuple[str, float]]) -> str:
    return "".join(text if weight == 1.0 else f"({text}:{weight})" for text, weight in fragments)


def paint(pipeline: StableDiffusionPipeline, **prompts: object) -> dict[str, torch.Tensor]:
    """The final latents and the picture before JPEG."""
    arguments = {"guidance_scale": GUIDANCE, "num_inference_steps": STEPS, "height": SIDE, "width": SIDE, **prompts}
    latents = pipeline(**arguments, generator=torch.Generator("cpu").manual_seed(SEED), output_type="latent").images
    picture = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    picture = pipeline.image_processor.postprocess(picture, output_type="pil")[0]
    return {"latents": latents, "picture": torch.from_numpy(np.array(picture))}
