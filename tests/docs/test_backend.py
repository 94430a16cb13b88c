"""The README's scripts are those in this folder, and work against the demo's stack: real RabbitMQ, relay and function."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path

import configuration
import pages

SCRIPT = Path(__file__).with_name("backend.py")
BY_SQS = Path(__file__).with_name("by_sqs.py")
DEMO = configuration.binaries.FOLDER / "demo"
# From the demo's own first task to an end; far more than it takes.
LIMIT = 300
# The demo's own first task, which nobody waits for longer than needed.
TASK = {
    "generation_id": 500,
    "style_id": 10,
    "lora_model_url": "$LORA",
    "prompt_tags": ["sea"],
    "artist_name": "Ada",
    "webhook_url": "$WEBHOOK",
    "num_inference_steps": 1,
}


def exported(said):
    """The variables that the demo tells other programs to have."""
    line = next(line for line in said.splitlines() if line.startswith("  export "))
    return dict(word.split("=", 1) for word in shlex.split(line)[1:])


def run(script, folder, **environment):
    """A script's answer, from a folder that takes what it writes."""
    command = [sys.executable, script]
    started = {**os.environ, **environment}
    return subprocess.run(command, cwd=folder, env=started, capture_output=True, text=True, timeout=LIMIT, check=False)


def start(folder):
    """A demo that stays, once it has said where its parts are; who reads on; and what it said."""
    (folder / "task.json").write_text(json.dumps(TASK))
    model = pages.ROOT / "tests/model"
    demo = subprocess.Popen(
        [
            *(DEMO, "--keep", "--out", folder, "--task", folder / "task.json"),
            *("--model", model / "easel-tiny", "--styles", model / "styles"),
            *("--lora", model / "styles/halftone-kohya.safetensors"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    alarm = threading.Timer(LIMIT, demo.kill)
    alarm.start()
    said = []
    for line in demo.stdout:
        said.append(line)
        if "--to" in line:
            break
    alarm.cancel()
    # What it says from now on must not fill the pipe.
    rest = threading.Thread(target=demo.stdout.read, daemon=True)
    rest.start()
    return demo, rest, "".join(said)


class Backend(unittest.TestCase):
    def test_the_readme_shows_the_files(self):
        shown = [block.text for block in pages.blocks(pages.ROOT / "README.md") if block.language == "python"]
        self.assertEqual(shown, [SCRIPT.read_text(), BY_SQS.read_text()])

    def test_one_publishes_hears_of_progress_and_fetches_the_picture_and_the_other_needs_no_rabbitmq(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            demo, rest, said = start(folder)
            try:
                self.assertTrue((folder / "stack.json").is_file(), said)
                ended = run(SCRIPT, folder, **exported(said))
                self.assertEqual((ended.returncode, ended.stderr), (0, ""))
                lines = ended.stdout.splitlines()
                self.assertEqual([line.split()[0] for line in lines], ["progress"] * 5 + ["complete"], ended.stdout)
                self.assertEqual((folder / "gen_501.jpg").read_bytes()[:3], b"\xff\xd8\xff")
                ended = run(BY_SQS, folder, **exported(said))
                self.assertEqual((ended.returncode, ended.stderr), (0, ""))
                self.assertRegex(ended.stdout, r"^\d+ bytes\n$")
                more = ["--to", folder / "stack.json", "--style", "halftone", "--tags", "red heart,white background"]
                ended = subprocess.run([DEMO, *more], capture_output=True, text=True, timeout=LIMIT, check=False)
                self.assertEqual((ended.returncode, ended.stderr), (0, ""))
                self.assertIn("task published to RabbitMQ", ended.stdout)
            finally:
                demo.send_signal(signal.SIGINT)
                demo.wait(LIMIT)
                rest.join()
                demo.stdout.close()


if __name__ == "__main__":
    unittest.main()
