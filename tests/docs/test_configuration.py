"""docs/CONFIGURATION.md and the README's table against --help of the binaries."""

import difflib
import re
import unittest

import configuration


class Configuration(unittest.TestCase):
    def test_the_page_and_the_readme_say_what_help_says(self):
        for page, new in [(configuration.PAGE, configuration.page()), (configuration.README, configuration.readme())]:
            kept = page.read_text()
            difference = "\n".join(difflib.unified_diff(kept.splitlines(), new.splitlines(), "page", "--help", n=0))
            with self.subTest(page=page.name):
                self.assertTrue(kept == new, f"\n{difference}\nTo mend it: {configuration.COMMAND}")

    def test_no_option_and_no_variable_of_help_is_left_out(self):
        for binary in ("relay", "handler"):
            for words in configuration.commands(binary):
                text, section = configuration.binaries.manual(binary, words), configuration.section(binary, words)
                if configuration.shares(binary, words):
                    section += configuration.section(*configuration.SHARED)
                with self.subTest(command=(binary, *words)):
                    flags = set(re.findall(r"^ {2,6}(?:-\w, )?(--[\w-]+)", text, re.MULTILINE))
                    shown = set(re.findall(r"^\| `(--[\w-]+)", section, re.MULTILINE))
                    self.assertEqual(flags - configuration.EVERYWHERE, shown)
                    for variable in re.findall(r"\[env: (\w+)", text):
                        self.assertIn(f"| `{variable}` |", section)


if __name__ == "__main__":
    unittest.main()
