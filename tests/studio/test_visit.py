"""A first visit, a server that is gone, and text that pretends to be markup."""

import re
import signal
import unittest

from playwright.sync_api import expect
from stack import stack
from studio import SECOND, Case


class Visit(Case):
    def test_a_first_visit_explains_itself_in_three_sentences(self):
        welcome = self.page.locator("#welcome")
        expect(welcome).to_be_visible()
        sentences = re.split(r"(?<=[.!?])\s+", welcome.locator("p").text_content().strip())
        self.assertEqual(len(sentences), 3)
        self.page.get_by_role("button", name="Got it").click()
        expect(welcome).to_be_hidden()
        about = self.page.get_by_role("button", name="About this page")
        expect(about).to_be_focused()
        self.page.reload()
        expect(self.page.locator("#connection")).to_have_text("Live")
        expect(welcome).to_be_hidden()
        about.press("Enter")
        expect(welcome).to_be_visible()
        expect(self.page.locator("#welcome-title")).to_be_focused()
        about.press("Enter")
        expect(welcome).to_be_hidden()


class Gone(Case):
    def test_a_server_that_is_gone_is_said_and_what_was_seen_stays(self):
        self.page.clock.install()
        self.page.reload()
        expect(self.figure(499)).to_be_visible()
        demo = stack().demo
        self.addCleanup(demo.send_signal, signal.SIGCONT)
        # Its connections stay open, and nobody answers any more.
        demo.send_signal(signal.SIGSTOP)
        self.page.clock.run_for(60 * SECOND)
        gone = self.page.get_by_role("alert").filter(has_text="The stack does not answer")
        expect(gone).to_contain_text(re.compile(r"as of \d\d:\d\d:\d\d"))
        expect(self.page.locator("#connection")).to_have_text("Not connected")
        expect(self.figure(499)).to_be_visible()
        demo.send_signal(signal.SIGCONT)
        expect(self.page.locator("#connection")).to_have_text("Live")
        expect(gone).to_be_hidden()

    def test_what_could_not_be_sent_is_said(self):
        self.page.route("**/api/tasks", lambda route: route.abort())
        self.page.get_by_role("button", name="Paint it").click()
        expect(self.page.locator("#order-error")).to_have_text("Not published: the studio’s server does not answer")
        self.expected = ["net::ERR_FAILED"]


class Markup(Case):
    def test_markup_in_tags_names_and_errors_is_text(self):
        attack = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
        self.page.get_by_label("Tags, with commas").fill(attack)
        self.page.get_by_label("Artist’s name").fill(attack)
        number = self.paint(steps=1, seed=attack)
        expect(self.failure(number)).to_contain_text("seed")
        expect(self.failure(number)).to_contain_text(attack.split(",")[0])
        self.failure(number).get_by_role("button").click()
        expect(self.page.get_by_role("dialog")).to_contain_text(attack)
        self.page.keyboard.press("Escape")
        self.page.locator("#by-block > summary").click()
        self.page.get_by_label("As JSON").fill(attack)
        weighted = self.paint(steps=1)
        expect(self.failure(weighted).locator(".begun")).to_contain_text("<script>")
        self.page.reload()
        for each in (number, weighted):
            expect(self.failure(each)).to_be_visible()
        self.assertEqual(self.page.title(), "Easel studio")
        self.assertEqual(self.page.locator("script:not([src]), [onerror]").count(), 0)
        self.assertEqual(self.page.locator("img[src='x']").count(), 0)


if __name__ == "__main__":
    unittest.main()
