"""The published contract: both files are what their standards allow, and what this repository publishes is what the task's schema says."""

import ast
import json
import unittest

import openapi_spec_validator
import pages
from jsonschema import Draft202012Validator

CONTRACT = pages.ROOT / "docs/contract"
SEEDS = pages.ROOT / "handler/fuzz/seeds/task"
# Seeds that the parser refuses (`fuzz::tests` holds it to that) and the schema cannot, and why.
UNSAID = {
    "refused-unsaid-seed": "to JSON Schema 42.0 is an integer",
    "refused-unsaid-prompt_tags": "no keyword adds up the lengths of strings",
    "refused-unsaid-lora_model_url": "S3 counts a key's bytes, JSON Schema characters",
    "refused-unsaid-webhook_url": "a host is what the URL standard's parser takes, which is no pattern",
    "refused-unsaid-strength": "no keyword multiplies it with the number of steps",
    "refused-nan": "Python reads it; JSON has no such number",
    "refused-unsaid-artist_name": "half of a surrogate pair is a character to JSON Schema",
}


def schema():
    return json.loads((CONTRACT / "task.schema.json").read_text())


def validator():
    return Draft202012Validator(schema(), format_checker=Draft202012Validator.FORMAT_CHECKER)


def example(script):
    """The task in a script of the README; what it reads from its environment is made up."""
    tree = ast.parse((pages.ROOT / "tests/docs" / script).read_text())
    made_up = {"lora_model_url": "s3://bucket/lora.safetensors", "webhook_url": "http://127.0.0.1:8000"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and node.targets[0].id == "task":
            names = [ast.literal_eval(key) for key in node.value.keys]
            pairs = zip(names, node.value.values)
            return {name: made_up.get(name) or ast.literal_eval(value) for name, value in pairs}
    raise AssertionError("no task in it")


class Schemas(unittest.TestCase):
    def test_the_schema_is_one_and_the_webhooks_are_openapi(self):
        Draft202012Validator.check_schema(schema())
        openapi_spec_validator.validate(json.loads((CONTRACT / "webhooks.openapi.json").read_text()))

    def test_seeds_are_valid_or_not_as_their_names_say_but_for_the_table(self):
        valid = set()
        for seed in SEEDS.iterdir():
            try:
                # A mark before the text is allowed.
                if validator().is_valid(json.loads(seed.read_text(encoding="utf-8-sig"))):
                    valid.add(seed.name)
            except json.JSONDecodeError:
                pass
        taken = {seed.name for seed in SEEDS.glob("taken*")}
        self.assertGreater(len(taken), 3)
        self.assertEqual(valid, taken | set(UNSAID))

    def test_what_the_docs_show_is_valid(self):
        shown = [example("backend.py"), example("by_sqs.py")]
        for page in pages.PAGES:
            for block in pages.blocks(page):
                if block.language == "json" and "generation_id" in block.text and "prompt_tags" in block.text:
                    shown.append(json.loads(block.text))
        for task in shown:
            self.assertEqual([error.message for error in validator().iter_errors(task)], [])


if __name__ == "__main__":
    unittest.main()
