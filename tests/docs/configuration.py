"""Writes docs/CONFIGURATION.md and the README's table from --help.

    python3 tests/docs/configuration.py            writes the page and the table
    python3 tests/docs/configuration.py --check    ends with 1 if they say something else than --help
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# --help is parsed in one place only, and the deployment's tests own it.
sys.path.append(str(ROOT / "tests/deploy"))
import binaries  # noqa: E402

PAGE = ROOT / "docs/CONFIGURATION.md"
README = ROOT / "README.md"
COMMAND = "python3 tests/docs/configuration.py"
INTRODUCTION = f"""# Configuration

Every option of both binaries. `{COMMAND}` writes this page from `--help` of the binaries in
`target/debug`, and `tests/docs/test_configuration.py` fails if they differ.

A flag wins over its variable, and the variable over the default. If an option is missing or its value is wrong, the
process ends with exit code 64 and names the option. A value with whitespace at an end
[is wrong](OPERATIONS.md#values-of-variables). `handler` without arguments is `handler function`.

Relay, function and worker also read these variables:

- those of the AWS SDK (`AWS_REGION`, `AWS_ENDPOINT_URL` …), and `RUST_LOG`;
- for [certificates and proxies](OPERATIONS.md#certificates-and-proxies) `AWS_CA_BUNDLE`, `SSL_CERT_FILE`,
  `HTTPS_PROXY` and others;
- for [traces](OPERATIONS.md#traces) those of OpenTelemetry (`OTEL_EXPORTER_OTLP_ENDPOINT` …).
"""
# Its options are also those of others.
SHARED = ("handler", ("function",))
# Those of the README's table, by command.
FIRST = {
    ("relay", ()): ("--amqp-url", "--sqs-queue-url", "--queue", "--declare"),
    SHARED: ("--model", "--model-url", "--s3-bucket", "--internal-api-token", "--webhook-hosts", "--lora-buckets", "--safety", "--max-receive-count"),
    ("handler", ("worker",)): ("--sqs-queue-url", "--concurrency", "--idle-exit"),
}
# Every command has them.
EVERYWHERE = {"--help", "--version"}


@dataclass
class Row:
    """One option, or one argument."""

    name: str
    variable: str
    default: str
    values: str
    text: str

    def line(self):
        """As a line of a table."""
        return f"| {self.name} | {self.variable} | {self.default} | {self.values} | {self.text} |"


def code(text):
    """As code in a cell of a table."""
    return "`" + text.replace("|", "\\|") + "`" if text else ""


def prose(text):
    """As words in a cell of a table."""
    text = " ".join(text.split()).replace("|", "\\|")
    # Outside of code a tag would vanish.
    return "".join(
        part if index % 2 else part.replace("<", "&lt;").replace("*", "\\*")
        for index, part in enumerate(re.split(r"(`[^`]*`)", text))
    )


def must(usage, flag):
    """Whether the usage line asks for it: not at all, always, or as one of several."""
    either = re.search(r"<(--[^ ]+ <\S+>(?:\|--[^ ]+ <\S+>)+)>", usage)
    if either and re.search(rf"{flag}(?![\w-])", either[1]):
        return "one must be given: " + ", ".join(code(each) for each in re.findall(r"--[\w-]+", either[1]))
    return "must be given" if re.search(rf" {flag} <", usage) else ""


def row(entry, usage):
    """An option from its part of --help."""
    # What follows the last option is no part of it.
    entry = re.split(r"\n\n(?=\S)", entry)[0]
    head = re.match(r"\s*(?:-\w, )?(--[\w-]+)((?:\[=| \[|=| )?<[^\n]*?>\]?(?=\n| {2}|$))?", entry)
    flag, value = head[1], head[2] or ""
    rest = entry[head.end() :]
    variable = re.search(r"\[env: (\w+)=?\]", rest)
    default = re.search(r"\[default: ([^\]]*)\]", rest)
    listed = re.search(r"\[possible values: ([^\]]*)\]", rest)
    values = [code(each) for each in listed[1].split(", ")] if listed else []
    described = re.search(r"Possible values:\n((?: +- .*\n?)+)", rest)
    if described:
        pairs = re.findall(r"- ([^:\n]+):\s+(.*)", described[1])
        values = [f"{code(name)}: {prose(text)}" for name, text in pairs]
        rest = rest.replace(described[0], "")
    text = re.sub(r"\[(?:env|default|possible values): [^\]]*\]", "", rest)
    return Row(
        name=code(flag + value),
        variable=code(variable[1]) if variable else "",
        default=prose(default[1]) if default else must(usage, flag),
        values="; ".join(values) if described else ", ".join(values),
        text=prose(text),
    )


def arguments(manual):
    """The arguments without a flag."""
    part = re.search(r"^Arguments:\n((?: .*\n|\n(?= ))+)", manual, re.MULTILINE)
    for name, text in re.findall(r"^ {2}([<\[]\S+)\s+(\S.*)$", part[1] if part else "", re.MULTILINE):
        yield Row(code(name), "", "must be given" if name.startswith("<") else "", "", prose(text))


def commands(binary, words=()):
    """Every command of a binary that does something itself, as the words after its name."""
    listed = re.search(r"^Commands:\n((?: .*\n)+)", binaries.manual(binary, words), re.MULTILINE)
    names = re.findall(r"^ {2}(\S+)", listed[1], re.MULTILINE) if listed else []
    below = [each for name in names if name != "help" for each in commands(binary, (*words, name))]
    # The relay does something without any of its commands.
    own = rows(binary, words) or not below
    return [words, *below] if own else below


def rows(binary, words):
    """A command's arguments and options."""
    manual = binaries.manual(binary, words)
    usage = re.search(r"^Usage: (.*)$", manual, re.MULTILINE)[1]
    found = [*arguments(manual), *(row(entry, usage) for entry in binaries.entries(binary, words))]
    return [each for each in found if each.name.strip("`") not in EVERYWHERE]


def section(binary, words):
    """A command's heading, what it does, and its table, if it has options. What another command has in full is not said again."""
    manual = binaries.manual(binary, words)
    what = prose(manual[: manual.index("Usage:")]).rstrip(".") + "."
    lines = [each.line() for each in rows(binary, words)]
    if shares(binary, words):
        shared = {each.line() for each in rows(*SHARED)}
        lines = [each for each in lines if each not in shared]
        what += " It has the options of [handler function](#handler-function), and:"
    table = ["| flag | variable | default | values | what |", "| --- | --- | --- | --- | --- |", *lines, ""] if lines else []
    title = " ".join([binary, *words])
    return "\n".join([f"## {title}", "", what, "", *table])


def shares(binary, words):
    """Whether a command has all options of the function, and more."""
    return {each.line() for each in rows(*SHARED)} < {each.line() for each in rows(binary, words)}


def page():
    """The whole page."""
    sections = [section(binary, words) for binary in ("relay", "handler") for words in commands(binary)]
    return "\n".join([INTRODUCTION, *sections])


def readme():
    """The whole README, with its table as --help has it."""
    table = ["| of | option | variable | default | what |", "| --- | --- | --- | --- | --- |"]
    for (binary, words), flags in FIRST.items():
        known = {re.match(r"`(--[\w-]+)", each.name)[1]: each for each in rows(binary, words)}
        for flag in flags:
            found = known[flag]
            who = "function and worker" if (binary, words) == SHARED else " ".join([*words[-1:]] or [binary])
            table.append(f"| {who} | `{flag}` | {found.variable} | {found.default} | {found.text} |")
    before, rest = README.read_text().split("<!-- options -->\n")
    after = rest.split("<!-- /options -->\n")[1]
    return "\n".join([f"{before}<!-- options -->", *table, f"<!-- /options -->\n{after}"])


if __name__ == "__main__":
    written = {PAGE: page(), README: readme()}
    if sys.argv[1:] == ["--check"]:
        wrong = [each.name for each, text in written.items() if each.read_text() != text]
        sys.exit(f"not what --help says: {', '.join(wrong)}; to mend it: {COMMAND}" if wrong else 0)
    assert not sys.argv[1:], __doc__
    for each, text in written.items():
        each.write_text(text)
