"""Writes the parameters of template.yaml into docs/DEPLOY.md. With --check it only reports a difference."""

import sys

import translate

PAGE = translate.ROOT.parent / "docs/DEPLOY.md"
BEGIN, END = "<!-- parameters -->\n", "<!-- /parameters -->"


def table():
    rows = ["| parameter | default | what |", "| --- | --- | --- |"]
    for name, one in translate.load(translate.ROOT)["Parameters"].items():
        default = one.get("Default")
        shown = "must be given" if default is None else f"`{default}`" if default != "" else "empty"
        choice = ", ".join(f"`{value}`" for value in one.get("AllowedValues", []) if value != "")
        rows.append(f"| `{name}` | {shown} | {one['Description']}{' One of ' + choice + '.' if choice else ''} |")
    return "\n".join(rows) + "\n"


before, _, rest = PAGE.read_text().partition(BEGIN)
there, _, after = rest.partition(END)
if "--check" not in sys.argv:
    PAGE.write_text(before + BEGIN + table() + END + after)
elif there != table():
    sys.exit("docs/DEPLOY.md has other parameters than template.yaml: .cache/venv/bin/python infra/aws/parameters.py")
