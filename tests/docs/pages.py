"""The pages as their readers see them: fenced blocks, code, links, headings."""

import functools
import os
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Made by builds, tests and Git; no part of what is checked in.
MADE = {".git", ".cache", "target", "target-cuda", "out", "__pycache__"}


@dataclass
class Block:
    """A fenced block."""

    language: str
    text: str


def name(page):
    """A page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page):
    """The fenced blocks of a page, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(language, text) for language, text in found]


def prose(page):
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """The anchors that GitHub gives a page's headings."""
    found = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        slug = base = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while slug in found:
            number += 1
            slug = f"{base}-{number}"
        found.add(slug)
    return found


def links(page):
    """Where a page's links and pictures lead, other pages of the web left out."""
    without_code = re.sub(r"`[^`\n]*`", "", prose(page))
    targets = re.findall(r"\]\(([^()\s]+)\)", without_code)
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


@functools.cache
def tree():
    """Every file and folder of the repository, as a path from its root."""
    found = []
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [each for each in folders if each not in MADE]
        found += [(Path(folder) / each).relative_to(ROOT).as_posix() for each in (*folders, *files)]
    return found


def lookup(path):
    """The files and folders that a page may mean by a path: from the root, or from any folder below it."""
    path = path.rstrip("/")
    return [each for each in tree() if each == path or each.endswith("/" + path)]
