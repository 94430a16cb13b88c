"""The switches of the studio page: what they break is seen, and every task still ends once."""

import re
import unittest

from playwright.sync_api import expect
from studio import Case


class Faults(Case):
    def setUp(self):
        super().setUp()
        self.addCleanup(self.lift)
        self.lift()

    def lift(self):
        """Whatever a test has broken works again, also if it failed."""
        for name in ("Drop webhooks", "Throttle SQS"):
            self.page.get_by_role("switch", name=name).uncheck()

    def ended(self, number):
        """The picture is there, and the ledger says that each task ended exactly once."""
        expect(self.figure(number)).to_be_visible()
        expect(self.count("in_flight")).to_have_text("0")
        expect(self.page.locator("#verdict")).to_contain_text("exactly once")
        expect(self.page.locator(f"#gallery > [data-id='{number}']")).to_have_count(1)
        self.assertEqual(self.count("repeats").text_content(), "0")

    def test_a_function_that_is_killed_in_the_middle_of_painting_loses_nothing(self):
        number = self.paint(steps=24)
        card = self.card(number)
        painting = "number => document.querySelector(`#tasks > [data-id='${number}'] progress`).value >= 25"
        self.page.wait_for_function(painting, arg=number)
        self.page.get_by_role("button", name="Kill the function").click()
        expect(card.locator(".says")).to_contain_text("back in the queue after receive 1")
        expect(self.page.locator("#faults")).to_contain_text(re.compile("killed [1-9]"))
        expect(card.locator(".state")).to_contain_text("receive 2")
        self.ended(number)

    def test_webhooks_that_are_dropped_are_told_again(self):
        switch = self.page.get_by_role("switch", name="Drop webhooks")
        switch.check()
        number = self.paint(steps=2)
        expect(self.card(number).locator(".says")).to_contain_text("webhook complete was answered 503")
        self.assertEqual(self.page.locator(f"#gallery > [data-id='{number}']").count(), 0)
        switch.uncheck()
        self.ended(number)

    def test_what_sqs_refuses_waits_in_rabbitmq(self):
        switch = self.page.get_by_role("switch", name="Throttle SQS")
        switch.check()
        number = self.paint(steps=1)
        card = self.card(number)
        expect(card.locator(".says")).to_contain_text("SQS did not take it")
        expect(card.locator("[data-station='relay']")).to_have_attribute("data-state", "held")
        expect(card.locator("[data-station='queue']")).to_have_attribute("data-state", "dark")
        switch.uncheck()
        self.ended(number)


if __name__ == "__main__":
    unittest.main()
