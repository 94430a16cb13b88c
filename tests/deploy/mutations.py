#!/usr/bin/env python3
"""Breaks manifests, templates and image one way after the other, in a copy, and demands that the named test turns red.

Run by hand, with the Python of .cache/venv: three minutes. With words, only tests whose names have one of them.
A change that changes nothing is an error.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import changes_aws
import changes_cluster

ROOT = Path(__file__).resolve().parents[2]
CHANGES = {**changes_aws.CHANGES, **changes_cluster.CHANGES}


def red(test, root):
    """Whether the test fails on this copy, and not because the manifests could not be built."""
    options = {"cwd": Path(__file__).parent, "env": {**os.environ, "EASEL_ROOT": str(root)}}
    command = [sys.executable, "-m", "unittest", test]
    ran = subprocess.run(command, **options, capture_output=True, text=True, check=False)
    assert "Ran 1 test" in ran.stderr and "NotBuilt" not in ran.stderr, ran.stderr
    return ran.returncode != 0


def main():
    """All of them; ends with 1 if a test stayed green."""
    words = sys.argv[1:] or [""]
    wanted = {test: changes for test, changes in CHANGES.items() if any(word in test for word in words)}
    every = [(test, *change) for test, changes in wanted.items() for change in changes]
    green = []
    for test, file, old, new in every:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            shutil.copytree(ROOT / "infra", root / "infra")
            shutil.copy(ROOT / "template.yaml", root)
            text = (root / file).read_text()
            assert old in text, f"{file} has no {old!r}"
            (root / file).write_text(text.replace(old, new))
            failed = red(test, root)
        colour, name = "red  " if failed else "GREEN", test.partition(".test_")[2]
        print(colour, f"{file}: {old.strip()!r} -> {new.strip()!r}: {name}", flush=True)
        green += [] if failed else [test]
    print(f"{len(every) - len(green)} passed, {len(green)} failed")
    return bool(green)


if __name__ == "__main__":
    sys.exit(main())
