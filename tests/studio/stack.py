"""Starts `demo --studio` for the tests beside it, once for all of them. Stops it afterwards."""

import atexit
import functools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/demo"
MODEL = ROOT / "tests/model"
# Far more than anything takes: from the start to the address, and from a click to a picture.
START, LIMIT = 180, 120


class Stack:
    """The running demo."""

    def __init__(self, out):
        command = [BINARY, "--studio", "--out", out, "--model", MODEL / "easel-tiny", "--styles", MODEL / "styles"]
        # Nothing keeps running even if these tests are killed.
        self.demo = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "--", *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={name: value for name, value in os.environ.items() if "DISPLAY" not in name},
        )
        alarm = threading.Timer(START, self.demo.kill)
        alarm.start()
        self.said, self.address = [], None
        for line in self.demo.stdout:
            self.said.append(line)
            if line.startswith("studio: "):
                self.address = line.split()[1]
            if "ctrl-C" in line:
                break
        alarm.cancel()
        self.rest = threading.Thread(target=self.demo.stdout.read, daemon=True)
        self.rest.start()
        if not self.address:
            self.stop()
            raise AssertionError("".join(self.said))

    def stop(self):
        """Ends it as ctrl-C does."""
        self.demo.send_signal(signal.SIGINT)
        try:
            self.demo.wait(LIMIT)
        finally:
            self.demo.kill()
            self.demo.wait()
            self.rest.join()
            self.demo.stdout.close()


# What an earlier run has left: a task that ended, and its picture, which nobody signed.
KEPT = {
    **{"id": 499, "style": "stained-glass", "published_ms": 1, "receives": 1, "refusals": 0, "dropped": 0},
    **{"task": {"prompt_tags": ["kept", "lighthouse"], "seed": 7}, "marks": [], "progress": [], "stages": []},
    **{"completes": 1, "failures": 0, "end": {"kind": "complete"}, "ended_ms": 1200, "picture": "gen_499.jpg"},
}


@functools.cache
def stack(kept=True):
    """One for all tests of this process, whose gallery has a picture of an earlier run, or is empty."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    if kept:
        gallery = Path(folder.name) / "studio"
        gallery.mkdir()
        (gallery / "gen_499.json").write_text(json.dumps(KEPT))
        shutil.copy(ROOT / "docs/lighthouse.jpg", gallery / "gen_499.jpg")
    started = Stack(folder.name)
    atexit.register(started.stop)
    return started
