"""No two modules of a crate need each other: whoever reads one can stop at what it uses."""

import pathlib
import tempfile
import unittest

import modules
from pages import ROOT


class Cycles(unittest.TestCase):
    def test_no_module_is_used_by_what_it_uses(self):
        crates = modules.crates(ROOT)
        self.assertGreater(len(crates), 6)
        for source in crates:
            with self.subTest(crate=str(source.relative_to(ROOT))):
                found = modules.cycle(modules.uses(source))
                self.assertIsNone(found, " -> ".join(found or []))

    def test_a_cycle_is_found_in_each_way_of_writing_it(self):
        ways = [
            ("use crate::b::Thing;", "use crate::{\n    a::{self, Other},\n};"),
            ("use super::b;", "pub(crate) use super::a::Other as Another;"),
            ("fn f() { crate::b::g(); }", "fn g() { super::a::f(); }"),
        ]
        for first, second in ways:
            with self.subTest(first), tempfile.TemporaryDirectory() as folder:
                source = pathlib.Path(folder)
                (source / "a.rs").write_text(first)
                (source / "b.rs").write_text("// crate::a\n")
                self.assertIsNone(modules.cycle(modules.uses(source)))
                (source / "b.rs").write_text(second)
                self.assertEqual(modules.cycle(modules.uses(source)), ["a", "b", "a"])
                (source / "b.rs").write_text("fn g() {}\n#[cfg(test)]\nmod tests {\n    use crate::a;\n}\n")
                self.assertIsNone(modules.cycle(modules.uses(source)))


if __name__ == "__main__":
    unittest.main()
