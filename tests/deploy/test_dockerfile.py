"""The Dockerfile by hadolint; what is waived says so in the line above."""

import subprocess
import sys
import unittest
from pathlib import Path

import manifests


class Dockerfile(unittest.TestCase):
    def test_hadolint_has_nothing_to_say(self):
        hadolint = Path(sys.executable).with_name("hadolint")
        command = [hadolint, "--no-color", manifests.ROOT / "infra/image/Dockerfile"]
        linted = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual((0, ""), (linted.returncode, linted.stdout))


if __name__ == "__main__":
    unittest.main()
