"""The files that a build gets: those of git without those that Dockerfile.dockerignore excludes. It supports the part of
that syntax that our file uses: a path includes everything under it, and the last line that matches decides."""

import fnmatch
import shutil
import subprocess

import chroot


def files():
    """Their paths below the root of the checkout."""
    rules = (chroot.ROOT / "infra/image/Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in rules if line and not line.startswith("#")]
    listed = subprocess.check_output(["git", "-C", str(chroot.ROOT), "ls-files", "-z"], text=True)
    return [path for path in listed.split("\0") if path and not ignored(path, rules)]


def ignored(path, rules):
    """Whether the last rule that matches the path, or a folder above it, excludes it."""
    out = False
    for rule in rules:
        pattern, inverted = rule.removeprefix("!"), rule.startswith("!")
        if fits(path, pattern):
            out = not inverted
    return out


def fits(path, pattern):
    """Whether a pattern matches the path or a folder above it. A star stands for anything but a slash."""
    parts, wanted = path.split("/"), pattern.split("/")
    return len(wanted) <= len(parts) and all(map(fnmatch.fnmatchcase, parts, wanted))


def copy(folder):
    """Copies them into a folder and keeps their times, as an engine does."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in files():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(chroot.ROOT / path, target)
    return folder
