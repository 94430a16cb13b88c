"""Embeddings of prompts with weights: transformers' hidden states, weighted as AUTOMATIC1111's web UI documents it.

What each prompt means is written down here by hand: the test compares its own reading of the brackets with it.
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from . import made_with, metadata, toy_model

# The toy model's vocabulary has no merges: one token for each letter, so that 75 letters fill a prompt.
CASES = [
    ("a plain prompt", [("a plain prompt", 1.0)]),
    ("an (important) word", [("an ", 1.0), ("important", 1.1), (" word", 1.0)]),
    ("red [grey] (blue:1.5)", [("red ", 1.0), ("grey", 1 / 1.1), (" ", 1.0), ("blue", 1.5)]),
    (r"((a) b \(c\), (d:0.3)", [("a", 1.1 * 1.1), (" b (c), ", 1.1), ("d", 0.3 * 1.1)]),
    ("not (this:-1) or (that:0)", [("not ", 1.0), ("this", -1.0), (" or ", 1.0), ("that", 0.0)]),
    ("long " * 12 + "(" + "tail " * 12 + ":1.4)", [("long " * 12, 1.0), ("tail " * 12, 1.4)]),
]


@torch.no_grad()
def make(folder: Path) -> None:
    tensors = {}
    with tempfile.TemporaryDirectory() as model:
        toy_model(model, "tiny")
        tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
        encoder = CLIPTextModel.from_pretrained(model, subfolder="text_encoder")
        for index, (_, fragments) in enumerate(CASES):
            tensors[str(index)] = embed(tokenizer, encoder, fragments)
    about = metadata(made_with=made_with("torch", "transformers"), prompts=[prompt for prompt, _ in CASES])
    save_file(tensors, folder / "prompts-tiny.safetensors", about)


def embed(tokenizer: CLIPTokenizer, encoder: CLIPTextModel, fragments: list[tuple[str, float]]) -> torch.Tensor:
    text = [
        (token, weight)
        for fragment, weight in fragments
        for token in tokenizer(fragment, add_special_tokens=False).input_ids
    ]
    text = [(tokenizer.bos_token_id, 1.0), *text[:75], (tokenizer.eos_token_id, 1.0)]
    text += [(tokenizer.pad_token_id, 1.0)] * (77 - len(text))
    ids, weights = zip(*text)
    hidden = encoder(torch.tensor([ids])).last_hidden_state
    weighted = hidden * torch.tensor(weights)[None, :, None]
    return weighted * (hidden.mean() / weighted.mean())
