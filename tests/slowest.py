#!/usr/bin/env python3
"""Runs tests one at a time and prints the slowest, with their times.

    tests/slowest.py --workspace --lib --bins --test goldens      # the words are those of cargo test
    tests/slowest.py --workspace --test cases

One at a time, because then the time between two of libtest's lines is that of one test; stable Rust reports no times itself.
The first case of a stack includes its start.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COUNT = 10


def programs(words):
    """The test programs that cargo builds for these words, each with the folder that it runs in."""
    command = ["cargo", "test", *words, "--no-run", "--message-format", "json-render-diagnostics"]
    built = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    return [
        (message["executable"], Path(message["manifest_path"]).parent)
        for message in messages if message.get("executable") and message["profile"]["test"]
    ]


def times(program, folder):
    """Seconds of each test, by name with that of its program; and what failed."""
    with subprocess.Popen([program, "--test-threads=1"], cwd=folder, stdout=subprocess.PIPE, text=True, bufsize=1) as running:
        seconds, failed, since = {}, [], time.monotonic()
        for line in running.stdout:
            now = time.monotonic()
            if line.startswith("test ") and " ... " in line:
                name = line.split()[1]
                seconds[f"{Path(program).name.rpartition('-')[0]}: {name}"] = now - since
                failed += [name] if line.endswith("FAILED\n") else []
            since = now
    return seconds, failed or [program] * bool(running.returncode)


def main():
    seconds, failed = {}, []
    for program, folder in programs(sys.argv[1:]):
        found, wrong = times(program, folder)
        seconds |= found
        failed += wrong
    slowest = sorted(seconds.items(), key=lambda item: -item[1])[:COUNT]
    print("| test | seconds |\n| --- | --- |")
    for name, took in slowest:
        print(f"| {name} | {took:.1f} |")
    print(f"\n{len(seconds)} tests, {sum(seconds.values()):.0f} s")
    if failed:
        sys.exit(f"tests failed, whose times say nothing: {', '.join(failed)}")


if __name__ == "__main__":
    main()
