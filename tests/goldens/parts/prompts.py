"""Embeddings of prompts with weights: transformers' hidden states, weighted as AUTOMATIC1111's web UI documents it.

What each prompt means is written down here by hand: the test compares its own reading of the brackets with it.

And what Python takes for the number of a weight: the web UI finds it with a regular expression and gives it to `float`.
"""

import json
import platform
import re
import tempfile
import unicodedata
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

# A colon, a sign, digits and points, and the bracket: what a weight looks like in the web UI.
WEIGHT = re.compile(r":\s*([+-]?[.\d]+)\s*\)")
# What stands between the colon and the bracket.
NUMBERS = ["1.3", "１.３", "１３", "٣", "1٣.१", "-２", "+.５", "５.", ".5", "5.", "+5", "𝟙.𝟛", "၁.๓", "꘡", "0", "-0", "00012.5"]
NUMBERS += [" 1.3 ", "\t1.3\n", "\u30001.3\u00a0", "\x1c1.3\x1f", "\x851.3", "\u200b1.3", "1 .3", "+ 1", "\u20281.3\u205f"]
NUMBERS += ["1_3", "1e1", "１ｅ１", "inf", "nan", "-inf", "infinity", "0x10", "1,3", "１，３", "１．３", "½", "²", "①", "一", "Ⅷ", "", " ", "x"]
NUMBERS += ["1.2.3", ".", "-.", "..", "+-1", "--1", "１.２.３", "9" * 400, "0." + "0" * 400 + "1", "1.00000000000000000000000000001"]


def weights() -> list[tuple[str, float | str | None]]:
    """Each text with its number, null if it is no weight, or "error" if it is a weight without a number that a float can hold."""
    digits = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Nd"]
    return [(text, number(text)) for text in [*NUMBERS, *(f"1.{digit}" for digit in digits)]]


def number(text: str) -> float | str | None:
    if not (found := WEIGHT.match(f":{text})")):
        return None
    try:
        value = float(found.group(1))
    except ValueError:
        return "error"
    return value if abs(value) < float("inf") else "error"


def write_weights(folder: Path) -> None:
    about = {"python": platform.python_version(), "unicode": unicodedata.unidata_version}
    lines = ",\n".join(json.dumps(case) for case in weights())
    (folder / "prompt-weights.json").write_text(f'{{"made_with": {json.dumps(about)},\n"weights": [\n{lines}\n]}}\n')


@torch.no_grad()
def make(folder: Path) -> None:
    write_weights(folder)
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
