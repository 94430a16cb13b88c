"""What a person does with the studio page, in a real browser, against the real parts."""

import re
import unittest

from playwright.sync_api import expect
from studio import SKETCH, Case

# Text that can be seen, with its contrast to what lies behind it, as WCAG 2.2 counts it.
CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const over = (colours) => {
    canvas.clearRect(0, 0, 1, 1);
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const luminance = (rgb) => rgb.map((part) => part / 255)
    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const found = [];
  for (const element of document.body.querySelectorAll("*")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE)
      .map((node) => node.data.trim()).join(" ").trim();
    const isSeen = element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!text || !isSeen || element.closest(":disabled, svg")) continue;
    const behind = [];
    for (let each = element; each; each = each.parentElement) behind.unshift(getComputedStyle(each).backgroundColor);
    const colours = ["Canvas", ...behind];
    const [one, two] = [over(colours), over([...colours, getComputedStyle(element).color])].map(luminance);
    found.push([(Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05), text.slice(0, 40), luminance(over(colours))]);
  }
  return found;
}"""


class Page(Case):
    def test_a_task_is_followed_from_the_form_to_the_credential_of_its_picture(self):
        number = self.paint(steps=4)
        expect(self.figure(number)).to_be_visible()
        card = self.card(number)
        expect(card.locator(".stations [data-state='lit']")).to_have_count(5)
        expect(card.locator(".state")).to_contain_text("Complete after")
        expect(card.get_by_label("Stage timings")).to_contain_text("denoise")
        heard = self.page.evaluate("heard")
        for percent in ("0 %", "25 %", "50 %", "75 %"):
            self.assertIn(f"lighthouse, sunset, sea: {percent}", heard)
        self.assertIn("Complete after", heard[-1])
        self.figure(number).get_by_role("button").click()
        details = self.page.get_by_role("dialog")
        expect(details.locator(".credential")).to_contain_text("Signed, and unchanged since")
        expect(details.locator(".credential")).to_contain_text("trainedAlgorithmicMedia")
        expect(details.get_by_role("row", name="IFD0:Artist")).to_contain_text("Ada Kowalska")
        expect(details.get_by_role("row", name="XMP-easel:Seed")).to_contain_text("42")
        self.assertTrue(details.locator(".left > img").evaluate("image => image.decode().then(() => image.naturalWidth === 512)"))

    def test_a_failure_is_shown_with_the_functions_own_code_and_words(self):
        self.page.get_by_text("Tasks that fail").click()
        for example, code, words in (
            ("Zero steps", "TASK_INVALID", "num_inference_steps"),
            ("A LoRA that is not there", "LORA_UNUSABLE", "lora"),
            ("No tags", "TASK_INVALID", "prompt_tags"),
            ("A sketch that is not there", "IMAGE_UNUSABLE", "`image_url` s3://stylelicense-sketches/none.png does not exist"),
        ):
            with self.subTest(example):
                failures = self.page.locator("#failures > li").filter(has_text=code).filter(has_text=words)
                before = failures.count()
                self.page.get_by_role("button", name=example).click()
                expect(failures).to_have_count(before + 1)

    def test_a_seed_that_is_no_number_goes_the_whole_way_and_comes_back_as_a_failure(self):
        before = self.page.locator("#failures > li").count()
        self.page.get_by_label("Seed", exact=True).fill("forty-two")
        self.page.get_by_role("button", name="Paint it").click()
        expect(self.page.locator("#failures > li")).to_have_count(before + 1)
        expect(self.page.locator("#failures > li").first).to_contain_text("seed")

    def test_the_gallery_is_there_after_a_reload(self):
        number = self.paint(steps=1)
        expect(self.figure(number)).to_be_visible()
        before = self.ids("#gallery")
        self.page.reload()
        expect(self.figure(number).locator("img")).to_be_visible()
        self.assertEqual(self.ids("#gallery"), before)

    def test_the_picture_of_an_earlier_run_is_there_and_says_plainly_that_nobody_signed_it(self):
        self.figure(499).get_by_role("button").click()
        details = self.page.get_by_role("dialog")
        expect(details.locator(".credential")).to_contain_text("Not signed: this file has no credential.")
        expect(details.locator("tbody tr").first).to_be_visible()

    def test_seeds_are_compared_side_by_side(self):
        self.page.get_by_label("Steps", exact=True).fill("1")
        before = self.ids("#gallery")
        self.page.get_by_role("button", name="Four seeds").click()
        expect(self.page.locator("#gallery > li")).to_have_count(len(before) + 4)
        new = sorted(self.ids("#gallery") - before)
        for number in new[:2]:
            self.figure(number).get_by_role("checkbox").check()
        self.page.get_by_role("button", name="Compare 2 pictures").click()
        dialog = self.page.get_by_role("dialog", name="2 pictures")
        expect(dialog.locator("figure")).to_have_count(2)
        expect(dialog.locator("figcaption")).to_have_text([re.compile("Seed42"), re.compile("Seed43")])
        expect(dialog.locator("p")).to_contain_text("tags lighthouse, sunset, sea")


class Keyboard(Case):
    def tab_to(self, name):
        """Tabs until a control of this name has the focus, which each control on the way must show."""
        for _ in range(200):
            self.page.keyboard.press("Tab")
            focus = self.page.evaluate(
                """() => {
                     const now = document.activeElement;
                     const shown = [now, now.closest("label")].filter(Boolean).map((each) => getComputedStyle(each).outlineStyle);
                     const name = now.getAttribute("aria-label") ?? now.labels?.[0]?.textContent ?? now.textContent;
                     return { name: name.trim(), shown: shown.some((style) => style !== "none"), body: now === document.body };
                   }"""
            )
            self.assertTrue(focus["shown"] or focus["body"], f"no sign of the focus on {focus['name']}")
            if re.search(name, focus["name"]):
                return
        self.fail(f"the keyboard never comes to {name}")

    def test_a_picture_is_ordered_opened_and_closed_by_keyboard_alone(self):
        before = self.ids("#gallery")
        self.tab_to("Skip to the tasks")
        self.tab_to("^Steps")
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type("1")
        self.tab_to("Paint it")
        self.page.keyboard.press("Enter")
        expect(self.page.locator("#gallery > li")).to_have_count(len(before) + 1)
        self.tab_to("Details of lighthouse")
        self.page.keyboard.press("Enter")
        expect(self.page.get_by_role("dialog")).to_be_visible()
        self.tab_to("Close")
        self.page.keyboard.press("Escape")
        expect(self.page.get_by_role("dialog")).to_be_hidden()
        self.assertIn("Details of", self.page.evaluate("document.activeElement.getAttribute('aria-label')"))
        # Past the last control the focus leaves the page, and comes back at its beginning.
        self.tab_to("Skip to the tasks")

    def test_a_size_is_given_and_a_task_is_cancelled_by_keyboard_alone(self):
        self.tab_to("^1:1")
        self.page.keyboard.press("ArrowLeft")
        for name, value in (("^Width", "256"), ("^Height", "320"), ("^Steps", "100")):
            self.tab_to(name)
            self.page.keyboard.press("Control+A")
            self.page.keyboard.type(value)
        before = self.ids("#tasks")
        self.tab_to("Paint it")
        self.page.keyboard.press("Enter")
        number = self.new(before)
        self.painting(number)
        self.tab_to(f"Cancel task {number}")
        self.page.keyboard.press("Enter")
        expect(self.failure(number)).to_contain_text("CANCELLED")
        task = self.record(number)["task"]
        self.assertEqual((task["width"], task["height"], "aspect_ratio" in task), (256, 320, False))
        # The button is gone, and the focus is still in its card.
        self.assertEqual(self.page.evaluate("document.activeElement.closest('#tasks > li')?.dataset.id"), number)

    def test_a_sketch_and_weights_are_given_and_taken_away_by_keyboard_alone(self):
        focus = "document.activeElement.id"
        # From here on no window is opened. Where this is asked for with the press of the key, it may come too late.
        self.page.on("filechooser", lambda chooser: None)
        self.tab_to("^Choose a picture")
        with self.page.expect_file_chooser() as opened:
            self.page.keyboard.press("Enter")
        opened.value.set_files(SKETCH)
        self.seen(self.page.locator("#sketch-preview"))
        self.page.wait_for_function(f"() => {focus} === 'strength'")
        self.page.keyboard.press("ArrowLeft")
        expect(self.page.locator("#strength-says")).to_have_text("0.75")
        self.tab_to("^Weights by block")
        self.page.keyboard.press("Enter")
        self.tab_to("^Up:")
        self.page.keyboard.press("Home")
        self.tab_to("^As JSON")
        expect(self.page.get_by_label("As JSON")).to_have_value('{"unet":{"up":0}}')
        before = self.ids("#tasks")
        self.tab_to("Paint it")
        self.page.keyboard.press("Enter")
        task = self.record(self.new(before))["task"]
        self.assertEqual((task["strength"], task["lora_weights"]), (0.75, {"unet": {"up": 0}}))
        self.tab_to("^Take the sketch away$")
        self.page.keyboard.press("Enter")
        expect(self.page.locator("#sketch-preview")).to_be_hidden()
        self.assertEqual(self.page.evaluate(focus), "sketch-file")
        self.assertEqual(self.page.evaluate("heard.filter((said) => said.includes('sketch'))"), ["The sketch is there", "The sketch is taken away"])


class Phone(Case):
    VIEWPORT = {"width": 360, "height": 740}

    def fits(self):
        """At both widths."""
        for width in (360, 390):
            self.page.set_viewport_size({"width": width, "height": 740})
            self.assertEqual(self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]"), [width, width])
            wide = "all => all.filter((each) => each.open && each.scrollWidth > each.clientWidth).length"
            self.assertEqual(self.page.locator("dialog").evaluate_all(wide), 0)

    def test_nothing_scrolls_sideways_on_a_phone(self):
        self.fits()
        self.page.get_by_text("Other w × h").click()
        for name in ("Tasks that fail", "More settings", "What this stack is set to"):
            self.page.get_by_text(name).click()
        self.page.locator("#by-block > summary").click()
        self.choose({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"a house"})
        expect(self.page.locator("#sketch-error")).to_contain_text("Not taken")
        self.expected = ["status of 422"]
        self.fits()
        self.chosen()
        self.page.get_by_role("slider", name="Strength").fill("1")
        self.page.get_by_label("As JSON").fill('{"text_encoder": 0.25, "unet": {"down": 0.25, "mid": 0.25, "up": 0.25}}')
        self.fits()
        self.page.get_by_label("Width", exact=True).fill("256")
        self.page.get_by_label("Height", exact=True).fill("256")
        self.page.get_by_label("Steps", exact=True).fill("1")
        self.series("Every style", self.page.locator("#styles label").count())
        figures = self.page.locator("#series > li")
        self.assertTrue(self.page.locator("#series-title").evaluate("title => title.getBoundingClientRect().top < innerHeight"))
        number = figures.last.get_attribute("data-id")
        expect(self.page.locator("#latency-chart svg")).to_be_visible()
        failed = self.page.locator("#failures > li").count()
        self.page.get_by_role("button", name="A LoRA that is not there").click()
        expect(self.page.locator("#failures > li")).to_have_count(failed + 1)
        self.fits()
        self.figure(number).get_by_role("button").click()
        expect(self.page.locator(".credential")).to_be_visible()
        self.fits()


class Colours(Case):
    def test_every_text_can_be_read_in_light_and_in_dark(self):
        for name in ("Tasks that fail", "More settings", "What this stack is set to"):
            self.page.get_by_text(name).click()
        self.page.locator("#by-block > summary").click()
        self.chosen()
        self.page.get_by_label("Up:").fill("0.5")
        number = self.paint(steps=100)
        self.painting(number)
        self.cancel(number)
        expect(self.failure(number)).to_be_visible()
        number = self.paint(steps=2)
        expect(self.figure(number)).to_be_visible()
        expect(self.page.locator("#welcome")).to_be_visible()
        expect(self.card(number).locator(".begun")).to_be_visible()
        self.choose({"name": "notes.txt", "mimeType": "text/plain", "buffer": b"a house"})
        expect(self.page.locator("#sketch-error")).to_contain_text("Not taken")
        self.expected = ["status of 422"]
        for scheme, is_behind in (("light", lambda luminance: luminance > 0.5), ("dark", lambda luminance: luminance < 0.1)):
            self.page.emulate_media(color_scheme=scheme)
            found = self.page.evaluate(CONTRASTS)
            self.assertGreater(len(found), 40)
            with self.subTest(scheme):
                self.assertEqual([(text, round(ratio, 1)) for ratio, text, _ in found if ratio < 4.5], [])
                # Most of it lies on the page's own ground.
                self.assertGreater(sum(is_behind(luminance) for *_, luminance in found), len(found) / 2)


if __name__ == "__main__":
    unittest.main()
