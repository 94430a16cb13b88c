"""What of the checkout a build sees: the files that git has, less what Dockerfile.dockerignore says. Knows of that
file's language what this one uses: a path takes all under it along, and the last line that fits decides."""

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
    """Whether the last rule that fits the path, or a folder above it, leaves it out."""
    out = False
    for rule in rules:
        pattern, inverted = rule.removeprefix("!"), rule.startswith("!")
        if fits(path, pattern):
            out = not inverted
    return out


def fits(path, pattern):
    """A star stands for anything but a slash."""
    parts, wanted = path.split("/"), pattern.split("/")
    return len(wanted) <= len(parts) and all(map(fnmatch.fnmatchcase, parts, wanted))


def copy(folder):
    """Lays them out in a folder, with the times that they have here, as an engine does."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in files():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(chroot.ROOT / path, target)
    return folder
