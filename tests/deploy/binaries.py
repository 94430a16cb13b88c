"""What the binaries say of themselves in --help: options, variables, defaults."""

import functools
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(os.environ.get("CARGO_TARGET_DIR", Path(__file__).resolve().parents[2] / "target")) / "debug"
# clap's exit code for an option that cannot work.
REFUSED = 64
# Read by the AWS SDK, by the OpenTelemetry SDK and by the log filter, and so in no --help.
OTHERS = re.compile(r"AWS_[A-Z0-9_]+|OTEL_[A-Z0-9_]+|RUST_LOG")
# Without a model or a broker they end soon, with another code than that for an option that cannot work.
MISSING = {"INTERNAL_API_TOKEN": "token", "AMQP_URL": "amqp://127.0.0.1:1", "EASEL_MODEL_DIR": "/nonexistent"}
QUICK = {"AMQP_CONNECT_TIMEOUT": "1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}


@dataclass
class Option:
    """One option that has a variable."""

    flag: str
    default: str | None


def start(binary, *arguments, environment=None, timeout=30):
    """Starts a binary with this environment alone."""
    command = [FOLDER / binary, *arguments]
    return subprocess.run(command, env=environment or {}, capture_output=True, text=True, timeout=timeout, check=False)


@functools.cache
def manual(binary, subcommand=()):
    """All that --help says of a command."""
    text = start(binary, *subcommand, "--help").stdout
    assert text, f"{binary} {' '.join(subcommand)} --help says nothing"
    return text


def entries(binary, subcommand=()):
    """What --help says of each option, from its flag on."""
    return re.split(r"\n(?= {2,6}(?:-\w, )?--)", manual(binary, subcommand))[1:]


@functools.cache
def variables(binary, subcommand=()):
    """The variables that a command reads, by name."""
    found = {}
    for part in entries(binary, subcommand):
        name = re.search(r"\[env: (\w+)", part)
        if name:
            default = re.search(r"\[default: ([^\]]+)\]", part)
            found[name[1]] = Option(re.search(r"--[\w-]+", part)[0], default and default[1])
    return found


def accepts(binary, arguments):
    """What is wrong with a command line, or nothing: --help after it is reached only if all before it is understood."""
    started = start(binary, *arguments, "--help")
    return None if started.returncode == 0 else started.stderr.strip()


def subcommand(arguments):
    """The words before the first option; without any `handler` is the function."""
    words = []
    for argument in arguments:
        if argument.startswith("-") or "/" in argument:
            break
        words.append(argument)
    return tuple(words)
