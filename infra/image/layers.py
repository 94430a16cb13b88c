"""Builds stages of the Dockerfile without an engine. Each RUN and COPY is a layer of an overlay, cached under a key of
its inputs, as in an engine's cache.

Needs root, in a mount namespace of its own. It knows only the instructions that the Dockerfile uses. A RUN line whose
packages Debian does not have is named and left out.
"""

import re
import shutil
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace

import bases
import chroot
import dockerfile
import tree

STORE = chroot.CACHE / "layers"


@dataclass(frozen=True)
class Image:
    """Layers, lowest first; the key of their inputs; and the environment and folder of the next instruction."""

    layers: tuple
    key: str
    environment: dict
    folder: str = "/"


class Builder:
    """Builds the stages of a Dockerfile from the build context; `contexts` are folders that replace stages by name."""

    def __init__(self, path, context, contexts=None):
        self.stages, self.arguments = dockerfile.stages(path), dockerfile.arguments(path)
        self.context, self.built = context, {}
        for name, folder in (contexts or {}).items():
            self.built[name] = Image((folder,), tree.content(folder), {})

    def build(self, name):
        """The image of a stage."""
        if name not in self.built:
            stage = self.stages[name]
            image = self.begin(stage.base)
            print(f"\n-- {name}, from {stage.base}", flush=True)
            for word, rest in stage.steps:
                image = self.step(image, word, rest)
            self.built[name] = image
        return self.built[name]

    def begin(self, base):
        """The image that a stage begins with."""
        if base in self.stages:
            return self.build(base)
        if base == "scratch":
            return Image((nothing(),), "scratch", {})
        return self.stand_in(base[2:-1])

    def step(self, image, word, rest):
        if word == "ENV":
            pairs = (pair.split("=", 1) for pair in rest.split())
            values = {key: value.replace("${PATH}", image.environment["PATH"]) for key, value in pairs}
            return replace(image, environment=image.environment | values)
        if word == "WORKDIR":
            return replace(image, folder=rest)
        if word == "RUN":
            flags, line = dockerfile.flags(rest)
            lent = self.mounted(flags)
            keys = [self.build(name).key for name in lent]
            key = tree.digest(image.key, rest, image.folder, *keys, *sorted(image.environment.items()))
            return layer(image, key, f"RUN {rest}", lambda root, log: run(root, log, image, line, lent))
        if word == "COPY":
            flags, paths = dockerfile.flags(rest)
            path, target = paths.split()
            if unknown := flags.keys() - {"from", "link", "chmod"}:
                raise SystemExit(f"{', '.join(sorted(unknown))} of COPY {rest}: not known here")
            layers = self.build(flags["from"]).layers if "from" in flags else ()
            mode = [flags["chmod"]] if "chmod" in flags else []
            # With --link the layer is copied into an empty tree, so it does not depend on the layers below.
            below = Image((nothing(),), "link", {}) if "link" in flags else image
            with tree.view(layers) as source:
                source = source / path.lstrip("/") if source else self.context / path
                key = tree.digest(below.key, image.folder, target, tree.content(source), *mode)
                make = lambda root, _: copy(root, image.folder, source, target, *mode)  # noqa: E731
                made = layer(below, key, f"COPY {rest}", make)
            if below is image:
                return made
            return replace(image, layers=(*image.layers, made.layers[-1]), key=tree.digest(image.key, key))
        if word in ("USER", "EXPOSE", "ENTRYPOINT"):
            return image
        raise SystemExit(f"{word} is not an instruction that is known here")

    def mounted(self, flags):
        """The images mounted while a line runs, by stage, with the folder of the mount."""
        if not flags:
            return {}
        options = dict(each.split("=", 1) for each in flags.get("mount", "").split(","))
        if flags.keys() != {"mount"} or options.keys() != {"type", "from", "target"} or options["type"] != "bind":
            raise SystemExit(f"RUN with {flags}: only --mount=type=bind,from=STAGE,target=FOLDER is known here")
        return {options["from"]: (self.build(options["from"]).layers, options["target"])}

    def stand_in(self, argument):
        """The first layer, in place of an image from a registry."""
        folder, environment = bases.STAND_INS[argument](self.arguments[argument])
        print(f"\n{folder.name} stands in for {argument}: {chroot.size(folder):.0f} MiB", flush=True)
        return Image((folder,), tree.digest(folder.name), environment)


def nothing():
    """An empty folder."""
    folder = STORE / "scratch"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def layer(image, key, instruction, make):
    """The image with one more layer, which is made if it is not cached."""
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
    """A layer's size, and the crates that were compiled for it."""
    compiled = sorted(set(re.findall(r"^ +Compiling (\S+) ", (folder / "log").read_text(), flags=re.M)))
    names = f": {', '.join(compiled)}" if len(compiled) <= 5 else ""
    return f"{chroot.size(folder / 'tree'):.1f} MiB" + (f", {len(compiled)} crates compiled{names}" if compiled else "")


def run(root, log, image, line, mounted):
    """Runs the line. Returns the message about a package that Debian lacks, or None."""
    with tree.lent(root) as lent, ExitStack() as stack:
        for layers, target in mounted.values():
            (root / target[1:]).mkdir(parents=True, exist_ok=True)
            source = stack.enter_context(tree.view(layers))
            tree.mount(stack, root / target[1:], "--bind", "-o", "ro", str(source))
        (root / image.folder[1:]).mkdir(parents=True, exist_ok=True)
        command = ["nice", "-n", "3", "chroot", str(root), "sh", "-c", f'cd "{image.folder}" && {line}']
        ran = subprocess.run(command, env=image.environment | lent, stdout=log, stderr=subprocess.STDOUT)
    said = open(log.name).read().strip().splitlines()
    lacking = [line for line in said if "Unable to locate package" in line]
    if ran.returncode != 0 and not lacking:
        raise SystemExit(f"FAILED   {line}\n" + "\n".join(said[-30:]))
    return lacking[-1] if ran.returncode != 0 else None


def copy(root, folder, source, target, mode=""):
    """Copies as COPY does: the content of a folder, or one file, owned by root."""
    target = root / (target if target.startswith("/") else f"{folder}/{target}").lstrip("/")
    (target if source.is_dir() else target.parent).mkdir(parents=True, exist_ok=True)
    origin = f"{source}/." if source.is_dir() else str(source)
    subprocess.run(["cp", "-a", "--no-preserve=ownership", origin, str(target)], check=True)
    if mode:
        subprocess.run(["chmod", "--recursive", mode, str(target)], check=True)
