"""Every line of every `sh` block is executed, here or by another test with values of its own. If not, a table says what it needs.

A line that is in no row is an error, and so is a row that fits no line, a test that is not there, and an option that the test does not
give to the program.
"""

import os
import re
import subprocess
import tempfile
import unittest
from pathlib import Path

import pages
import started
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
    r"(handler|relay) man .*",
    r"python3 tests/bench/scaling\.py.*",
    r"python3 infra/aws/idle_cost\.py.*",
    r"exiftool .*",
    r"openssl .*",
    r"printf .*",
)
# Executed by the script of all tests, which may give more options.
SUITE = (
    r"cargo build --workspace --bins?\b.*",
    r"cargo test --workspace --(lib|test goldens|test cases)\b.*",
    r"\S*python -m unittest discover .*",
    r"infra/aws/check",
)
SUITE_FILE = pages.ROOT / "infra/local/test"
README_SCRIPTS = (
    "tests/docs/test_backend.py",
    "test_one_publishes_hears_of_progress_and_fetches_the_picture_and_the_other_needs_no_rabbitmq",
)
# Executed elsewhere with values of its own: by which test, which starts this program with these options.
ELSEWHERE = {
    r"cargo run .*--bin ledger -- .*--fault broker-kill": ("tests/cases/ledger.rs", "broker_kill_classic"),
    r"cargo run .*--bin ledger -- .*--fault sqs-throttle": ("tests/cases/ledger.rs", "sqs_throttle"),
    r"cargo run .*--bin load -- .*": (
        "tests/cases/load.rs",
        "every_task_ends_once_with_its_own_picture_whatever_fails",
    ),
    r"infra/local/demo --studio": (
        "tests/studio/test_server.py",
        "test_other_names_and_other_pages_are_refused",
    ),
    r"infra/local/demo( --(style|model) .*)?": README_SCRIPTS,
    r"\S*python tests/docs/(backend|by_sqs)\.py": README_SCRIPTS,
    r"relay --declare --cancel-queue .*": (
        "tests/cases/relay_cancels.rs",
        "a_task_is_cancelled_while_it_waits_behind_another",
    ),
    r"relay --declare": ("tests/cases/relay.rs", "sigterm_drains_the_relay"),
    r"relay --check": ("tests/cases/relay_check.rs", "a_check_names_what_is_wrong_and_takes_nothing"),
    r"handler worker": ("tests/cases/worker.rs", "it_paints_tells_deletes_and_ends_in_order"),
    r"handler doctor": (
        "tests/cases/doctor.rs",
        "where_all_is_well_every_line_says_so_and_nothing_is_left_behind",
    ),
    r"handler weights (pull(?!.* fp16)|verify) .*": (
        "tests/cases/weights.rs",
        "a_model_is_pulled_whole_without_pickles_and_verified",
    ),
    r"\S*handler weights convert .*|\S*handler generate --model narrow.*|\S*toy-model --size narrow .*": (
        "tests/cases/checkpoint.rs",
        "a_checkpoint_paints_what_the_folder_made_of_it_does",
    ),
    r"handler weights fetch .*": ("tests/cases/weights_s3.rs", "a_model_is_fetched_from_s3_by_hand_and_verified"),
}
NEEDS = {
    r"aws .*": "an account",
    r"curl .*": "a demo that stays",
    r"docker .*": "an engine for images",
    r"kubectl .*": "a cluster",
    r"mkdir .*": "what comes after it",
    r"\$EDITOR .*": "a person",
    r"handler weights pull .* fp16 .*": "the hub, which has such files",
    r"infra/local/test": "itself",
    r"(python3 tests/bench/(offload|on_gpu|tasks)\.py|cargo test .*--features cuda|ncu) .*": "a GPU",
    r"\S*python3? tests/(bench/beside_diffusers|goldens/\w+)\.py .*": "torch and diffusers",
    r"\S*toy-model (--size sd15-full|--safety-checker) .*|\S*handler bench lora .*": "1.7 GB of disk, and as much memory",
    r"\S*handler bench (picture|safety) .*|python3 tests/(bench/(relay|weights)|slowest)\.py .*": "an idle machine, or the figures mean nothing",
    r"cargo build --release .*|target/release/.*|cargo install .*|infra/local/package": "a release build",
    r"cargo test --workspace --exclude e2e --lib -- lanes": "nothing: the suite runs these tests with those of e2e",
    r"infra/local/bare .*": "root, debootstrap and seven minutes",
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
    return [row for row in (*HERE, *SUITE, *ELSEWHERE, *NEEDS) if re.fullmatch(row, command, re.DOTALL)]


def lines(table):
    """The words of every line that a row of a table fits, with the row."""
    found = [(words, row) for _, text in shell() for words in test_commands.commands(text) for row in rows(" ".join(words))]
    return [(words, row) for words, row in found if row in table]


def must_be_given(words):
    """The words that a test has to give: the program, its subcommands, options, and values that are words too."""
    program, rest = words[0], words[1:]
    if program == "cargo":
        program, rest = rest[rest.index("--bin") + 1], rest[rest.index("--") + 1 :]
    elif re.fullmatch(test_commands.PYTHON, program):
        program, rest = rest[0], rest[1:]
    # What has digits, capitals, slashes or dots is a value of the page.
    return [Path(program).name, *(word for word in rest if re.fullmatch(r"(--)?[a-z]+(-[a-z]+)*", word))]


def not_given(line, file, test):
    """The words that the test does not give, neither as they are nor by an option's variable."""
    texts, words = started.texts(file, test), must_be_given(line)
    binary = words[0] if words[0] in ("handler", "relay") else None
    below = test_commands.binaries.subcommand(words[1:]) if binary else ()
    known = test_commands.binaries.variables(binary, below) if binary else {}
    variables = {option.flag: name for name, option in known.items()}
    return [word for word in words if word not in texts and variables.get(word) not in texts]


def in_suite(line):
    """Whether the script of all tests starts this program with at least these options."""
    words = re.sub(r"--bin \w+", "--bins", " ".join(test_commands.before(line, {"--"}))).split(" ")
    return any(set(words) <= set(each.split(" ")) for each in commands(SUITE_FILE.read_text()))


def rust_tests():
    """The names of all tests of Rust, with the modules that their files are."""
    for each in pages.tree():
        if each.endswith(".rs"):
            module = re.sub(r"^.*?(src|tests|cases|goldens)/|(/mod|/main|lib)?\.rs$", "", each).replace("/", "::")
            for name, part in started.source(pages.ROOT / each).parts.items():
                if part.is_test:
                    yield f"{module}::{name}"


class Executed(unittest.TestCase):
    def test_every_line_is_executed_or_needs_something(self):
        used = set()
        for page, text in shell():
            for command in commands(text):
                with self.subTest(page=page, line=command):
                    self.assertEqual(len(rows(command)), 1, "a row for it is missing, or there are several")
                used.update(rows(command))
        self.assertEqual({*HERE, *SUITE, *ELSEWHERE, *NEEDS} - used, set(), "rows of no line")

    def test_what_is_executed_elsewhere_is_started_there_with_these_options(self):
        for line, row in lines(ELSEWHERE):
            with self.subTest(line=line):
                self.assertEqual(not_given(line, *ELSEWHERE[row]), [], "not what the test gives to the program")

    def test_a_test_that_is_not_there_and_an_option_that_is_not_given_are_found(self):
        file, test = "tests/cases/relay_check.rs", "a_check_names_what_is_wrong_and_takes_nothing"
        self.assertEqual(not_given(["relay", "--check"], file, test), [])
        self.assertEqual(not_given("relay --check --payload-bucket B --tls".split(), file, test), ["--tls"])
        self.assertEqual(not_given(["handler", "worker"], file, test), ["worker"])
        for missing in ("a_check_that_nobody_wrote", "relay"):
            with self.assertRaises(LookupError):
                started.texts(file, missing)

    def test_the_script_of_all_tests_starts_what_it_is_said_to_and_filters_fit_tests(self):
        tests = list(rust_tests())
        for line, _ in lines(SUITE):
            with self.subTest(line=line):
                self.assertTrue(in_suite(line), "infra/local/test does not run it")
                for word in (each for each in line[len(test_commands.before(line, {"--"})) :] if each[0] != "-"):
                    self.assertTrue(any(word in each for each in tests), f"no test is called {word}")
        self.assertFalse(in_suite("cargo test --workspace --examples".split()))

    def test_what_stands_on_the_pages_works_and_says_what_they_show(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for each in ("tests", "infra"):
                (folder / each).symlink_to(pages.ROOT / each)
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
