"""Paints a few pictures on the studio page and takes docs/studio.jpg, the picture of the page in the README.

    .cache/venv/bin/python tests/studio/screenshot.py docs/studio.jpg
    .cache/venv/bin/python tests/studio/screenshot.py FOLDER      light, dark, phone, a first visit, details and comparison, to look at

Needs infra/local/install and a build, as the tests beside it. The pictures on it are painted then.
"""

import io
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import expect, sync_playwright
from stack import LIMIT, stack
from studio import SECOND, SKETCH, launch

DESKTOP, PHONE = {"width": 1280, "height": 1120}, {"width": 390, "height": 780}
# So that the picture stays under 150 KB.
QUALITY = 65
STEPS = "12"
LONG = "100"
IDEAS = ("lighthouse", "mountains", "balloon")


def paint(page):
    """Some ideas in two styles, one in every style, and a task from a sketch that is still on its way."""
    page.set_default_timeout(LIMIT * SECOND)
    page.goto(stack(kept=False).address)
    expect(page.locator("#connection")).to_have_text("Live")
    page.get_by_label("Steps", exact=True).fill(STEPS)
    pictures = page.locator("#gallery > li")
    for number, idea in enumerate(IDEAS):
        page.get_by_role("button", name=idea, exact=True).click()
        for style in ("Halftone Benno Dotti", "Stained glass Ada Kowalska"):
            page.get_by_role("radio", name=style, exact=True).check()
            page.get_by_role("button", name="Paint it").click()
        expect(pictures).to_have_count(2 * number + 2)
    page.get_by_role("button", name="lighthouse", exact=True).click()
    page.get_by_role("button", name="Every style").click()
    expect(page.locator("#series [data-kind='picture']")).to_have_count(page.locator("#styles label").count())
    page.get_by_role("button", name="mountains", exact=True).click()
    page.get_by_label("Steps", exact=True).fill(LONG)
    page.get_by_label("Choose a picture").set_input_files(SKETCH)
    expect(page.locator("#sketch-preview")).to_be_visible()
    page.get_by_role("button", name="Paint it").click()
    # Those on their way come before the one that has ended.
    page.wait_for_function("() => document.querySelector('#tasks progress').value >= 70")


def shoot(browser, name, viewport, scheme="light", full_page=False, act=None, first=False):
    """One look at the page as it is now."""
    context = browser.new_context(viewport=viewport, color_scheme=scheme)
    page = context.new_page()
    page.goto(stack(kept=False).address)
    expect(page.locator("#gallery img").first).to_be_visible()
    if not first:
        page.get_by_role("button", name="Got it").click()
        page.evaluate("document.activeElement.blur()")
    # What the parts say comes once a second.
    expect(page.locator("[data-part='function']")).to_contain_text("pid")
    # Those far below are not loaded by themselves. A preview may be replaced meanwhile.
    load = "all => Promise.all(all.map((each) => { each.loading = 'eager'; return each.decode(); }))"
    page.locator("#gallery img, [data-kind='picture']").evaluate_all(load)
    if act:
        act(page)
    taken = Image.open(io.BytesIO(page.screenshot(full_page=full_page))).convert("RGB")
    taken.save(name, quality=QUALITY, optimize=True, progressive=True)
    context.close()


def details(page):
    """A picture's file, opened."""
    page.locator("#gallery > li button").first.click()
    expect(page.locator(".credential")).to_be_visible()


def comparison(page):
    """Two pictures side by side."""
    for box in page.locator("#gallery > li input").all()[:3]:
        box.check()
    page.locator("#compare").click()
    expect(page.locator("#side-by-side figure").first).to_be_visible()


def main(target):
    """Paints, then looks."""
    with sync_playwright() as playwright:
        browser = launch(playwright)
        paint(browser.new_page(viewport=DESKTOP))
        if target.suffix == ".jpg":
            shoot(browser, target, DESKTOP)
        else:
            target.mkdir(parents=True, exist_ok=True)
            shoot(browser, target / "light.jpg", DESKTOP)
            shoot(browser, target / "dark.jpg", DESKTOP, "dark", full_page=True)
            shoot(browser, target / "phone.jpg", PHONE, full_page=True)
            shoot(browser, target / "phone-dark.jpg", PHONE, "dark", full_page=True)
            shoot(browser, target / "first.jpg", DESKTOP, first=True)
            shoot(browser, target / "details.jpg", DESKTOP, act=details)
            shoot(browser, target / "details-phone.jpg", PHONE, "dark", act=details)
            shoot(browser, target / "comparison.jpg", DESKTOP, "dark", act=comparison)
        browser.close()


if __name__ == "__main__":
    assert len(sys.argv) == 2, __doc__
    main(Path(sys.argv[1]))
