"""The README's contract against the code that reads tasks and writes webhooks: the names of fields, not their meaning."""

import re
import unittest

import pages

README = pages.ROOT / "README.md"


def section(heading):
    """The text under a heading of the README."""
    return README.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


def source(path):
    """A source file without its tests."""
    return (pages.ROOT / path).read_text().split("#[cfg(test)]")[0]


class Contract(unittest.TestCase):
    def test_the_table_of_the_task_has_the_fields_that_are_read(self):
        read = set(re.findall(r"\bfields\.\w+\(\"(\w+)\"", source("handler/src/task.rs")))
        cells = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section("The task"), re.MULTILINE)
        told = set(re.findall(r"`(\w+)`", "".join(cells)))
        self.assertGreater(len(read), 15)
        self.assertEqual(read, told)

    def test_the_table_of_the_webhooks_has_the_fields_that_are_written(self):
        written = set(re.findall(r"\"(\w+)\"(?:: |\] = )", source("handler/src/webhook/event.rs")))
        table = "".join(re.findall(r"^\| `.*$", section("The webhooks"), re.MULTILINE))
        told = set(re.findall(r"\"(\w+)\"", table)) | {"result_urls"}
        self.assertGreater(len(written), 10)
        self.assertEqual(written, told)
        self.assertIn("`result_urls`", table)


if __name__ == "__main__":
    unittest.main()
