"""Which crates are linked into handler and relay, as cargo itself resolves them for one machine and set of features.

`cargo metadata`, which other tools read, unites the features of the whole workspace and of its tests: a hundred crates more.
"""

import json
import re
import subprocess
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("handler", "relay")
# A line of `cargo tree --prefix depth`; what follows the version is a path, or that the crate was listed before.
LINE = re.compile(r"(\d+)(\S+) v(\S+)")


@dataclass
class Crate:
    """One crate, and the crates that it uses."""

    name: str
    version: str
    licence: str
    folder: Path
    ours: bool
    repository: str
    authors: list[str]
    # SHA-256 of the archive on crates.io; of our own there is none.
    checksum: str | None
    uses: set[tuple[str, str]] = field(default_factory=set)

    @property
    def key(self):
        """What tells it from all others."""
        return self.name, self.version

    def __str__(self):
        return f"{self.name} {self.version}"


def cargo(*words):
    """What cargo prints."""
    return subprocess.run(["cargo", *words], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def resolved():
    """Every crate that Cargo.lock names for any machine, by name and version."""
    locked = tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]
    checksums = {(each["name"], each["version"]): each.get("checksum") for each in locked}
    packages = json.loads(cargo("metadata", "--locked", "--format-version", "1"))["packages"]
    return {(each["name"], each["version"]): crate(each, checksums) for each in packages}


def crate(package, checksums):
    """A crate from its part of `cargo metadata`."""
    return Crate(
        name=package["name"],
        version=package["version"],
        # An older way to write it.
        licence=re.sub(r" */ *", " OR ", package["license"] or ""),
        folder=Path(package["manifest_path"]).parent,
        ours=package["source"] is None,
        repository=package["repository"] or "",
        authors=package["authors"],
        checksum=checksums[package["name"], package["version"]],
    )


def linked(target, features):
    """The crates that the linker sees, by name and version: no macros, no build scripts, no tests, no other machines'."""
    known, found = resolved(), {}
    for program in PROGRAMS:
        own = ("--features", features) if program == "handler" else ()
        edges = ("--edges", "normal,no-proc-macro", "--target", target, "--prefix", "depth", "--format", "{p}")
        above = []
        for line in cargo("tree", "--locked", "--package", program, *own, *edges).splitlines():
            depth, name, version = LINE.match(line).groups()
            here = found.setdefault((name, version), known[name, version])
            above[int(depth) :] = [here]
            if len(above) > 1:
                above[-2].uses.add(here.key)
    return found
