"""Weights of a style by block: sliders and JSON, what arrives in the task, and what is refused."""

import re
import unittest

from playwright.sync_api import expect
from studio import Case

NONE = "none"


class Weights(Case):
    def setUp(self):
        super().setUp()
        self.sized(256, 256)
        self.page.locator("#by-block > summary").click()
        self.json = self.page.get_by_label("As JSON")

    def slider(self, part):
        """That of a part of the model."""
        return self.page.get_by_label(re.compile(f"^{part}:"))

    def shown(self):
        """The values that the sliders have."""
        return [self.slider(part).input_value() for part in ("Down", "Mid", "Up")]

    def weighted(self):
        """Paints; gives the task's number, its weights and the pixels."""
        record, picture = self.painted(steps=4)
        return record["id"], record["task"].get("lora_weights", NONE), picture.tobytes()

    def test_weights_arrive_in_the_task_and_change_the_picture_and_without_any_the_task_has_none(self):
        number, weights, plain = self.weighted()
        self.assertEqual(weights, NONE)
        expect(self.card(number).locator(".begun")).to_have_count(0)
        self.slider("Up").fill("0")
        self.slider("Down").fill("0.5")
        expect(self.page.locator("#weights-says")).to_have_text("down 0.5, up 0")
        number, weights, changed = self.weighted()
        self.assertEqual(weights, {"unet": {"down": 0.5, "up": 0}})
        self.assertNotEqual(changed, plain)
        expect(self.card(number).locator(".begun")).to_have_text("weights down 0.5, up 0")
        self.figure(number).get_by_role("button").click()
        details = self.page.get_by_role("dialog")
        expect(details.locator(".pairs").first).to_contain_text("Weights by blockdown 0.5, up 0")
        self.page.keyboard.press("Escape")
        for part in ("Up", "Down"):
            self.slider(part).fill("1")
        expect(self.json).to_have_value("")
        expect(self.page.locator("#weights-says")).to_be_empty()
        number, weights, again = self.weighted()
        self.assertEqual((weights, again), (NONE, plain))
        self.figure(number).get_by_role("button").click()
        details.get_by_role("button", name="Use these settings").click()
        self.assertEqual(self.shown(), ["1", "1", "1"])

    def test_json_and_sliders_are_one_value(self):
        for text, shown, moved in (
            ("", ["1", "1", "1"], {"unet": {"mid": 2}}),
            ('{"unet": 0.5}', ["0.5", "0.5", "0.5"], {"unet": {"down": 0.5, "mid": 2, "up": 0.5}}),
            ('{"text_encoder": 0, "unet": {"down": 0.25}}', ["0.25", "1", "1"], {"text_encoder": 0, "unet": {"down": 0.25, "mid": 2}}),
            ('{"unet": {"up": {"block_1": [1, 0]}}}', ["1", "1", "1"], {"unet": {"mid": 2, "up": {"block_1": [1, 0]}}}),
        ):
            with self.subTest(text):
                self.json.fill(text)
                self.assertEqual(self.shown(), shown)
                self.slider("Mid").fill("2")
                self.assertEqual(self.page.evaluate("text => JSON.parse(text)", self.json.input_value()), moved)
                order = "async () => (await import('/weights.js')).order().lora_weights"
                self.assertEqual(self.page.evaluate(order), moved)

    def test_weights_that_are_refused_come_back_in_the_functions_words(self):
        for text, said in (
            ("up 0", "`lora_weights` is a string, must be an object with text_encoder and unet"),
            ('{"unet": {"mid": 11}}', "`lora_weights.unet.mid` is 11, must be a number from -10 to 10"),
            ('{"unet": {"up": {"block_9": 1}}}', "`lora_weights`: unet.up.block_9 is no block with attention of this model"),
        ):
            with self.subTest(text):
                self.json.fill(text)
                number = self.paint(steps=1)
                expect(self.failure(number)).to_contain_text(said)
                expect(self.failure(number).locator(".begun")).to_contain_text("weights")

    def test_every_task_of_a_series_has_the_weights(self):
        self.slider("Up").fill("0.5")
        self.page.get_by_label("Steps", exact=True).fill("1")
        for task in self.series("Every style", self.page.locator("#styles label").count()):
            self.assertEqual(task["lora_weights"], {"unet": {"up": 0.5}})
        expect(self.page.locator("#series-same")).to_contain_text("weights by block up 0.5")


if __name__ == "__main__":
    unittest.main()
