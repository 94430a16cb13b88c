"""A minimal Debian made by debootstrap, and commands that run in such a tree."""

import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "image"
PATH = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


def chroot(root, *command, user=None, read_only=False, **options):
    """Runs a command in the tree; with `user` as the image would: no capability, and with `read_only` only /tmp writable."""
    if user is None:
        return subprocess.run(["chroot", str(root), *command], **options)
    mounts = 'mount --bind "$0" "$0" && mount -t proc proc "$0/proc" && mount -t tmpfs tmpfs "$0/tmp"'
    lock = ' && mount -o remount,bind,ro "$0"' if read_only else ""
    enter = ' && exec chroot --userspec="$1" "$0" "${@:2}"'
    script = ["unshare", "--mount", "--pid", "--fork", "bash", "-c", mounts + lock + enter, str(root), user, *command]
    return subprocess.run(script, **options)


def debian():
    """A minimal Debian of the release of the relay's image, made once."""
    release = "bookworm"
    base = CACHE / release
    if not (base / "usr").exists():
        partial = CACHE / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        subprocess.run(
            ["debootstrap", "--variant=minbase", release, str(partial)], check=True, stdout=subprocess.DEVNULL
        )
        for name in ["etc/apt/apt.conf.d", "etc/apt/sources.list.d"]:
            shutil.copytree(f"/{name}", partial / name, dirs_exist_ok=True)
        # Like published images, without package lists and archives.
        for name in ["var/lib/apt/lists", "var/cache/apt/archives"]:
            shutil.rmtree(partial / name)
            (partial / name / "partial").mkdir(parents=True)
        partial.rename(base)
    return base


def size(path):
    """Mebibytes of a tree or file."""
    return int(subprocess.check_output(["du", "-sk", "--apparent-size", str(path)]).split()[0]) / 1024
