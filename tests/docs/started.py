"""What a test gives to the programs that it starts: the words in its source, and in what it calls, in Rust or Python.

A word counts when it stands as a text of its own in a function that the test reaches by names; comments do not count.
"""

import ast
import functools
import re
from dataclasses import dataclass, field
from pathlib import Path

import pages

RUST = ("tests/cases", "tests/src")
COMMENT_OR_TEXT = re.compile(
    r"""//[^\n]*|/\*.*?\*/|b?r(#*)"(?P<raw>.*?)"\1|b?"(?P<text>(?:\\.|[^"\\])*)"|'(?:\\.[^']*|[^'\\])'""", re.DOTALL
)
FUNCTION = re.compile(r"((?:#\[[^\]]*\]\s*)*)(?:pub(?:\([^)]*\))?\s+)?(?:const\s+)?(?:async\s+)?fn\s+(\w+)")
CONSTANT = re.compile(r"(?:const|static)\s+(\w+)\s*:[^;=]*=([^;]*);")
USE = re.compile(r"\buse\s[^;]*;|\b(?:crate|e2e|super|self)::\w+")


@dataclass
class Part:
    """A function, a class or a constant: the names and the texts in it."""

    names: set = field(default_factory=set)
    texts: set = field(default_factory=set)
    is_test: bool = False

    def add(self, other):
        """Takes another of the same name in: which of them is meant, only a compiler knows."""
        self.names |= other.names
        self.texts |= other.texts
        self.is_test |= other.is_test


@dataclass
class Source:
    """A file: its parts by name, and the files whose parts it may name."""

    parts: dict = field(default_factory=dict)
    others: set = field(default_factory=set)

    def put(self, name, part):
        """Adds a part."""
        self.parts.setdefault(name, Part()).add(part)


def end_of_body(code, start):
    """The end of the first block in braces, or of a declaration without one."""
    depth = 0
    for at in range(start, len(code)):
        depth += {"{": 1, "}": -1}.get(code[at], 0)
        if code[at] in "};" and depth == 0:
            return at + 1
    return len(code)


def rust(path):
    """A file of Rust."""
    whole, source = path.read_text(), Source()
    texts = [(each.start(), each["raw"] or each["text"] or "") for each in COMMENT_OR_TEXT.finditer(whole)]
    texts = [(start, text) for start, text in texts if text]
    code = COMMENT_OR_TEXT.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), whole)

    def part(start, end, is_test=False):
        inside = {text for at, text in texts if start <= at < end}
        return Part(set(re.findall(r"\w+", code[start:end])), inside, is_test)

    for found in FUNCTION.finditer(code):
        is_test = bool(re.search(r"#\[(tokio::)?test\b", found[1]))
        source.put(found[2], part(found.end(), end_of_body(code, found.end()), is_test))
    for found in CONSTANT.finditer(code):
        source.put(found[1], part(*found.span(2)))
    named = set(re.findall(r"\w+", " ".join(found[0] for found in USE.finditer(code))))
    folders = [path.parent, path.with_suffix(""), *(pages.ROOT / folder for folder in RUST)]
    candidates = {folder / name for folder in folders for name in (*(f"{each}.rs" for each in named), *named)}
    source.others = {each for each in candidates if each.suffix == ".rs" and each.is_file()}
    source.others |= {each / "mod.rs" for each in candidates if (each / "mod.rs").is_file()}
    return source


def python(path):
    """A file of Python."""
    source, module = Source(), ast.parse(path.read_text())

    def part(node, is_test=False):
        inside = list(ast.walk(node))
        names = {each.id for each in inside if isinstance(each, ast.Name)}
        names |= {each.attr for each in inside if isinstance(each, ast.Attribute)}
        documentation = {ast.get_docstring(each, clean=False) for each in inside if isinstance(each, ast.FunctionDef)}
        texts = {each.value for each in inside if isinstance(each, ast.Constant) and isinstance(each.value, str)}
        return Part(names, texts - documentation, is_test)

    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef):
            source.put(node.name, part(node, node.name.startswith("test_")))
        elif isinstance(node, ast.ClassDef):
            source.put(node.name, part(node))
        elif isinstance(node, ast.Assign):
            for target in (each for each in node.targets if isinstance(each, ast.Name)):
                source.put(target.id, part(node.value))
        elif isinstance(node, ast.Import | ast.ImportFrom):
            named = [node.module] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            source.others |= {file for each in named if (file := path.parent / f"{each}.py").is_file()}
    return source


@functools.cache
def source(path):
    """A file, read once."""
    return rust(path) if path.suffix == ".rs" else python(path)


@functools.cache
def texts(file, test):
    """Every text in a test and in what it reaches. Of a path the last part counts as well."""
    first = source(pages.ROOT / file)
    if not first.parts.get(test, Part()).is_test:
        raise LookupError(f"{file} has no test {test}")
    found, seen, open_ = set(), set(), [(pages.ROOT / file, test)]
    while open_:
        path, name = at = open_.pop()
        if at in seen:
            continue
        seen.add(at)
        part = source(path).parts[name]
        found |= part.texts
        for each in (path, *source(path).others):
            open_ += [(each, name) for name in part.names & source(each).parts.keys()]
    return found | {Path(text).name for text in found if len(text) < 200}
