"""Every line of every `sh` block: bash can read it, and what it starts is here, or needs what the list below says.

It starts nothing but --help: a line of a binary is given to the binary itself, which says whether it understands the line.
"""

import re
import shlex
import shutil
import subprocess
import unittest

import configuration
import pages

binaries = configuration.binaries
# Programs of which a line cannot be tried here, and why.
NEEDS = {
    "aws": "an account",
    "curl": "a picture that was painted",
    "docker": "an engine for images",
    "kubectl": "a cluster",
    "ncu": "a GPU",
    "$EDITOR": "a person",
}
# Of the shell and of Debian.
PLAIN = {"printf", "cargo", "python3", "exiftool", "openssl", "mkdir"}
# The interpreters that docs/*.md make or name, whose first argument is a script.
PYTHON = re.compile(r"(?:\.cache/venv/bin/|target/goldens-venv/bin/)?python3?")
BINARY = re.compile(r"(?:target/(?:debug|release)/)?(relay|handler|ledger|load|toy-model)")
SCRIPTS = {"infra/local/demo": "demo"}
ASSIGNMENT = re.compile(r"\w+=.*")


def commands(block):
    """The commands of a block, as lists of words without variables before them."""
    for line in block.replace("\\\n", " ").splitlines():
        # A function's body is a command as well.
        line = re.sub(r"^\w+\(\) \{ (.*); \}$", r"\1", line)
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|>")
        lexer.whitespace_split, lexer.commenters = True, "#"
        words = []
        for word in (*lexer, "&&"):
            if word in ("&&", ";", "|", "||"):
                while words and (ASSIGNMENT.fullmatch(words[0]) or words[0] == "export"):
                    words.pop(0)
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def before(words, ends):
    """The words up to the first of some."""
    return words[: next((index for index, word in enumerate(words) if word in ends), len(words))]


class Commands(unittest.TestCase):
    def check(self, words):
        program, arguments = words[0], before(words[1:], {">", ">>", "&"})
        binary = BINARY.fullmatch(program)
        if binary or program in SCRIPTS:
            name = binary[1] if binary else SCRIPTS[program]
            self.assertIsNone(binaries.accepts(name, arguments))
        elif PYTHON.fullmatch(program) and arguments[0] != "-m":
            self.check_script(arguments)
        elif program == "cargo":
            self.check_cargo(arguments)
        elif program not in NEEDS:
            file = pages.ROOT / program
            self.assertTrue(file.is_file() or PYTHON.fullmatch(program) or shutil.which(program), "no such program")
            self.assertTrue("/" in program or program in PLAIN, "a program that nobody said is needed")
        for word in arguments:
            if re.match(r"(?:tests|infra|handler|relay|docs)/[\w./-]+$", word):
                self.assertTrue((pages.ROOT / word).exists() or word.startswith("docs/"), f"there is no {word}")

    def check_script(self, arguments):
        """A script of ours knows each option that it is given."""
        script = pages.ROOT / arguments[0]
        self.assertTrue(script.is_file(), f"there is no {arguments[0]}")
        for option in arguments[1:]:
            if option.startswith("--"):
                # An option may be made from a name of the script's, with - for _.
                name = option[2:].split("=")[0].replace("-", "[-_]")
                sources = "\n".join(each.read_text() for each in script.parent.glob("*.py"))
                self.assertTrue(re.search(rf"\b{name}\b", sources), f"{arguments[0]} knows no {option}")

    def check_cargo(self, arguments):
        """What cargo is to run is here: a binary understands its line, a filter fits a test."""
        rest = arguments[arguments.index("--") + 1 :] if "--" in arguments else []
        if arguments[0] == "run":
            self.assertIsNone(binaries.accepts(arguments[arguments.index("--bin") + 1], rest))
        elif arguments[0] == "test":
            own = before(arguments, {"--"})
            # The word after `--lib` or before `--` that is no option and no option's value.
            filters = [word for word in rest if re.fullmatch(r"[a-z_:]+", word)]
            filters += [word for at, word in enumerate(own) if at and word[0] != "-" and own[at - 1] == "--lib"]
            text = "\n".join((pages.ROOT / each).read_text() for each in pages.tree() if each.endswith(".rs"))
            for word in filters:
                self.assertTrue(word.split("::")[-1] in text, f"no test is called {word}")
        elif arguments[0] == "install":
            folder = arguments[arguments.index("--path") + 1]
            self.assertTrue((pages.ROOT / folder / "Cargo.toml").is_file(), f"there is no crate {folder}")
            self.assertIn("--locked", arguments, "cargo install takes other versions than those that are tested")
        else:
            self.assertEqual(arguments[0], "build")

    def test_bash_can_read_every_block(self):
        for page in pages.PAGES:
            for block in (each for each in pages.blocks(page) if each.language == "sh"):
                read = subprocess.run(
                    ["bash", "-n"], input=block.text, capture_output=True, text=True, timeout=10, check=False
                )
                with self.subTest(page=pages.name(page), block=block.text):
                    self.assertEqual(read.stderr, "")

    def test_every_line_starts_something_that_understands_it(self):
        seen = set()
        for page in pages.PAGES:
            for block in (each for each in pages.blocks(page) if each.language == "sh"):
                for words in commands(block.text):
                    seen.add(words[0])
                    with self.subTest(page=pages.name(page), line=shlex.join(words)):
                        self.check(words)
        unused = set(NEEDS) - seen
        self.assertEqual(unused, set(), "on the list of what cannot be tried, and on no page")


if __name__ == "__main__":
    unittest.main()
