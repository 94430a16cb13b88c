"""Stand-ins for the Dockerfile's base images, where no registry can be reached: Debian by debootstrap, alone, with this
machine's Rust, or with the CUDA compiler of a folder. This machine's Rust must have the version of the image's tag.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import chroot

# Those packages of the rust image that a build of ours may need.
PACKAGES = "ca-certificates gcc g++ libc6-dev libssl-dev make pkg-config git"


def debian(_image):
    """The folder and the variables of plain Debian."""
    return chroot.debian(), dict(chroot.PATH)


def rust(image):
    """The same with a C compiler, and with Rust in the folders of the rust image."""
    version = subprocess.check_output(["rustc", "--version"], text=True).split()[1]
    wanted = re.search(r"rust:([\d.]+)", image)[1]
    if not f"{version}.".startswith(f"{wanted}."):
        raise SystemExit(f"the Dockerfile wants Rust {wanted}, and rustc here is {version}")
    home = Path("/usr/local")
    environment = {"RUSTUP_HOME": f"{home}/rustup", "CARGO_HOME": f"{home}/cargo"}
    environment["PATH"] = f"{home}/cargo/bin:{chroot.PATH['PATH']}"
    return made(f"rust-{version}", lambda root: install_rust(root, home)), environment


def install_rust(root, home):
    install = f"apt-get update && apt-get install --yes --no-install-recommends {PACKAGES}"
    install += " && rm -rf /var/lib/apt/lists/*"
    chroot.chroot(root, "sh", "-c", install, check=True, stdout=subprocess.DEVNULL, env=chroot.PATH)
    here = Path(subprocess.check_output(["rustc", "--print", "sysroot"], text=True).strip()).resolve()
    there = home / "rustup/toolchains" / here.name
    for name in ["bin", "lib", "libexec"]:
        shutil.copytree(here / name, root / there.relative_to("/") / name, symlinks=True)
    programs = root / home.relative_to("/") / "cargo/bin"
    programs.mkdir(parents=True)
    for program in (here / "bin").iterdir():
        (programs / program.name).symlink_to(there / "bin" / program.name)


def cuda(_image):
    """Debian with the compiler and headers of CUDA_HOME, in the folder of NVIDIA's image; without the libraries."""
    here = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
    if not (here / "bin/nvcc").exists():
        raise SystemExit("CUDA_HOME must name a folder with bin/nvcc of CUDA 13")
    return made("cuda-devel", lambda root: install_cuda(root, here)), dict(chroot.PATH)


def install_cuda(root, here):
    for name in ["bin", "include", "nvvm"]:
        shutil.copytree(here / name, root / "usr/local/cuda" / name)


def made(name, fill):
    """Debian with additions, made once."""
    base = chroot.CACHE / name
    if not base.exists():
        partial = chroot.CACHE / "partial"
        shutil.rmtree(partial, ignore_errors=True)
        subprocess.run(["cp", "-a", str(chroot.debian()), str(partial)], check=True)
        fill(partial)
        partial.rename(base)
    return base


# By the build argument that names the image.
STAND_INS = {
    "DEBIAN_IMAGE": debian,
    "RUST_IMAGE": rust,
    "CUDA_DEVEL_IMAGE": cuda,
    "UBUNTU_IMAGE": debian,
}
