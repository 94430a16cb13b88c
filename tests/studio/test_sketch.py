"""A sketch to begin from: what is painted of it, who carries it, and what is no sketch."""

import io
import re
import unittest

from PIL import Image, ImageChops, ImageOps, ImageStat
from playwright.sync_api import expect
from studio import SKETCH, Case

SIDE = 256
KEY = re.compile(r"s3://stylelicense-sketches/[0-9a-f]{32}\.png")
# Makes a drag or a clipboard that has the picture of an earlier run.
CARRIED = """async () => {
  const carried = new DataTransfer();
  carried.items.add(new File([await (await fetch("/pictures/gen_499.jpg")).blob()], "lighthouse.jpg", { type: "image/jpeg" }));
  return carried;
}"""


def apart(one, other):
    """The mean difference of two pictures, in levels of 255."""
    return sum(ImageStat.Stat(ImageChops.difference(one, other)).mean) / 3


def jpeg():
    """The sketch as a JPEG."""
    file = io.BytesIO()
    Image.open(SKETCH).convert("RGB").save(file, "JPEG")
    return file.getvalue()


class Sketch(Case):
    def setUp(self):
        super().setUp()
        self.sized(SIDE, SIDE)

    def strength(self, value):
        """Moves the slider."""
        self.page.get_by_role("slider", name="Strength").fill(str(value))

    def test_a_sketch_changes_the_picture_of_a_seed_as_far_as_its_strength_and_is_taken_away_again(self):
        expect(self.page.locator("#strength")).to_be_hidden()
        _, plain = self.painted(steps=8)
        self.chosen()
        expect(self.page.locator("#strength-says")).to_have_text("0.8")
        task, usual = self.painted(steps=8)
        self.assertRegex(task["task"]["image_url"], KEY)
        self.assertEqual((task["task"]["strength"], task["metadata"]["strength"]), (0.8, 0.8))
        self.strength(0.25)
        task, near = self.painted(steps=8)
        self.assertEqual(task["metadata"]["strength"], 0.25)
        sketch = ImageOps.fit(Image.open(SKETCH).convert("RGB"), (SIDE, SIDE))
        distances = [apart(picture, sketch) for picture in (near, usual, plain)]
        print(f"levels apart from the sketch, at strength 0.25 and 0.8 and without it: {[round(one, 1) for one in distances]}")
        self.assertLess(distances[0], 30)
        self.assertLess(distances[0], distances[1])
        self.assertGreater(apart(usual, plain), 5)
        card = self.card(task["id"]).locator(".begun")
        expect(card).to_contain_text("from a sketch, strength 0.25")
        self.seen(card.locator("img"))
        self.page.get_by_role("button", name="Take the sketch away").click()
        expect(self.page.locator("#strength")).to_be_hidden()
        task, again = self.painted(steps=8)
        self.assertFalse({"image_url", "strength"} & set(task["task"]))
        self.assertEqual(apart(again, plain), 0)
        expect(self.card(task["id"]).locator(".begun")).to_have_count(0)

    def test_details_show_what_a_picture_began_from_and_its_settings_are_used_again_after_a_reload(self):
        self.chosen()
        self.strength(0.4)
        task, _ = self.painted(steps=4)
        self.page.reload()
        self.figure(task["id"]).get_by_role("button").click()
        details = self.page.get_by_role("dialog")
        self.seen(details.locator(".begun img"))
        expect(details.locator(".pairs").first).to_contain_text(re.compile("Sketch[0-9a-f]{6}, strength 0.4"))
        details.get_by_role("button", name="Use these settings").click()
        self.seen(self.page.locator("#sketch-preview"))
        expect(self.page.locator("#strength-says")).to_have_text("0.4")
        again, _ = self.painted(steps=4, seed=8)
        for field in ("image_url", "strength"):
            self.assertEqual(again["task"][field], task["task"][field])
        self.figure(499).get_by_role("button").click()
        self.page.get_by_role("dialog").get_by_role("button", name="Use these settings").click()
        expect(self.page.locator("#sketch-preview")).to_be_hidden()

    def test_every_task_of_a_series_begins_from_the_sketch(self):
        self.chosen()
        self.page.get_by_label("Steps", exact=True).fill("2")
        for button, count in (("Four seeds", 4), ("Every style", self.page.locator("#styles label").count())):
            for task in self.series(button, count):
                self.assertRegex(task["image_url"], KEY)
                self.assertEqual(task["strength"], 0.8)
            expect(self.page.locator("#series-same")).to_contain_text(re.compile("sketch [0-9a-f]{6}, strength 0.8"))

    def test_a_picture_is_dropped_or_pasted(self):
        preview = self.page.locator("#sketch-preview")
        for act in (
            lambda carried: self.page.locator("#order").dispatch_event("drop", {"dataTransfer": carried}),
            lambda carried: self.page.evaluate("carried => document.body.dispatchEvent(new ClipboardEvent('paste', { clipboardData: carried, bubbles: true }))", carried),
        ):
            act(self.page.evaluate_handle(CARRIED))
            self.seen(preview)
            self.assertRegex(preview.get_attribute("src"), r"^/sketches/[0-9a-f]{32}\.jpg$")
            self.page.get_by_role("button", name="Take the sketch away").click()
            expect(preview).to_be_hidden()

    def test_a_task_waits_for_the_sketch_that_is_on_its_way(self):
        sent = []
        self.page.route("**/api/sketches", lambda route: sent.append(route))
        with self.page.expect_request("**/api/sketches"):
            self.choose()
        expect(self.page.locator("#sketch-says")).to_have_text("is sent …")
        before = self.ids("#tasks")
        self.page.get_by_label("Steps", exact=True).fill("2")
        self.page.get_by_role("button", name="Paint it").click()
        self.assertEqual(self.ids("#tasks"), before)
        sent[0].continue_()
        number = self.new(before)
        self.assertRegex(self.record(number)["task"]["image_url"], KEY)

    def test_what_is_no_sketch_is_refused_in_words_and_the_one_before_stays(self):
        self.chosen()
        wide = io.BytesIO()
        Image.new("1", (6000, 5000)).save(wide, "PNG")
        for content, said in (
            (b"a house, a lake", "the sketch is no PNG, JPEG or WebP file: convert it to one"),
            (b"", "the sketch is no PNG, JPEG or WebP file: convert it to one"),
            (jpeg()[:-2000], "the sketch ends before the picture does: upload it again"),
            (wide.getvalue(), "the sketch has 6000x5000 pixels, the limit is 25000000 in all"),
            (bytes((20 << 20) + 200_000), "the sketch has 20.2 MiB, the limit is 20 MiB: save it smaller"),
        ):
            with self.subTest(said):
                self.page.get_by_role("button", name="Take the sketch away").click()
                self.choose({"name": "a.png", "mimeType": "image/png", "buffer": content})
                expect(self.page.locator("#sketch-error")).to_contain_text(f"Not taken: {said}")
                expect(self.page.locator("#sketch-says")).to_have_text("drop or paste one")
                self.chosen()
                expect(self.page.locator("#sketch-error")).to_be_empty()
        before = self.page.locator("#sketch-preview").get_attribute("src")
        text = "() => { const carried = new DataTransfer(); carried.items.add(new File(['a house'], 'notes.txt')); return carried; }"
        self.page.locator("#order").dispatch_event("drop", {"dataTransfer": self.page.evaluate_handle(text)})
        expect(self.page.locator("#sketch-error")).to_contain_text("Not taken: the sketch is no PNG")
        self.assertEqual(self.page.locator("#sketch-preview").get_attribute("src"), before)
        self.expected = ["status of 422"]

    def test_a_strength_that_leaves_no_step_comes_back_in_the_functions_words(self):
        self.chosen()
        self.strength(0.05)
        number = self.paint(steps=4)
        expect(self.failure(number)).to_contain_text(re.compile("TASK_INVALID.*`strength` is 0.05, must leave a step", re.DOTALL))
        self.seen(self.failure(number).locator(".begun img"))


if __name__ == "__main__":
    unittest.main()
