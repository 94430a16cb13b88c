"""Starts an image's binary in a tree as a pod or Lambda would: as its user, on a read-only root with a writable /tmp.

Without a broker, a queue or a model the binary must report what is missing. It must not fail for a library or a folder.
"""

import shutil
import sys

import chroot

AMQP = ["--amqp-url=amqp://127.0.0.1:1", "--sqs-queue-url=http://127.0.0.1:1/1/tasks", "--connect-timeout=1"]
WORKER = ["worker", "--model=/models/none", "--internal-api-token=token", "--sqs-queue-url=http://127.0.0.1:1/1/tasks"]
PICTURE = [
    "generate",
    "--model=/models/tiny",
    "--prompt=lighthouse",
    "--signature=Ada",
    "--steps=1",
    "--out=/tmp/a.png",
]
OWN = [each for each in PICTURE if not each.startswith("--model=")]
# Arguments, and the expected exit code.
STARTS = {
    "relay": [(["--version"], 0), (["--help"], 0), ([*AMQP, "--check"], 69)],
    "handler": [(["--version"], 0), (["worker", "--help"], 0), (WORKER, 1), ([], 64), (PICTURE, 0)],
    "handler-with-model": [(["--version"], 0), (["weights", "verify", "/opt/model"], 0), (OWN, 0)],
}


def programs(stage):
    """The paths of the binaries that the stage copies, or else its entrypoint."""
    return [target for _, target in stage.copies if target.startswith("/usr/local/bin/")] or stage.entrypoint[:1]


def start(stage, root):
    """Prints the libraries that the binary needs, and starts it."""
    for program in programs(stage):
        libraries = chroot.chroot(root, "ldd", program, capture_output=True, text=True, check=True).stdout
        print("opens     " + ", ".join(line.split()[0] for line in libraries.splitlines()))
        if "not found" in libraries:
            sys.exit("FAILED    a library is missing")
    # In place of a volume.
    shutil.copytree(chroot.ROOT / "tests/model/easel-tiny", root / "models/tiny")
    options = {"user": stage.user, "read_only": True, "env": chroot.PATH | stage.environment, "timeout": 60}
    for arguments, expected in STARTS[stage.name]:
        started = chroot.chroot(root, *stage.entrypoint, *arguments, capture_output=True, text=True, **options)
        said = (started.stdout + started.stderr).strip().splitlines() or [""]
        print(f"{stage.user}$ {' '.join(stage.entrypoint + arguments)}")
        print(f"          exit code {started.returncode}: {said[-1][:150]}", flush=True)
        if started.returncode != expected:
            sys.exit(f"FAILED    expected exit code {expected}\n" + "\n".join(said))
