"""The Dockerfile by hadolint; what is waived says so in the line above. And what a build of it sees."""

import re
import subprocess
import sys
import tomllib
import unittest
from pathlib import Path

import manifests

sys.path.insert(0, str(manifests.ROOT / "infra/image"))
import context  # noqa: E402


class Dockerfile(unittest.TestCase):
    def test_hadolint_has_nothing_to_say(self):
        hadolint = Path(sys.executable).with_name("hadolint")
        command = [hadolint, "--no-color", manifests.ROOT / "infra/image/Dockerfile"]
        linted = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual((0, ""), (linted.returncode, linted.stdout))

    def test_what_lambda_takes_is_built_without_attestations(self):
        # They make a list of manifests of the image, and Lambda takes one.
        for page in ("README.md", "docs/DEPLOY.md"):
            text = (Path(__file__).resolve().parents[2] / page).read_text()
            lines = [line for line in text.splitlines() if re.search(r"buildx build .*--target handler", line)]
            with self.subTest(page=page):
                self.assertTrue(any("--target handler-with-model --build-context model=" in line for line in lines))
                for line in lines:
                    self.assertIn("--provenance=false", line)
                    self.assertNotIn("--sbom", line)

    def test_every_build_says_for_which_machine(self):
        # On a machine with another processor the image would be one that no GPU instance can run.
        root = Path(__file__).resolve().parents[2]
        lines = [
            line
            for page in (root / "README.md", *sorted((root / "docs").glob("*.md")))
            for line in page.read_text().splitlines()
            if re.search(r"^docker (buildx )?build ", line)
        ]
        self.assertGreaterEqual(len(lines), 6)
        for line in lines:
            with self.subTest(line=line):
                self.assertIn("--platform linux/amd64 ", line)


class Context(unittest.TestCase):
    def test_a_build_sees_every_member_of_the_workspace_and_no_model_or_picture_of_the_tests(self):
        seen = set(context.files())
        members = tomllib.loads((manifests.ROOT / "Cargo.toml").read_text())["workspace"]["members"]
        self.assertLessEqual({"Cargo.toml", "Cargo.lock", *(f"{each}/Cargo.toml" for each in members)}, seen)
        self.assertIn("handler/diffusion/kernels/norm.cu", seen)
        unwanted = [path for path in seen if path.startswith(("docs/", "infra/", "tests/model/"))]
        self.assertEqual([], unwanted)


if __name__ == "__main__":
    unittest.main()
