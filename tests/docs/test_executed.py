"""Every line of every `sh` block is executed, here or by another test with values of its own. If not, a table says what it needs.

Refuses a line that is in no row, and a row that fits no line.
"""

import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

import pages
import test_commands

FOLDER = test_commands.binaries.FOLDER
# For one block; far more than it takes.
LIMIT = 300
# That whose metadata a page reads.
PICTURE = "handler generate --model tests/model/easel-tiny --prompt sea --steps 1 --out picture.webp"
# Executed as they stand on the page.
HERE = (
    r"\S*handler generate .*--out picture\.png",
    r"\S*handler lora inspect .*",
    r"\S*handler bench file",
    r"(handler|relay) completions bash .*",
    r"exiftool .*",
    r"openssl .*",
    r"printf .*",
)
# Executed elsewhere: by which file, and what in it starts the program.
ELSEWHERE = {
    r"cargo build --workspace --bins?\b.*": ("infra/local/test", "cargo build --quiet --workspace --bins"),
    r"cargo test --workspace --lib .*": ("infra/local/test", "--workspace --lib --bins --test goldens"),
    r"cargo test --workspace --test goldens.*": ("infra/local/test", "--workspace --lib --bins --test goldens"),
    r"cargo test --workspace --test cases.*": ("infra/local/test", "cargo test --workspace --test cases"),
    r"cargo run .*--bin ledger -- .*": ("tests/cases/ledger.rs", "ledger::{Fault, Options, Report, run}"),
    r"cargo run .*--bin load -- .*": ("tests/cases/load.rs", "e2e::load"),
    r"\S*python -m unittest discover .*": ("infra/local/test", "python -m unittest discover"),
    r"infra/aws/check": ("infra/local/test", "infra/aws/check"),
    r"infra/local/demo --studio": ("tests/studio/stack.py", '"--studio"'),
    r"infra/local/demo( --(style|model) .*)?": ("tests/docs/test_backend.py", '"--keep"'),
    r"\S*python tests/docs/backend\.py": ("tests/docs/test_backend.py", "run(SCRIPT"),
    r"\S*python tests/docs/by_sqs\.py": ("tests/docs/test_backend.py", "run(BY_SQS"),
    r"relay --declare": ("tests/src/line.rs", 'binary("relay")'),
    r"relay --check": ("tests/cases/relay_check.rs", '"--check"'),
    r"handler worker": ("tests/cases/worker.rs", '"worker"'),
    r"handler doctor": ("tests/cases/doctor.rs", '"doctor"'),
    r"handler weights pull .*": ("tests/cases/weights.rs", '"pull"'),
    r"handler weights verify .*": ("tests/cases/weights.rs", '"verify"'),
    r"python3 tests/bench/scaling\.py.*": ("tests/deploy/test_scaling.py", "scaling.choose("),
}
NEEDS = {
    r"aws .*": "an account",
    r"curl .*": "a demo that stays",
    r"docker .*": "an engine for images",
    r"kubectl .*": "a cluster",
    r"\$EDITOR .*": "a person",
    r"infra/local/test": "itself",
    r"(python3 tests/bench/(on_gpu|tasks)\.py|cargo test .*--features cuda|ncu) .*": "a GPU",
    r"\S*python3? tests/(bench/beside_diffusers|goldens/\w+)\.py .*": "torch and diffusers",
    r"\S*toy-model --size sd15-full .*|\S*handler bench lora .*": "1.7 GB of disk, and as much memory",
    r"\S*handler bench picture .*|python3 tests/bench/relay\.py .*": "an idle machine, or the figures mean nothing",
    r"cargo build --release .*|target/release/.*": "a release build, a quarter of an hour",
    r"\S*python tests/deploy/mutations\.py": "many minutes, for tests that see nothing change",
    r"\S*python tests/studio/screenshot\.py .*": "a person who looks at the picture",
}


def commands(text):
    """The commands of a block, as one line each. Quotes are not needed to recognise them."""
    return [" ".join(words) for words in test_commands.commands(text)]


def shell():
    """Every `sh` block with the name of its page."""
    blocks = [(pages.name(page), block) for page in pages.PAGES for block in pages.blocks(page)]
    return [(name, block.text) for name, block in blocks if block.language == "sh"]


def rows(command):
    """The rows that fit a command."""
    return [row for row in (*HERE, *ELSEWHERE, *NEEDS) if re.fullmatch(row, command, re.DOTALL)]


class Executed(unittest.TestCase):
    def test_every_line_is_executed_or_needs_something(self):
        used = set()
        for page, text in shell():
            for command in commands(text):
                with self.subTest(page=page, line=command):
                    self.assertEqual(len(rows(command)), 1, "a row for it is missing, or there are several")
                used.update(rows(command))
        self.assertEqual({*HERE, *ELSEWHERE, *NEEDS} - used, set(), "rows of no line")

    def test_what_is_executed_elsewhere_is_started_there(self):
        for file, start in ELSEWHERE.values():
            self.assertIn(start, (pages.ROOT / file).read_text(), file)

    def test_what_stands_on_the_pages_works_and_says_what_they_show(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "tests").symlink_to(pages.ROOT / "tests")
            (folder / "target").symlink_to(FOLDER.parent)
            self.run_in(folder, PICTURE)
            mine = [text for _, text in shell() if any(row in HERE for line in commands(text) for row in rows(line))]
            said = "".join(self.run_in(folder, text) for text in mine)
            self.assertTrue((folder / "easel.pem").read_text().startswith("-----BEGIN CERTIFICATE-----"))
        shown = [block.text for block in pages.blocks(pages.ROOT / "docs/SHELL.md") if block.text.startswith("file ")]
        self.assertEqual([text in said for text in shown], [True], said)

    def run_in(self, folder, text):
        """What a block says. It is to end with 0."""
        environment = {**os.environ, "PATH": f"{FOLDER}{os.pathsep}{os.environ['PATH']}"}
        # What cargo would build is what is tested.
        command = ["bash", "-c", f"set -e\ncargo() {{ :; }}\n{text}"]
        options = {"capture_output": True, "text": True, "timeout": LIMIT, "check": False}
        ran = subprocess.run(command, cwd=folder, env=environment, **options)
        self.assertEqual(ran.returncode, 0, f"{text}\n{ran.stderr}")
        return ran.stdout


if __name__ == "__main__":
    unittest.main()
