"""Starts `demo --studio` and a headless Chromium for the tests beside it. Refuses to leave anything running, and to sleep."""

import atexit
import functools
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import unittest
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/demo"
BROWSERS = ("chromium-headless-shell", "chromium")
MODEL = ROOT / "tests/model"
# Far more than anything takes: from the start to the address, and from a click to a picture.
START, LIMIT = 180, 120
SECOND = 1000
expect.set_options(timeout=LIMIT * SECOND)


class Stack:
    """The running demo."""

    def __init__(self, out):
        command = [BINARY, "--studio", "--out", out, "--model", MODEL / "easel-tiny", "--styles", MODEL / "styles"]
        # Even if these tests are killed, nothing stays.
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
    """One for all tests of this process, on a shelf with a picture of an earlier run, or on an empty one."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    if kept:
        shelf = Path(folder.name) / "studio"
        shelf.mkdir()
        (shelf / "gen_499.json").write_text(json.dumps(KEPT))
        shutil.copy(ROOT / "docs/lighthouse.jpg", shelf / "gen_499.jpg")
    started = Stack(folder.name)
    atexit.register(started.stop)
    return started


def launch(playwright):
    """Debian's Chromium. Its sandbox refuses root, and root alone does without."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert path, f"none of {BROWSERS} is installed: run infra/local/install"
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])


class Case(unittest.TestCase):
    """A page of its own for each test. What the browser complains of, and requests to other hosts, fail it."""

    VIEWPORT = {"width": 1280, "height": 900}

    @classmethod
    def setUpClass(cls):
        cls.address = stack().address
        playwright = sync_playwright().start()
        cls.addClassCleanup(playwright.stop)
        cls.browser = launch(playwright)
        cls.addClassCleanup(cls.browser.close)

    def setUp(self):
        self.faults = []
        context = self.browser.new_context(viewport=self.VIEWPORT)
        self.addCleanup(self.check)
        self.addCleanup(context.close)
        context.set_default_timeout(LIMIT * SECOND)
        # What a screen reader would have been told, in order.
        context.add_init_script(
            """addEventListener("DOMContentLoaded", () => {
                 const announcer = document.getElementById("announcer");
                 window.heard = [];
                 new MutationObserver(() => window.heard.push(announcer.textContent)).observe(announcer, { childList: true });
               })"""
        )
        self.page = context.new_page()
        self.page.on("console", lambda said: said.type in ("error", "warning") and self.faults.append(said.text))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda asked: asked.url.startswith(self.address) or self.faults.append(asked.url))
        self.page.goto(self.address)
        expect(self.page.locator("#connection")).to_have_text("Live")

    def check(self):
        """Nothing was complained of, and nobody else was asked."""
        self.assertEqual(self.faults, [])

    def paint(self, steps=4, seed=42):
        """Publishes a task from the form; gives its card's id."""
        before = self.ids("#tasks")
        self.page.get_by_label("Steps", exact=True).fill(str(steps))
        self.page.get_by_label("Seed", exact=True).fill(str(seed))
        self.page.get_by_role("button", name="Paint it").click()
        return self.new(before)

    def ids(self, selector):
        """The tasks that a list shows."""
        return set(self.page.locator(f"{selector} > li").evaluate_all("all => all.map((each) => each.dataset.id)"))

    def new(self, before):
        """The id of a card that was not there before."""
        script = "before => [...document.querySelectorAll('#tasks > li')].map((each) => each.dataset.id).find((id) => !before.includes(id))"
        return self.page.wait_for_function(script, arg=list(before)).json_value()

    def card(self, number):
        """A task on its way."""
        return self.page.locator(f"#tasks > [data-id='{number}']")

    def figure(self, number):
        """A picture in the gallery."""
        return self.page.locator(f"#gallery > [data-id='{number}']")

    def count(self, name):
        """A number of the ledger."""
        return self.page.locator(f"[data-count='{name}']")
