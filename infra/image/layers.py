"""Builds stages of the Dockerfile without an engine: each RUN and COPY is a layer of an overlay, kept under a key of
what it is made from, and taken again while that is the same. An engine's cache decides the same way.

Needs root, in a mount namespace of its own. Refuses instructions that the Dockerfile does not use. A RUN line whose
packages Debian does not have is named and left out.
"""

import re
import shutil
import subprocess
import time
from dataclasses import dataclass, replace

import bases
import chroot
import dockerfile
import tree

STORE = chroot.CACHE / "layers"


@dataclass(frozen=True)
class Image:
    """Layers, lowest first; what they are made from; and what the next instruction finds set."""

    layers: tuple
    key: str
    environment: dict
    folder: str = "/"


class Builder:
    """Builds the stages of a Dockerfile from a folder."""

    def __init__(self, path, context):
        self.stages, self.arguments = dockerfile.stages(path), dockerfile.arguments(path)
        self.context, self.built = context, {}

    def build(self, name):
        """The image of a stage."""
        if name not in self.built:
            stage = self.stages[name]
            image = self.build(stage.base) if stage.base in self.stages else self.stand_in(stage.base[2:-1])
            print(f"\n-- {name}, from {stage.base}", flush=True)
            for word, rest in stage.steps:
                image = self.step(image, word, rest)
            self.built[name] = image
        return self.built[name]

    def step(self, image, word, rest):
        if word == "ENV":
            pairs = (pair.split("=", 1) for pair in rest.split())
            values = {key: value.replace("${PATH}", image.environment["PATH"]) for key, value in pairs}
            return replace(image, environment=image.environment | values)
        if word == "WORKDIR":
            return replace(image, folder=rest)
        if word == "RUN":
            key = tree.digest(image.key, rest, image.folder, *sorted(image.environment.items()))
            return layer(image, key, f"RUN {rest}", lambda root, log: run(root, log, image, rest))
        if word == "COPY":
            *origin, path, target = rest.split()
            layers = self.build(origin[0].removeprefix("--from=")).layers if origin else ()
            with tree.view(layers) as source:
                source = source / path.lstrip("/") if source else self.context / path
                key = tree.digest(image.key, image.folder, target, tree.content(source))
                return layer(image, key, f"COPY {rest}", lambda root, _: copy(root, image.folder, source, target))
        if word in ("USER", "EXPOSE", "ENTRYPOINT"):
            return image
        raise SystemExit(f"{word} is not an instruction that is known here")

    def stand_in(self, argument):
        """What the first layer is where no registry is asked."""
        folder, environment = bases.STAND_INS[argument](self.arguments[argument])
        print(f"\n{folder.name} stands in for {argument}: {chroot.size(folder):.0f} MiB", flush=True)
        return Image((folder,), tree.digest(folder.name), environment)


def layer(image, key, instruction, make):
    """The image with one layer more, which is made if it is not there."""
    folder = STORE / key
    began = time.monotonic()
    kept = (folder / "said").exists()
    if not kept:
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "tree").mkdir(parents=True)
        with tree.view(image.layers, folder / "tree") as root, open(folder / "log", "w") as log:
            lacking = make(root, log)
        if lacking:
            shutil.rmtree(folder / "tree")
            (folder / "tree").mkdir()
        (folder / "said").write_text(f"LEFT OUT, not Debian's: {lacking}" if lacking else outcome(folder))
    said = (folder / "said").read_text()
    took = "cached" if kept else f"{time.monotonic() - began:.0f} s"
    print(f"{took:>8}  {instruction}", flush=True)
    if not kept or said.startswith("LEFT OUT"):
        print(f"{'':10}{said}", flush=True)
    return replace(image, layers=(*image.layers, folder / "tree"), key=key)


def outcome(folder):
    """How large a layer is, and which crates were compiled for it."""
    compiled = sorted(set(re.findall(r"^ +Compiling (\S+) ", (folder / "log").read_text(), flags=re.M)))
    names = f": {', '.join(compiled)}" if len(compiled) <= 5 else ""
    return f"{chroot.size(folder / 'tree'):.1f} MiB" + (f", {len(compiled)} crates compiled{names}" if compiled else "")


def run(root, log, image, line):
    """Runs the line; what Debian lacks for it, or nothing."""
    with tree.lent(root) as lent:
        (root / image.folder[1:]).mkdir(parents=True, exist_ok=True)
        command = ["nice", "-n", "3", "chroot", str(root), "sh", "-c", f'cd "{image.folder}" && {line}']
        ran = subprocess.run(command, env=image.environment | lent, stdout=log, stderr=subprocess.STDOUT)
    said = open(log.name).read().strip().splitlines()
    lacking = [line for line in said if "Unable to locate package" in line]
    if ran.returncode != 0 and not lacking:
        raise SystemExit(f"FAILED   {line}\n" + "\n".join(said[-30:]))
    return lacking[-1] if ran.returncode != 0 else None


def copy(root, folder, source, target):
    """Copies as COPY does: the content of a folder, or one file, and root owns it."""
    target = root / (target if target.startswith("/") else f"{folder}/{target}").lstrip("/")
    (target if source.is_dir() else target.parent).mkdir(parents=True, exist_ok=True)
    origin = f"{source}/." if source.is_dir() else str(source)
    subprocess.run(["cp", "-a", "--no-preserve=ownership", origin, str(target)], check=True)
