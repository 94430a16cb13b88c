"""Layers of files: mounted as one tree, hashed by content, and with the parts of this machine that a build needs.

All mounts end with the `with` block that made them.
"""

import hashlib
import os
import re
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path

import chroot

CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# Variables that say how this machine reaches its registries.
REACH = re.compile(r"(?i)(https?|all|no)_proxy|CARGO_(HTTP|NET|SOURCE|REGISTR)\w+")


@contextmanager
def view(layers, upper=None):
    """Mounts the layers, lowest first, as one tree; writes go to `upper`. None if there are no layers."""
    if not layers:
        yield None
        return
    chroot.CACHE.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=chroot.CACHE, ignore_cleanup_errors=True)))
        for name in ["root", "work", "nothing"]:
            (work / name).mkdir()
        # An overlay needs two layers, so an empty one is added below.
        options = "lowerdir=" + ":".join(map(str, [*reversed(layers), work / "nothing"]))
        options += f",upperdir={upper},workdir={work / 'work'}" if upper else ""
        mount(stack, work / "root", "-t", "overlay", "-o", options, "overlay")
        yield work / "root"


@contextmanager
def lent(root):
    """Mounts /proc, /tmp, /run and the certificates while a line runs; gives its additional variables."""
    with ExitStack() as stack:
        mount(stack, root / "proc", "-t", "proc", "proc")
        for name in ["tmp", "run"]:
            mount(stack, root / name, "-t", "tmpfs", "tmpfs")
        (root / "run/certificates.crt").write_bytes(CERTIFICATES.read_bytes())
        reach = {name: value for name, value in os.environ.items() if REACH.fullmatch(name)}
        trust = dict.fromkeys(["SSL_CERT_FILE", "CARGO_HTTP_CAINFO"], "/run/certificates.crt")
        yield {"HOME": "/root", **trust, **reach}


def mount(stack, where, *what):
    subprocess.run(["mount", *what, str(where)], check=True)
    stack.callback(subprocess.run, ["umount", str(where)], check=True)


def content(path):
    """A hash of a tree or file: names, kinds, executable bits and bytes. Times do not count, as in an engine."""
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = hashlib.sha256()
    for each in paths:
        relative = str(each.relative_to(path))
        if each.is_symlink():
            found.update(digest(relative, "link", os.readlink(each)).encode())
        elif each.is_file():
            own = hashlib.sha256(each.read_bytes()).hexdigest()
            found.update(digest(relative, os.access(each, os.X_OK), own).encode())
    return found.hexdigest()


def digest(*parts):
    """A short hash of the parts."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
