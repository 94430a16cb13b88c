"""Reads a Dockerfile as far as its checks need it: stages, what each runs, copies and starts. hadolint checks the syntax."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """One stage of a build."""

    name: str
    base: str
    # (word, rest) in order
    steps: list = field(default_factory=list)
    # without their flags
    run: list = field(default_factory=list)
    # (stage or None, path) to path
    copies: list = field(default_factory=list)
    environment: dict = field(default_factory=dict)
    ports: list = field(default_factory=list)
    user: str = ""
    entrypoint: list = field(default_factory=list)


def flags(rest):
    """The flags of an instruction by name, each with its value or "", and what follows them."""
    found = {}
    while flag := re.match(r"--([a-z]+)(?:=(\S+))?\s+", rest):
        found[flag[1]] = flag[2] or ""
        rest = rest[flag.end() :]
    return found, rest


def arguments(path):
    """The ARG lines before the first stage, by name."""
    head = re.split(r"^FROM ", Path(path).read_text(), maxsplit=1, flags=re.M)[0]
    return dict(re.findall(r"^ARG (\w+)=(\S+)$", head, flags=re.M))


def stages(path):
    """The stages by name; one that begins with another has what that sets."""
    text = re.sub(r"^\s*#.*\n", "", Path(path).read_text(), flags=re.M)
    found, stage = {}, None
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(name, base)
            if before := found.get(base):
                stage.environment, stage.ports = {**before.environment}, [*before.ports]
                stage.user, stage.entrypoint = before.user, before.entrypoint
            continue
        if stage and word:
            stage.steps.append((word, rest))
        if word == "RUN":
            stage.run.append(flags(rest)[1])
        elif word == "COPY":
            given, paths = flags(rest)
            path, target = paths.split()
            stage.copies.append(((given.get("from"), path), target))
        elif word == "ENV":
            stage.environment.update(pair.split("=", 1) for pair in rest.split())
        elif word == "EXPOSE":
            stage.ports.append(int(rest))
        elif word == "USER":
            stage.user = rest
        elif word == "ENTRYPOINT":
            stage.entrypoint = json.loads(rest)
    return found
