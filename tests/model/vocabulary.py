"""Writes the tokenizer folder: the 49,408-token CLIP vocabulary, as openai/clip-vit-large-patch14 has it.

The merges come from the file bpe_simple_vocab_16e6.txt.gz of the PyPI package open_clip_torch (MIT).
Nothing is trained here and nothing is downloaded.

    python vocabulary.py OUT_DIR
"""

import gzip
import importlib.util
import json
import sys
from pathlib import Path

MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_SIZE = 49_408
# 256 bytes, the same 256 ending a word, and two special tokens are not merges.
MERGE_COUNT = VOCABULARY_SIZE - 2 * 256 - 2
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_alphabet() -> list[str]:
    """The printable stand-ins that byte-level BPE uses for the 256 bytes, in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(len(rest))]


def read_merges() -> list[str]:
    """The merges that CLIP uses: the first line is a header, and the file goes on after the last one."""
    package = Path(importlib.util.find_spec("open_clip").origin).parent
    lines = gzip.decompress((package / MERGES_FILE).read_bytes()).decode("utf-8").split("\n")
    return lines[1 : MERGE_COUNT + 1]


def write_tokenizer(out: Path) -> None:
    """Writes vocab.json, merges.txt and the two config files that Stable Diffusion 1.5 ships."""
    merges = read_merges()
    letters = byte_alphabet()
    tokens = letters + [letter + "</w>" for letter in letters] + [merge.replace(" ", "") for merge in merges]
    tokens += [START, END]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    assert len(vocabulary) == VOCABULARY_SIZE, len(vocabulary)

    out.mkdir(parents=True, exist_ok=True)
    (out / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (out / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")

    def special(content: str) -> dict:
        return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}

    config = {
        "add_prefix_space": False,
        "bos_token": {"__type": "AddedToken", **special(START)},
        "do_lower_case": True,
        "eos_token": {"__type": "AddedToken", **special(END)},
        "errors": "replace",
        "model_max_length": 77,
        "pad_token": END,
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": {"__type": "AddedToken", **special(END)},
    }
    specials = {"bos_token": special(START), "eos_token": special(END), "pad_token": END, "unk_token": special(END)}
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "special_tokens_map.json").write_text(json.dumps(specials, indent=2) + "\n")


if __name__ == "__main__":
    write_tokenizer(Path(sys.argv[1]))
