"""What the pages point to exists: links, anchors, files, and the tests that tables name beside a file."""

import re
import unittest

import pages

# A path by its ending, wherever it lies; other endings are also those of files that are no part of the repository.
SOURCES = (".rs", ".py", ".md", ".yaml", ".cu")
# Written by a command, by a user, or standing for any name.
NOT_HERE = re.compile(r"packaged\.yaml|my-task\.json|(?:.*/)?NAME\..*")
METRIC = re.compile(r"(?:relay|easel)_\w+_(?:seconds|bytes|total|batches|messages|ready)")


def paths(page):
    """What stands in code and looks like a path of this repository."""
    tops = {each for each in pages.tree() if "/" not in each}
    for token in re.findall(r"`([^`\n]+)`", pages.prose(page)):
        if re.fullmatch(r"[\w.][\w./-]*", token) and not NOT_HERE.fullmatch(token):
            if token.split("/")[0] in tops and ("/" in token or "." in token) or token.endswith(SOURCES):
                yield token


class Links(unittest.TestCase):
    def test_every_link_leads_somewhere(self):
        for page in pages.PAGES:
            for target in pages.links(page):
                path, _, anchor = target.partition("#")
                other = (page.parent / path).resolve() if path else page
                with self.subTest(page=pages.name(page), link=target):
                    self.assertTrue(other.exists(), "there is no such file")
                    if anchor:
                        self.assertIn(anchor, pages.anchors(other))

    def test_every_path_that_is_named_exists(self):
        for page in pages.PAGES:
            for path in paths(page):
                with self.subTest(page=pages.name(page), path=path):
                    self.assertTrue(pages.lookup(path), "there is no such file or folder")

    def test_every_test_that_is_named_beside_its_file_is_in_it(self):
        found = 0
        for page in pages.PAGES:
            for path, name in re.findall(r"`([\w./-]+\.(?:rs|py))` `(\w+)`", pages.prose(page)):
                found += 1
                with self.subTest(page=pages.name(page), path=path, name=name):
                    texts = [(pages.ROOT / each).read_text() for each in pages.lookup(path)]
                    self.assertTrue(any(re.search(rf"\b{name}\b", text) for text in texts))
        self.assertGreater(found, 20)

    def test_every_test_that_is_named_alone_exists(self):
        sources = [pages.ROOT / each for each in pages.tree() if each.endswith((".rs", ".py"))]
        text = "\n".join(each.read_text() for each in sources)
        for page in pages.PAGES:
            # So long a name is a sentence: only tests have those, and metrics.
            for name in re.findall(r"`([a-z0-9]+(?:_[a-z0-9]+){3,})`", pages.prose(page)):
                if not METRIC.fullmatch(name):
                    with self.subTest(page=pages.name(page), name=name):
                        self.assertTrue(re.search(rf"\b(?:fn|def) {name}\b", text), "there is no such test")


if __name__ == "__main__":
    unittest.main()
