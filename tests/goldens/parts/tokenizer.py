"""CLIP's vocabulary, and what transformers' CLIPTokenizer makes of 200 strings as StableDiffusionPipeline calls it."""

import gzip
import json
import tempfile
from importlib.metadata import distribution
from pathlib import Path

from transformers import CLIPTokenizer

from . import made_with

LENGTH = 77
SPECIAL = ["<|startoftext|>", "<|endoftext|>"]


def make(folder: Path) -> None:
    merges = clip_merges()
    target = folder / "clip"
    target.mkdir(exist_ok=True)
    (target / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    with tempfile.TemporaryDirectory() as model:
        # The vocabulary follows from the merges, so only these are kept; the Rust test builds it the same way.
        (Path(model) / "vocab.json").write_text(json.dumps(vocabulary(merges), ensure_ascii=False))
        (Path(model) / "merges.txt").write_text((target / "merges.txt").read_text())
        tokenizer = CLIPTokenizer.from_pretrained(model, model_max_length=LENGTH)
        cases = [case(tokenizer, text) for text in strings()]
    lines = ",\n".join(json.dumps(case, ensure_ascii=True) for case in cases)
    versions = json.dumps(made_with("transformers", "tokenizers", "open_clip_torch"))
    (folder / "tokenizer.json").write_text(f'{{"made_with": {versions},\n"cases": [\n{lines}\n]}}\n')


def case(tokenizer: CLIPTokenizer, text: str) -> dict:
    """The ids up to and with the first padding token (which is also the end), and how many text tokens were cut off."""
    ids = tokenizer(text, padding="max_length", max_length=LENGTH, truncation=True).input_ids
    whole = tokenizer(text, padding="longest", truncation=False).input_ids
    assert len(ids) == LENGTH
    while len(ids) > 2 and ids[-1] == ids[-2] == tokenizer.pad_token_id:
        ids.pop()
    return {"text": text, "ids": ids, "truncated": max(0, len(whole) - LENGTH)}


def clip_merges() -> list[str]:
    """The merges that CLIP uses, from the list that open_clip ships. It is MIT-licensed, as CLIP is."""
    path = distribution("open_clip_torch").locate_file("open_clip/bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(Path(path).read_bytes()).decode().split("\n")
    return lines[1 : 49152 - 256 - 2 + 1]


def vocabulary(merges: list[str]) -> dict[str, int]:
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(byte) for byte in plain] + [chr(256 + index) for index in range(256 - len(plain))]
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(merge.split()) for merge in merges] + SPECIAL
    return {token: index for index, token in enumerate(tokens)}


def strings() -> list[str]:
    prompts = ["", " ", "  \t\n ", "a", "A", "cat", "a cat", "a  cat", " a cat ", "a\ncat\r\nsits", "a\u00a0cat", "a\u3000cat"]
    prompts += [
        "watercolor portrait, soft light, masterpiece",
        "a photo of an astronaut riding a horse on mars",
        "red circle on blue background halftone",
        "highly detailed, sharp focus, 8k, trending on artstation",
        "masterpiece, best quality, 1girl, solo, (smile:1.2), [hat], {glow}",
        "<lora:style_10:0.8> castle", "((very)) [[nested]] brackets", "50% off! $9.99 #1 @home",
        "don't can't won't it's I'm we've they'll he'd you're", "DON'T CAN'T IT'S I'M", "rock'n'roll o'clock 'quoted'", "'", "''", "'s", "s'",
        "1234567890", "12:30 3.14 1,000,000 1e-5", "v1.5 sd-v1-5.safetensors", "C++ C# F# .NET node.js",
        "http://example.com/a?b=c&d=e#f", "user@example.com", "snake_case camelCase kebab-case PascalCase", "a_b__c___d",
        "!!!", "???", "...", "…", "-- — – -", "a--b", "a...b", "!@#$%^&*()_+-=[]{}|;':\",./<>?", "~`", "\\ / \\\\ //", "`code` *bold* _it_", "\"double\" “curly” ‘single’",
        "café", "cafe\u0301", "naïve façade", "ÀÉÎÕÜ àéîõü", "Ångström", "A\u030angstro\u0308m", "straße STRASSE ẞ", "İstanbul ıspanak", "Œuvre œuvre Æther", "ñandú piñata", "Łódź Žižek čeština", "Đorđe Ćosić", "crème brûlée déjà vu",
        "ﬁne ﬂow ﬀ", "ｆｕｌｌｗｉｄｔｈ １２３", "①②③ ½ ¼ ²³", "№ ™ © ® ℃", "Ⅷ ⅷ", "ℵ ∑ ∫ √ ∞ ≠ ≤", "α β γ Δ Ω ς Σ", "Ελληνικά ζωγραφική", "Привет, мир! Картина маслом", "ЁЛКА ёлка", "Українська їжак", "български", "српски ђак",
        "王羲之 书法", "山水画，水墨风格。", "日本語のプロンプト", "アニメ カタカナ ﾊﾝｶｸ", "桜の下の猫、油絵", "한국어 프롬프트", "\u1112\u1161\u11ab\u1100\u1173\u11af", "수채화 고양이", "แมวนั่ง", "बिल्ली चित्र", "হাতি", "தமிழ்", "ქართული", "Հայերեն", "አማርኛ",
        "קוף חתול", "قطة جميلة", "رَسْم", "فارسی می‌خواهم", "اردو", "שָׁלוֹם",
        "😀", "😀😀😀", "a 🐱 cat", "👨‍👩‍👧‍👦", "🏳️‍🌈 flag", "🇰🇷🇯🇵", "👍🏽 ok", "☀️ sun ☀ sun", "❤️ love", "1️⃣2️⃣", "🦀rust🦀", "™️", "🫠🫡", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𠮷野家", "🤷🏻‍♀️", "cat😺dog🐶",
        "zero\u200bwidth", "soft\u00adhyphen", "\ufeffbom", "a\u200db", "a\u2028b\u2029c", "tab\there", "bell\u0007", "null\u0000char", "del\u007f", "esc\u001b[0m", "\u0085next", "\ufffd replacement", "\ue000 private",
        "<|startoftext|>", "<|endoftext|>", "a<|endoftext|>b", "<|startoftext|>cat<|endoftext|>", "<|ENDOFTEXT|>", "< | endoftext | >", "<end_of_text>", "</w>", "cat</w>", "Ġcat",
        "&amp; &lt;b&gt; &#39;", "<b>bold</b>", "{\"json\": [1, 2]}", "line1\\nline2", "%20 %E2%82%AC", "€ £ ¥ ₩ ₿", "°C µm Å", "H₂O CO₂ x² n₁",
        "antidisestablishmentarianism", "supercalifragilisticexpialidocious", "Donaudampfschifffahrtsgesellschaft", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "zzzzqqqqxxxxjjjj", "asdfghjklqwertyuiop", "abc123def456", "3d 4k 8k 16:9 f/1.8 35mm", "x1y2z3",
        "by greg rutkowski and alphonse mucha", "in the style of Vincent van Gogh", "Studio Ghibli, Makoto Shinkai", "ArtStation HQ", "unreal engine 5, octane render", "lowres, bad anatomy, bad hands, text, error", "(worst quality, low quality:1.4), EasyNegative",
        "BREAK", "AND", "prompt one AND prompt two", "cat:1.5 dog:-0.5", "a | b | c", "--ar 16:9 --v 5", "\u201chello\u201d", "it\u2019s", "won\u2019t \u2019s", "M\u00fcller\u2019s",
        "a " * 40, "cat " * 74, "cat " * 75, "cat " * 76, "cat " * 200, "word, " * 37, "word, " * 38, "猫" * 40, "😀" * 30, "x" * 500, "supercalifragilisticexpialidocious " * 20, "1" * 100, "!" * 300, "a\u0301" * 90,
        "Κατ ИЛИ cat 猫 고양이 قط 🐱", "mixed123数字abc", "MiXeD CaSe TeXt", "ALL CAPS PROMPT", "ǅ ǆ Ǆ", "ſ long s", "K kelvin", "ŉ", "ΌΣΟΣ ὈΔΥΣΣΕΎΣ", "ậ ặ ễ ộ Việt Nam", "Tōkyō Ōsaka", "Māori kōwhai",
        "red\u2009circle", "100% wool", "semi;colon:dash", "Ⓐ Ⓑ", "ㄱㄴㄷ", "oil on canvas — 1889",
    ]
    assert len(set(prompts)) == len(prompts) == 200
    return prompts
