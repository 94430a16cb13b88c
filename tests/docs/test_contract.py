"""The README's tables against the published contract: the names of fields, not their meaning."""

import json
import re
import unittest

import pages

README = pages.ROOT / "README.md"
CONTRACT = pages.ROOT / "docs/contract"


def section(heading):
    """The text under a heading of the README."""
    return README.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


def names(schema):
    """The fields of an object, and of the objects in it."""
    found = set()
    for name, field in schema.get("properties", {}).items():
        found |= {name} | names(field)
    return found


class Contract(unittest.TestCase):
    def test_the_table_of_the_task_has_the_fields_that_are_read(self):
        read = set(json.loads((CONTRACT / "task.schema.json").read_text())["properties"])
        cells = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \|", section("The task"), re.MULTILINE)
        told = set(re.findall(r"`(\w+)`", "".join(cells)))
        self.assertGreater(len(read), 15)
        self.assertEqual(read, told)

    def test_the_table_of_the_webhooks_has_the_fields_that_are_written(self):
        schemas = json.loads((CONTRACT / "webhooks.openapi.json").read_text())["components"]["schemas"]
        written = set().union(*map(names, schemas.values()))
        table = "".join(re.findall(r"^\| `.*$", section("The webhooks"), re.MULTILINE))
        told = set(re.findall(r"\"(\w+)\"", table)) | {"result_urls"}
        self.assertGreater(len(written), 10)
        self.assertEqual(written, told)
        self.assertIn("`result_urls`", table)


if __name__ == "__main__":
    unittest.main()
