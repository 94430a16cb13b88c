"""The texts of licences: those that crates and fonts bring, and where one brings none, that of its project or the standard text."""

import os
import re

import crates

NAME = re.compile(r"(licen[cs]e|copying|copyright|notice|patents|unlicen[cs]e)", re.IGNORECASE)
NO_TEXT = {".rs", ".py", ".c", ".h", ".json", ".toml", ".yml", ".yaml", ".html", ".sh"}
# Of what is in them nothing is compiled in.
LEFT_OUT = {"tests", "test", "examples", "benches", "target"}
# A shorter file only names the licence.
SHORTEST = 300
FONTS = crates.ROOT / "handler/fonts"


def files(folder):
    """The files with licences in a crate's folder, the nearest first: those of code that it has taken in are further down."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [each for each in folders if each not in LEFT_OUT and each[0] != "."]
        found += [f"{parent}/{name}" for name in names if NAME.match(name) and os.path.splitext(name)[1] not in NO_TEXT]
    paths = sorted((os.path.relpath(each, folder) for each in found), key=lambda each: (each.count("/"), each))
    return {each: read(f"{folder}/{each}") for each in paths}


def read(path):
    """A file's text with plain ends of lines."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return "\n".join(line.rstrip() for line in file.read().strip("\ufeff\n\r").splitlines())


def project(crate):
    """The repository of a crate without the part that names the crate itself."""
    return re.sub(r"(\.git|/tree/.*|/)$", "", crate.repository).lower()


def standard(crate):
    """A text for a crate of which there is none: what our own licence says, in the name of the crate's authors."""
    _, mit, apache = (each.strip("\n") for each in re.split(r"^=+$", read(crates.ROOT / "LICENSE"), flags=re.MULTILINE))
    words = re.split(r"[ ()]+", crate.licence)
    if "AND" in words or not {"Apache-2.0", "MIT"} & {*words}:
        raise SystemExit(f"sbom: {crate} ({crate.licence}) brings no text of its licence, and neither does its project")
    if "Apache-2.0" in words:
        return {"the standard text of Apache-2.0": apache}
    owner = f"Copyright (c) the authors of {crate.name}: {', '.join(crate.authors) or crate.repository}"
    return {"the standard text of MIT": re.sub(r"^Copyright .*$", lambda _: owner, mit, flags=re.MULTILINE)}


def texts(crate, others):
    """The texts that a crate is under, by where they come from."""
    own = files(crate.folder)
    if any("/" not in file and len(text) >= SHORTEST for file, text in own.items()):
        return own
    for other in others:
        near = {} if other.ours or not crate.repository or project(other) != project(crate) else files(other.folder)
        near = {f"{file} of {other}": text for file, text in near.items() if "/" not in file and len(text) >= SHORTEST}
        if near:
            return near | own
    return standard(crate) | own


def fonts():
    """Each font with the name of its licence and the text: that whose name begins as the font's does."""
    found = {}
    for licence in sorted(FONTS.glob("LICENSE-*.txt")):
        text = read(licence)
        name = "OFL-1.1" if "SIL OPEN FONT LICENSE" in text.upper() else "Apache-2.0"
        for font in sorted(FONTS.glob(licence.stem.removeprefix("LICENSE-") + "*.[ot]tf")):
            found[font] = (name, licence.name, text)
    missing = {*FONTS.glob("*.[ot]tf")} - {*found}
    if missing:
        raise SystemExit(f"sbom: no LICENSE-*.txt for {', '.join(sorted(each.name for each in missing))}")
    return found


def book(linked):
    """All licences in one text: first what is under which, then each text once with those that it is of."""
    others = sorted(crates.resolved().values(), key=lambda each: each.key)
    by_text, lines = {}, []
    for crate in sorted((each for each in linked.values() if not each.ours), key=lambda each: each.key):
        lines.append(f"{str(crate):48} {crate.licence}")
        for file, text in texts(crate, others).items():
            by_text.setdefault(text, []).append(f"{crate}: {file}")
    for font, (name, file, text) in fonts().items():
        lines.append(f"{font.name:48} {name}")
        by_text.setdefault(text, []).append(f"{font.name}: {file}")
    rule = "=" * 100
    parts = [f"{rule}\n{chr(10).join(of)}\n{'-' * 100}\n\n{text}\n" for text, of in by_text.items()]
    begin = "What is compiled into handler and relay beside their own code and Rust's library (COPYRIGHT-rust.html).\n"
    return "\n".join([begin, *lines, "", *parts])
