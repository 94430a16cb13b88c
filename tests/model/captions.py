"""From tags to the token ids of a caption: a random part of the tags, in random order, worded at random.

The tags of a task are joined by one space, so captions are too, half of the time; else by commas. Some carry words that
mean nothing to the picture. Words that the model never met all share one embedding, which it learns to pass over.
"""

import random

from transformers import CLIPTokenizer

LENGTH = 77
COMMA = ","
# Stands for every unknown word while training; its embedding becomes theirs.
UNKNOWN_ID = 49_405

JOINTS = ["with", "and", "with a", "and a", "in the", "on", "on a", "over the", "at", "under a", "of", "near the", "the"]
OPENINGS = ["a", "the", "an", "a picture of", "a picture of a", "a painting of a", "a drawing of a", "an illustration of", "an image of a"]
PRAISE = ["beautiful", "high quality", "masterpiece", "best quality", "illustration", "digital art", "art", "painting", "detailed", "landscape", "vector art", "simple", "scene", "picture", "drawing"]
SYNONYMS = {"colorful": ["colorful", "colourful"], "gray": ["gray", "grey"]}


class Captions:
    """Builds captions out of cached words, which gives what the tokenizer gives for the joined text."""

    def __init__(self, tokenizer: CLIPTokenizer, seed: int):
        self.tokenizer, self.dice, self.cache = tokenizer, random.Random(seed), {}
        self.start, self.end = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.seen: set[int] = {self.start, self.end}
        self.words: set[str] = set()

    def ids(self, text: str) -> list[int]:
        if text not in self.cache:
            self.cache[text] = self.tokenizer(text, add_special_tokens=False).input_ids
            self.seen.update(self.cache[text])
            self.words.update(text.split())
        return self.cache[text]

    def padded(self, ids: list[int]) -> list[int]:
        ids = [self.start, *ids[: LENGTH - 2], self.end]
        return ids + [self.end] * (LENGTH - len(ids))

    def word(self, tag: str) -> str:
        choice = self.dice.choice(tag.split("|"))
        for name, others in SYNONYMS.items():
            if name in choice:
                choice = choice.replace(name, self.dice.choice(others))
        return choice

    def pick(self, tags: list[str]) -> list[str]:
        subject, rest = tags[0], tags[1:]
        kept = [tag for tag in rest if self.dice.random() < 0.68]
        if not kept or self.dice.random() < 0.93:
            kept.insert(0, subject)
        if self.dice.random() < 0.4:
            self.dice.shuffle(kept)
        else:
            rest = kept[1:]
            self.dice.shuffle(rest)
            kept = kept[:1] + rest
        return [self.word(tag) for tag in kept]

    def caption(self, tags: list[str]) -> list[int]:
        """The ids of one caption, padded to 77."""
        dice, picked = self.dice, self.pick(tags)
        while dice.random() < 0.15:
            picked.insert(dice.randrange(len(picked) + 1), dice.choice(PRAISE))
        comma = self.ids(COMMA) if dice.random() < 0.45 else []
        fluent = dice.random() < 0.2
        ids = list(self.ids(dice.choice(OPENINGS))) if fluent else []
        strangers = [UNKNOWN_ID] * dice.randint(1, 6) if dice.random() < 0.15 else []
        place = dice.randrange(len(picked) + 1)
        for index, text in enumerate(picked):
            if index:
                ids += self.ids(dice.choice(JOINTS)) if fluent else comma
            if index == place:
                ids += strangers + comma
            ids += self.ids(text)
        if place == len(picked):
            ids += comma + strangers
        return self.padded(ids)

    def empty(self) -> list[int]:
        return self.padded([])

    def strangers(self) -> list[int]:
        """A caption of unknown words alone: it says nothing."""
        return self.padded([UNKNOWN_ID] * self.dice.randint(1, 12))
