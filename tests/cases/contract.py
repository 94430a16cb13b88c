"""Holds webhooks to docs/contract/webhooks.openapi.json.

Usage: contract.py FILE; it holds a JSON array of {"method", "path", "headers", "body"}. Prints one line for each: right, or what is wrong.
"""

import json
import sys
from pathlib import Path

from jsonschema import Draft202012Validator

OPENAPI = json.loads((Path(__file__).parents[2] / "docs/contract/webhooks.openapi.json").read_text())


def faults(schema, value):
    # References lead from the root of the document.
    validator = Draft202012Validator({"components": OPENAPI["components"], **schema})
    return [error.message for error in validator.iter_errors(value)]


def verdict(call):
    for webhook in OPENAPI["webhooks"].values():
        operation = webhook.get(call["method"].lower())
        if operation and call["path"] == operation["x-path"].removeprefix("{webhook_url}"):
            break
    else:
        return f"no webhook is {call['method']} {call['path']}"
    found = faults(operation["requestBody"]["content"]["application/json"]["schema"], call["body"])
    for reference in operation["parameters"]:
        header = OPENAPI["components"]["parameters"][reference["$ref"].rsplit("/", 1)[1]]
        value = call["headers"].get(header["name"].lower())
        if value is not None:
            found += faults(header["schema"], value)
        elif header["required"]:
            found.append(f"{header['name']} is missing")
    return "; ".join(found) or "right"


for call in json.loads(Path(sys.argv[1]).read_text()):
    print(verdict(call))
