#!/usr/bin/env python3
"""Throughput, processor time and memory of the relay and of the straightforward Python bridges, in one run.

    cargo build --release -p relay -p e2e --bins
    tests/bench/relay.py [--messages 100000] [--python-messages 20000] [--latency 0 20] [--backlog 1000000]
    tests/bench/relay.py --pace 200 [--messages 4000] [--linger 5 20 100] [--latency 20]

Each bridge empties a queue that was filled before it starts, on the same private RabbitMQ setup, into the same SQS
stand-in, with prefetch 1000. Speed is from the first arrival to the last; processor time is user and system time of the
bridge alone; memory is its peak. The Python side is installed into target/bench-venv.

With --pace, messages are published with confirms at that many a second, and the relay alone moves them. Shown is the time from
publishing a message to its acceptance by the stand-in, beside the bound: twice the linger and one answer of the stand-in. The
exit code is 1 if one in a hundred is over it.
"""

import argparse
import pathlib
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).resolve().parents[2]
VENV = ROOT / "target/bench-venv"
WANTED = ("lost", "duplicated", "messages/s", "cpu-us/message", "rss-mib", "p50-ms", "p99-ms", "max-ms")


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
    command = ["--bench", "--bridge", bridge, "--messages", messages, "--latency-ms", latency, "--size", size]
    return run(ledger, *command, "--python", python())


def run(ledger: pathlib.Path, *args) -> dict:
    done = subprocess.run([str(ledger), *map(str, args)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{args} failed:\n{done.stdout}{done.stderr}")
    lines = (line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
    return {name: float(value) for name, value in lines if name in WANTED}


def show(name: str, messages: int, latency: int, size: int, got: dict, base: dict | None) -> None:
    ratio = got["messages/s"] / base["messages/s"] if base else 1.0
    print(
        f"{name:<13} {messages:>8} {size:>6} {latency:>5} ms {got['messages/s']:>9.0f} {got['cpu-us/message']:>9.1f}"
        f" {got['rss-mib']:>8.1f} {ratio:>7.1f}x",
        flush=True,
    )


def pace(ledger: pathlib.Path, args: argparse.Namespace) -> bool:
    print(f"{'linger':>9} {'answer':>9} {'p50':>9} {'p99':>9} {'max':>9} {'bound':>9}")
    within = True
    for latency in args.latency:
        for linger in args.linger:
            command = ["--pace", args.pace, "--messages", args.messages, "--size", args.size]
            got = run(ledger, *command, "--latency-ms", latency, "--linger-ms", linger)
            bound = 2 * linger + latency
            within &= got["p99-ms"] < bound
            columns = (linger, latency, got["p50-ms"], got["p99-ms"], got["max-ms"], bound)
            print(" ".join(f"{value:>6.1f} ms" for value in columns), flush=True)
    return within


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="release", choices=["release", "debug"])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--python-messages", type=int, default=20_000)
    parser.add_argument("--latency", type=int, nargs="+", default=[0, 20])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--backlog", type=int, default=0, help="also a backlog of so many messages of 100 bytes")
    parser.add_argument("--pace", type=int, default=0, help="messages a second: measure the time on the way instead")
    parser.add_argument("--linger", type=int, nargs="+", default=[5, 20, 100])
    args = parser.parse_args()
    ledger = ROOT / "target" / args.profile / "ledger"
    if args.pace:
        sys.exit(0 if pace(ledger, args) else 1)
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
