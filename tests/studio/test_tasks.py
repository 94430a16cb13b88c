"""What the page shows of a task: previews, its end by a wish, its size, its times, and what the parts say meanwhile."""

import re
import unittest

from playwright.sync_api import expect
from studio import Case

# Far longer than the tests wait before they cancel it.
LONG = 120


class Cancel(Case):
    def test_one_task_is_cancelled_while_it_waits_and_one_while_it_is_painted(self):
        before = int(self.count("cancelled").text_content())
        painted = self.paint(steps=LONG)
        waiting = self.paint(steps=2)
        self.painting(painted)
        self.cancel(waiting)
        expect(self.card(waiting).locator(".says")).to_contain_text("it ends when the function gets it")
        expect(self.card(waiting).get_by_role("button", name="Cancel task")).to_have_attribute("aria-disabled", "true")
        self.assertIsNone(self.record(painted)["end"], "the cancel waited behind the task that is painted")
        self.cancel(painted)
        expect(self.failure(painted)).to_contain_text(re.compile(r"CANCELLED.*at \d+ %", re.DOTALL))
        expect(self.failure(waiting)).to_contain_text(re.compile("CANCELLED.*before it was painted", re.DOTALL))
        self.assertLess(self.record(painted)["progress"][-1]["percent"], 90)
        self.assertEqual(self.record(waiting)["progress"], [])
        expect(self.count("cancelled")).to_have_text(str(before + 2))
        expect(self.count("in_flight")).to_have_text("0")
        expect(self.page.locator("#verdict")).to_contain_text("exactly once")
        expect(self.part("relay")).to_contain_text(re.compile("markers [2-9]"))
        self.assertIn("Cancelled after", self.page.evaluate("heard")[-1])
        self.failure(waiting).get_by_role("button").click()
        way = self.page.get_by_role("dialog").locator(".way")
        expect(way).to_contain_text("S3 has the marker that the function looks for")
        expect(way).to_contain_text("webhook cancelled was taken")


class Preview(Case):
    def test_a_preview_is_seen_before_the_picture_and_details_show_them_all(self):
        # Looks at each frame of the browser, in which the preview's size must be known while there is no picture.
        seen = """number => {
          const image = document.querySelector(`#tasks > [data-id='${number}'] .frame img[data-kind='preview']`);
          return image?.checkVisibility() && !document.querySelector(`#gallery > [data-id='${number}']`) && image.naturalWidth;
        }"""
        number = self.paint(steps=40)
        image = self.card(number).locator(".frame img")
        self.assertEqual(self.page.wait_for_function(seen, arg=number).json_value(), 64)
        expect(self.figure(number)).to_be_visible()
        expect(image).to_have_attribute("data-kind", "picture")
        self.figure(number).get_by_role("button").click()
        strip = self.page.get_by_role("dialog").locator(".strip img")
        self.assertEqual(strip.count(), len([each for each in self.record(number)["progress"] if each["preview"] is not None]))
        self.assertEqual(strip.count(), 9)
        for width in strip.evaluate_all("all => Promise.all(all.map((each) => each.decode().then(() => each.naturalWidth)))"):
            self.assertEqual(width, 64)


class Size(Case):
    def order(self, width, height):
        self.sized(width, height)
        return self.paint(steps=1)

    def test_a_picture_has_the_width_and_the_height_that_were_asked_for(self):
        number = self.order("384", "256")
        self.figure(number).get_by_role("button").click()
        details = self.page.get_by_role("dialog")
        image = details.locator(".left > img")
        self.assertEqual(image.evaluate("image => image.decode().then(() => [image.naturalWidth, image.naturalHeight])"), [384, 256])
        expect(details.locator(".pairs").first).to_contain_text("384×256")
        details.get_by_role("button", name="Use these settings").click()
        expect(self.page.get_by_label("Width", exact=True)).to_have_value("384")

    def test_a_wrong_width_comes_back_as_a_failure_that_names_it(self):
        number = self.order("100", "256")
        expect(self.failure(number)).to_contain_text(re.compile("TASK_INVALID.*`width` is 100", re.DOTALL))


class Told(Case):
    def test_the_chart_of_a_task_has_the_numbers_of_the_webhook_and_of_the_functions_log(self):
        self.page.get_by_text("More settings").click()
        self.page.get_by_label("Scheduler").select_option("euler")
        number = self.paint(steps=3)
        expect(self.figure(number)).to_be_visible()
        chart = self.card(number).locator(".stages")
        read = "all => Object.fromEntries(all.map((each) => [each.querySelector('i').dataset.stage, Number(each.dataset.ms)]))"
        expect(chart.locator("li").first).to_be_visible()
        listed = chart.locator("li").evaluate_all(read)
        self.page.wait_for_function("async number => (await import('/store.js')).store.tasks.get(number).stages.length", arg=int(number))
        record = self.record(number)
        self.assertEqual(listed, record["metadata"]["timings"])
        self.assertEqual(set(listed), {"queue", "fetch", "wait", "denoise", "decode", "upload"})
        logged = dict(record["stages"])
        for stage in ("fetch", "wait", "denoise", "decode", "upload"):
            self.assertEqual(listed[stage], logged[stage], stage)
        drawn = chart.locator("rect").evaluate_all("all => all.map((each) => [Number(each.dataset.ms), each.width.baseVal.value])")
        self.assertEqual([ms for ms, _ in drawn], list(listed.values()))
        self.assertAlmostEqual(sum(width for _, width in drawn), 1000, places=1)
        self.assertGreater(dict(drawn)[listed["denoise"]], dict(drawn)[listed["upload"]])
        self.figure(number).get_by_role("button").click()
        told = self.page.get_by_role("dialog").locator(".told")
        expect(told).to_contain_text("euler")
        expect(told).to_contain_text("lora_weights.safetensors, strength 1, SHA-256")
        expect(told).to_contain_text("signed for 60 min 0 s; without the signature S3 answers 403")

    def test_warnings_are_on_the_card(self):
        self.page.get_by_label("Artist’s name").fill("Ada \U0001f980")
        number = self.paint(steps=1)
        expect(self.card(number).locator(".warnings")).to_contain_text("no glyph in `artist_name`")

    def test_the_histogram_has_every_picture_of_the_run(self):
        number = self.paint(steps=1)
        expect(self.figure(number)).to_be_visible()
        complete = int(self.count("complete").text_content())
        expect(self.page.locator("[data-fact='pictures']")).to_have_text(str(complete))
        counts = self.page.locator("#latency-chart .bin").evaluate_all("all => all.map((each) => Number(each.dataset.count))")
        self.assertEqual(sum(counts), complete)
        script = """async (values) => { const { bins, percentile } = await import('/histogram.js');
                    return [bins(values), percentile(values, 50), percentile(values, 95)]; }"""
        found, median, high = self.page.evaluate(script, [1200, 1900, 2000, 2100, 6999])
        self.assertEqual((found[0], found[1]["count"]), ({"from": 1000, "to": 1500, "count": 1}, 1))
        self.assertEqual((len(found), found[-1]), (12, {"from": 6500, "to": 7000, "count": 1}))
        self.assertEqual((sum(bin["count"] for bin in found), median, high), (5, 2000, 6999))
        alone = self.page.evaluate(script, [700])[0]
        self.assertEqual([bin["count"] for bin in alone], [0, 0, 0, 1, 0, 0, 0])
        self.assertEqual((alone[3]["from"], alone[-1]["to"]), (700, 1100))
        self.assertEqual([bin["from"] for bin in self.page.evaluate(script, [0])[0]], [0, 100, 200, 300, 400, 500, 600])


class Parts(Case):
    def test_queues_and_workers_say_what_they_do_and_a_reload_changes_nothing(self):
        expect(self.part("relay")).to_contain_text(re.compile("ready; sent"))
        expect(self.part("function")).to_contain_text("idle")
        painted = self.paint(steps=LONG)
        self.painting(painted)
        behind = [self.paint(steps=1) for _ in range(2)]
        expect(self.part("sqs").locator(".value")).to_have_text("2 waiting")
        expect(self.part("sqs")).to_contain_text("1 in flight, 0 dead")
        expect(self.part("function")).to_contain_text(re.compile(rf"working #{painted}.*pid \d+, \d+ MiB", re.DOTALL))
        self.page.reload()
        for number in (painted, *behind):
            expect(self.card(number)).to_be_visible()
        expect(self.card(painted).locator(".frame img")).to_have_attribute("data-kind", "preview")
        for number in (*behind, painted):
            self.cancel(number)
        for number in (painted, *behind):
            expect(self.failure(number)).to_contain_text("CANCELLED")
        expect(self.part("sqs").locator(".value")).to_have_text("0 waiting")
        expect(self.part("function")).to_contain_text("idle")

    def test_the_page_lists_what_the_stack_is_set_to_and_why(self):
        self.page.get_by_text("What this stack is set to").click()
        settings = self.page.locator("#settings")
        for line in ("EASEL_WEBHOOK_DETAIL=full", "EASEL_PROGRESS_PREVIEW=true", "AMQP_CANCEL_QUEUE=image_generation.cancel"):
            expect(settings).to_contain_text(line)


class Series(Case):
    def test_one_prompt_and_one_seed_are_painted_in_every_style_side_by_side(self):
        self.page.get_by_label("Steps", exact=True).fill("1")
        self.page.get_by_label("Seed", exact=True).fill("7")
        styles = self.page.locator("#styles b").all_text_contents()
        self.assertGreater(len(styles), 1)
        self.page.get_by_role("button", name="Every style").click()
        figures = self.page.locator("#series > li")
        # The series of an earlier test may have as many pictures.
        expect(self.page.locator("#series-same")).to_have_text("seed 7 · steps 1 · lighthouse, sunset, sea · size 512×512")
        expect(figures).to_have_count(len(styles))
        self.assertEqual(figures.locator("b").all_text_contents(), styles)
        expect(figures.locator("[data-kind='picture']")).to_have_count(len(styles))
        pictures = figures.locator("img").evaluate_all("all => all.map((each) => each.src)")
        self.assertEqual(len(set(pictures)), len(styles))
        self.page.get_by_role("button", name="Compare closely").click()
        expect(self.page.get_by_role("dialog").locator("figure")).to_have_count(len(styles))
        self.page.keyboard.press("Escape")
        self.page.reload()
        expect(figures).to_have_count(len(styles))

    def test_what_is_left_of_a_series_is_cancelled_at_once(self):
        self.page.get_by_label("Steps", exact=True).fill(str(LONG))
        self.page.get_by_role("button", name="Four seeds").click()
        figures = self.page.locator("#series > li")
        expect(figures.locator("[data-kind='preview']:not([hidden])")).to_have_count(1)
        self.page.get_by_role("button", name="Cancel the rest").click()
        expect(figures.filter(has_text="Cancelled after")).to_have_count(4)
        expect(figures.locator("b").first).to_have_text("Seed 42")
        expect(self.page.get_by_role("button", name="Cancel the rest")).to_be_hidden()


if __name__ == "__main__":
    unittest.main()
