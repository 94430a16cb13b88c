#!/usr/bin/env python3
"""Throughput, processor time and memory of the relay and of the straightforward Python bridges, in one run.

    cargo build --release -p relay -p e2e --bins
    tests/bench/relay.py [--messages 100000] [--python-messages 20000] [--latency 0 20] [--backlog 1000000]

Each bridge empties a queue that was filled before it starts, on the same private RabbitMQ setup, into the same SQS
stand-in, with prefetch 1000. Speed is from the first arrival to the last; processor time is user and system time of the
bridge alone; memory is its peak. The Python side is installed into target/bench-venv.
"""

import argparse
import pathlib
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).resolve().parents[2]
VENV = ROOT / "target/bench-venv"
WANTED = ("lost", "duplicated", "messages/s", "cpu-us/message", "rss-mib")


def python() -> pathlib.Path:
    program = VENV / "bin/python"
    marker = VENV / "installed"
    requirements = ROOT / "tests/bench/requirements.txt"
    if not marker.is_file() or marker.read_text() != requirements.read_text():
        venv.create(VENV, with_pip=True, clear=True)
        subprocess.run([program, "-m", "pip", "install", "--quiet", "-r", requirements], check=True)
        marker.write_text(requirements.read_text())
    return program


def measure(ledger: pathlib.Path, bridge: str, messages: int, latency: int, size: int) -> dict:
    command = [ledger, "--bench", "--bridge", bridge, "--messages", messages, "--latency-ms", latency, "--size", size]
    done = subprocess.run([*map(str, command), "--python", str(python())], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{bridge} failed:\n{done.stdout}{done.stderr}")
    lines = (line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    return {name: float(value) for name, value in lines if name in WANTED}


def show(name: str, messages: int, latency: int, size: int, got: dict, base: dict | None) -> None:
    ratio = got["messages/s"] / base["messages/s"] if base else 1.0
    print(
        f"{name:<13} {messages:>8} {size:>6} {latency:>5} ms {got['messages/s']:>9.0f} {got['cpu-us/message']:>9.1f}"
        f" {got['rss-mib']:>8.1f} {ratio:>7.1f}x",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="release", choices=["release", "debug"])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--python-messages", type=int, default=20_000)
    parser.add_argument("--latency", type=int, nargs="+", default=[0, 20])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--backlog", type=int, default=0, help="also a backlog of so many messages of 100 bytes")
    args = parser.parse_args()
    ledger = ROOT / "target" / args.profile / "ledger"
    print(f"{'bridge':<13} {'messages':>8} {'bytes':>6} {'latency':>8} {'msg/s':>9} {'cpu us':>9} {'peak MiB':>8} {'ratio':>8}")
    for latency in args.latency:
        base = None
        for bridge, messages in [
            ("python", args.python_messages),
            ("python-batch", args.python_messages),
            ("relay", args.messages),
        ]:
            got = measure(ledger, bridge, messages, latency, args.size)
            base = base or got
            show(bridge, messages, latency, args.size, got, base)
    if args.backlog:
        show("relay", args.backlog, 0, 100, measure(ledger, "relay", args.backlog, 0, 100), None)


main()
