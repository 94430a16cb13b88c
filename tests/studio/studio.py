"""A headless Chromium on the studio page, and the steps that several tests share."""

import io
import os
import shutil
import unittest
import urllib.request

from PIL import Image
from playwright.sync_api import expect, sync_playwright
from stack import LIMIT, ROOT, stack

BROWSERS = ("chromium-headless-shell", "chromium")
SECOND = 1000
# 600x440 pixels.
SKETCH = ROOT / "tests/goldens/pictures/sketch.png"
expect.set_options(timeout=LIMIT * SECOND)


def launch(playwright):
    """Debian's Chromium. Its sandbox refuses root, and root alone does without."""
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert path, f"none of {BROWSERS} is installed: run infra/local/install"
    return playwright.chromium.launch(executable_path=path, args=["--no-sandbox"] if os.geteuid() == 0 else [])


class Case(unittest.TestCase):
    """A page of its own for each test. Errors in the browser and requests to other hosts fail it."""

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
        # Parts of what the browser itself says of answers that a test asks for. It may say so later than the page.
        self.expected = []
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
        self.addCleanup(self.clear)
        self.page.goto(self.address)
        expect(self.page.locator("#connection")).to_have_text("Live")

    def clear(self):
        """What a failed test has left does not keep the next one waiting."""
        self.page.evaluate(
            """async () => { const { store, post } = await import("/store.js");
                 const open = [...store.tasks.values()].filter(({ end, cancel_ms }) => !end && cancel_ms === null);
                 await Promise.allSettled(open.map(({ id }) => post("/api/cancel", { id }))); }"""
        )

    def check(self):
        """The browser logged no errors and called no other hosts."""
        self.assertEqual([fault for fault in self.faults if not any(part in fault for part in self.expected)], [])

    def sized(self, width, height):
        """Asks for pictures of so many pixels. Small ones are painted soonest."""
        self.page.get_by_text("Other w × h").click()
        self.page.get_by_label("Width", exact=True).fill(str(width))
        self.page.get_by_label("Height", exact=True).fill(str(height))

    def paint(self, steps=4, seed=42):
        """Publishes a task from the form; gives its card's id."""
        before = self.ids("#tasks")
        self.page.get_by_label("Steps", exact=True).fill(str(steps))
        self.page.get_by_label("Seed", exact=True).fill(str(seed))
        self.page.get_by_role("button", name="Paint it").click()
        return self.new(before)

    def painting(self, number, percent=10):
        """Waits until so much of a task is painted."""
        script = "([number, percent]) => document.querySelector(`#tasks > [data-id='${number}'] progress`)?.value >= percent"
        self.page.wait_for_function(script, arg=[number, percent])

    def cancel(self, number):
        """Presses the button of a task that cancels it."""
        self.card(number).get_by_role("button", name=f"Cancel task {number}").click()

    def record(self, number):
        """What the page knows of a task: what the server has sent, as it came."""
        return self.page.evaluate("async number => (await import('/store.js')).store.tasks.get(number)", int(number))

    def choose(self, file=SKETCH):
        """Chooses a file to begin from, as the browser's dialog does."""
        self.page.get_by_label("Choose a picture").set_input_files(file)

    def chosen(self, file=SKETCH):
        """Chooses a picture and waits for its preview."""
        self.choose(file)
        self.seen(self.page.locator("#sketch-preview"))

    def seen(self, image):
        """A picture that the browser could read."""
        expect(image).to_be_visible()
        self.assertGreater(image.evaluate("image => image.decode().then(() => image.naturalWidth)"), 0)

    def painted(self, **task):
        """Paints; gives what the page knows of the task, and the picture."""
        number = self.paint(**task)
        expect(self.figure(number)).to_be_visible()
        record = self.record(number)
        with urllib.request.urlopen(f"{self.address}/pictures/{record['picture']}") as file:
            return record, Image.open(io.BytesIO(file.read())).convert("RGB")

    def series(self, button, count):
        """Publishes a series of so many tasks; gives them once all are painted."""
        before = self.ids("#series")
        self.page.get_by_role("button", name=button).click()
        script = """([before, count]) => {
          const all = [...document.querySelectorAll("#series > li")];
          const done = all.filter((each) => !before.includes(each.dataset.id) && each.querySelector("[data-kind='picture']"));
          return all.length === count && done.length === count;
        }"""
        self.page.wait_for_function(script, arg=[list(before), count])
        return [self.record(number)["task"] for number in self.ids("#series")]

    def failure(self, number):
        """A task that ended without a picture."""
        return self.page.locator(f"#failures > [data-id='{number}']")

    def part(self, name):
        """A queue or a worker."""
        return self.page.locator(f"[data-part='{name}']")

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
