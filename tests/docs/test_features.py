"""No dependency is built twice: programs, all tests, and the unit tests alone ask for the same features of each."""

import subprocess
import unittest

from pages import ROOT

BUILDS = {
    "cargo build --workspace": ["--edges", "features,normal,build"],
    "cargo test --workspace": ["--edges", "features,normal,build,dev"],
    "cargo test --workspace --exclude e2e": ["--exclude", "e2e", "--edges", "features,normal,build,dev"],
}


def features(options: list[str]) -> dict[str, set[str]]:
    """The features of each package, a set for each of its builds."""
    command = ["cargo", "tree", "--locked", "--workspace", *options, "--prefix", "none", "--format", "{p}|{f}"]
    lines = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    found: dict[str, set[str]] = {}
    for package, separator, names in (line.removesuffix(" (*)").partition("|") for line in lines):
        if separator:
            found.setdefault(package, set()).add(names)
    return found


class Features(unittest.TestCase):
    def test_programs_and_tests_ask_for_the_same(self) -> None:
        builds = {name: features(options) for name, options in BUILDS.items()}
        programs = builds.pop("cargo build --workspace")
        self.assertGreater(len(programs), 300)
        for name, build in builds.items():
            for package in build.keys() & programs.keys():
                self.assertEqual(build[package], programs[package], f"{name}: {package} would be built again")


if __name__ == "__main__":
    unittest.main()
