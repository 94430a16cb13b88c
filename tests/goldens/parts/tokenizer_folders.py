"""What transformers makes of prompts with tokenizer folders of every form: today's, with tokenizer.json, and the older ones, with
tokens beside the vocabulary in each of the files that may hold them.

The vocabulary and the merges are CLIP's in all of them, so they are not kept: the Rust test puts them where `null` stands, and writes
vocab.json and merges.txt for the folders that say so.
"""

import json
import tempfile
from pathlib import Path

from tokenizers import AddedToken
from transformers import CLIPTokenizer

from . import made_with
from .tokenizer import LENGTH, vocabulary

TEXTS = [
    "a cat", "A <cat-toy> on a shelf", "a <CAT-TOY>, two <cat-toy><cat-toy>s", "wow! a cat! !!!", "", "<|endoftext|>", "a <|STARTOFTEXT|> b",
    "a <|EndOfText|>b", "a  <left>  b", "a  <right>  b", "a  <both>  b", "<one> x<one>y <one>!", "<RAW> <raw> a<RAW>b", "<special> a <SPECIAL>",
    "<first> <second> <third>", "<pad> <mask>", "cat</w> ing", "<cat-toy> " * 80, "CAFÉ <É> <é>",
]
# The settings of the repository of Stable Diffusion 1.5, saved by transformers 4.22.
OLD_TOKEN = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
START, END = "<|startoftext|>", "<|endoftext|>"
OLD_SPECIAL = {
    "bos_token": {"content": START, **OLD_TOKEN}, "eos_token": {"content": END, **OLD_TOKEN}, "pad_token": END,
    "unk_token": {"content": END, **OLD_TOKEN},
}
OLD_CONFIG = {
    "add_prefix_space": False, "bos_token": {"__type": "AddedToken", "content": START, **OLD_TOKEN}, "do_lower_case": True,
    "eos_token": {"__type": "AddedToken", "content": END, **OLD_TOKEN}, "errors": "replace", "model_max_length": LENGTH,
    "name_or_path": "openai/clip-vit-large-patch14", "pad_token": END, "special_tokens_map_file": "./special_tokens_map.json",
    "tokenizer_class": "CLIPTokenizer", "unk_token": {"__type": "AddedToken", "content": END, **OLD_TOKEN},
}
PLAIN = {"model_max_length": LENGTH, "bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END, "tokenizer_class": "CLIPTokenizer"}
FLAGGED = [
    AddedToken("<left>", lstrip=True), AddedToken("<right>", rstrip=True), AddedToken("<both>", lstrip=True, rstrip=True),
    AddedToken("<one>", single_word=True), AddedToken("<RAW>", normalized=False), AddedToken("<special>", special=True), AddedToken("<É>"),
]


def decoder(**tokens: dict) -> dict:
    """`added_tokens_decoder` as transformers 4.34 and later write it, the special tokens first."""
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    start = {"49406": {"content": START, **special, "normalized": True}, "49407": {"content": END, **special}}
    return {**start, **{number.removeprefix("id"): token for number, token in tokens.items()}}


def folders() -> dict[str, dict[str, dict]]:
    """The JSON files of each folder that transformers does not write any more. All have vocab.json and merges.txt."""
    toy = {"content": "<cat-toy>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": False}
    return {
        "old": {"tokenizer_config.json": OLD_CONFIG, "special_tokens_map.json": OLD_SPECIAL},
        "old, without a map": {"tokenizer_config.json": OLD_CONFIG},
        "no settings": {"tokenizer_config.json": {}},
        "added_tokens.json": {
            "tokenizer_config.json": OLD_CONFIG, "special_tokens_map.json": OLD_SPECIAL, "added_tokens.json": {"<cat-toy>": 49408},
        },
        "added_tokens.json, several and not in order": {
            "tokenizer_config.json": PLAIN, "added_tokens.json": {"<third>": 49410, "<first>": 49408, "<second>": 49409, END: 49407},
        },
        "pad token in special_tokens_map.json": {
            "tokenizer_config.json": OLD_CONFIG, "special_tokens_map.json": {**OLD_SPECIAL, "pad_token": "!"},
        },
        "pad token in tokenizer_config.json": {"tokenizer_config.json": {**PLAIN, "pad_token": "!"}},
        "pad token beside the vocabulary": {"tokenizer_config.json": {**PLAIN, "pad_token": "<pad>", "mask_token": "<mask>"}},
        "pad token with flags": {
            "tokenizer_config.json": PLAIN,
            "special_tokens_map.json": {"pad_token": {"content": "<both>", **OLD_TOKEN, "lstrip": True, "rstrip": True}},
        },
        "added_tokens_decoder": {
            "tokenizer_config.json": {**PLAIN, "added_tokens_decoder": decoder(id49408=toy)},
            # Neither is read beside added_tokens_decoder.
            "special_tokens_map.json": {**OLD_SPECIAL, "pad_token": "!"}, "added_tokens.json": {"<first>": 49408},
        },
        "added_tokens_decoder with flags": {
            "tokenizer_config.json": {
                **PLAIN,
                "added_tokens_decoder": decoder(**{
                    f"id{49408 + index}": {"content": token.content, "lstrip": token.lstrip, "normalized": token.normalized,
                                           "rstrip": token.rstrip, "single_word": token.single_word, "special": token.special}
                    for index, token in enumerate(FLAGGED)
                }),
            },
        },
        "additional_special_tokens": {
            "tokenizer_config.json": {**PLAIN, "additional_special_tokens": ["<first>", "<cat-toy>"]},
            "added_tokens.json": {"<cat-toy>": 49408},
        },
        "additional_special_tokens in the map": {
            "tokenizer_config.json": PLAIN, "special_tokens_map.json": {"additional_special_tokens": ["<second>", "<first>"]},
        },
        "additional_special_tokens in both": {
            "tokenizer_config.json": {**PLAIN, "additional_special_tokens": ["<first>"]},
            "special_tokens_map.json": {"additional_special_tokens": ["<second>"]},
        },
        "extra_special_tokens in both": {
            "tokenizer_config.json": {**PLAIN, "extra_special_tokens": ["<first>"]},
            "special_tokens_map.json": {"extra_special_tokens": ["<second>", "<first>"]}, "added_tokens.json": {"<second>": 49408},
        },
        "tokens of other names": {
            "tokenizer_config.json": {
                **PLAIN, "second_token": "<second>", "first_token": "<first>", "third_token": {"__type": "AddedToken", "content": "<third>", **OLD_TOKEN},
            },
        },
        "special tokens are split": {"tokenizer_config.json": {**PLAIN, "split_special_tokens": True, "additional_special_tokens": ["<first>"]}},
        "another start": {"tokenizer_config.json": {**PLAIN, "bos_token": END, "unk_token": "!"}},
    }


def make(folder: Path) -> None:
    merges = (folder / "clip" / "merges.txt").read_text()
    vocab = json.dumps(vocabulary(merges.split("\n")[1:-1]), ensure_ascii=False)
    entries = []
    for name, files in folders().items():
        with tempfile.TemporaryDirectory() as model:
            write_older(Path(model), vocab, merges, files)
            entries.append(entry(name, model, files, older=True))
    for name, tokens in {"new": [], "new, one token": ["<cat-toy>"], "new, with flags": FLAGGED}.items():
        with tempfile.TemporaryDirectory() as older, tempfile.TemporaryDirectory() as model:
            write_older(Path(older), vocab, merges, {"tokenizer_config.json": PLAIN})
            tokenizer = CLIPTokenizer.from_pretrained(older)
            tokenizer.add_tokens(tokens)
            # So that the file has the sections `padding` and `truncation`, like most.
            tokenizer("a", padding="max_length", max_length=LENGTH, truncation=True)
            tokenizer.save_pretrained(model)
            assert sorted(path.name for path in Path(model).iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
            files = {path.name: json.loads(path.read_text()) for path in Path(model).iterdir()}
            entries.append(entry(name, model, files, older=False))
            if len(tokens) == 1:
                # With both forms and all files, tokenizer.json has the last word.
                more = {"added_tokens.json": {"<first>": 49408, "<second>": 49409}, "special_tokens_map.json": {**OLD_SPECIAL, "pad_token": "!"}}
                write_older(Path(model), vocab, merges, more)
                entries.append(entry("both forms", model, {**files, **more}, older=True))
                added = {**files["tokenizer_config.json"], "added_tokens_decoder": decoder()}
                (Path(model) / "tokenizer_config.json").write_text(json.dumps(added))
                entries.append(entry("both forms, added_tokens_decoder", model, {**files, **more, "tokenizer_config.json": added}, older=True))
    text = ",\n".join(json.dumps(entry) for entry in entries)
    versions = json.dumps(made_with("transformers", "tokenizers"))
    texts = json.dumps(TEXTS)
    (folder / "tokenizer-folders.json").write_text(f'{{"made_with": {versions},\n"texts": {texts},\n"folders": [\n{text}\n]}}\n')


def write_older(model: Path, vocab: str, merges: str, files: dict[str, dict]) -> None:
    (model / "vocab.json").write_text(vocab)
    (model / "merges.txt").write_text(merges)
    for name, content in files.items():
        (model / name).write_text(json.dumps(content))


def entry(name: str, model: str, files: dict[str, dict], older: bool) -> dict:
    """Each text's ids, the padding at the end once: as StableDiffusionPipeline calls the tokenizer."""
    tokenizer = CLIPTokenizer.from_pretrained(model, model_max_length=LENGTH)
    ids = tokenizer(TEXTS, padding="max_length", max_length=LENGTH, truncation=True).input_ids
    for row in ids:
        assert len(row) == LENGTH
        while len(row) > 2 and row[-1] == row[-2] == tokenizer.pad_token_id:
            row.pop()
    files = json.loads(json.dumps(files))
    if "tokenizer.json" in files:
        files["tokenizer.json"]["model"].update(vocab=None, merges=None)
    return {"name": name, "older": older, "files": files, "tokens": len(tokenizer), "pad": tokenizer.pad_token_id, "ids": ids}
