"""The walk of docs/DEPLOY.md, from an empty account to the first picture: its parameters, outputs, message and figures."""

import json
import re
import subprocess
import sys
import unittest
from pathlib import Path

import jsonschema
import templates

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(templates.ROOT / "infra/aws"))
sys.path.append(str(ROOT / "tests/bench"))
import idle_cost  # noqa: E402
from scaling_model import World  # noqa: E402

PAGE = (ROOT / "docs/DEPLOY.md").read_text()
WALK = PAGE.partition("## From an empty account")[2].partition("## Parameters")[0]
# What the page's variables and functions stand for.
SHELL = """
AWS_REGION=us-east-1 ACCOUNT=123456789012 REGISTRY=123456789012.dkr.ecr.us-east-1.amazonaws.com
TEMPLATES=easel-templates LORAS=easel-loras AMQP_URL=amqps://broker.example.org
out() { echo "$1.example.org"; }
receiver() { echo "$1.example.org"; }
aws() { printf '%s\\0' "$@"; }
"""


def given(beginning):
    """What the lines of the walk that begin so give to the AWS CLI, as bash makes it of them."""
    lines = [line for line in WALK.replace("\\\n", " ").splitlines() if line.startswith(beginning)]
    for line in lines:
        ran = subprocess.run(["bash", "-c", SHELL + line], capture_output=True, text=True, timeout=10, check=True)
        yield ran.stdout.split("\0")[:-1]


def deployments():
    """The parameters of each deployment of the template."""
    for words in given("aws cloudformation deploy --template-file packaged.yaml"):
        after = words[words.index("--parameter-overrides") + 1 :]
        yield dict(word.split("=", 1) for word in after)


class Walk(unittest.TestCase):
    def test_each_deployment_gives_what_must_be_given_within_its_limits(self):
        declared = templates.root().body["Parameters"]
        smallest, with_relay = deployments()
        must = {name for name, each in declared.items() if "Default" not in each}
        self.assertLessEqual(must, set(smallest))
        for name, value in (*smallest.items(), *with_relay.items()):
            with self.subTest(parameter=name):
                self.assertIn(name, declared)
                self.assertIn(value, map(str, declared[name].get("AllowedValues", [value])))
                if "MinValue" in declared[name]:
                    self.assertTrue(declared[name]["MinValue"] <= int(value) <= declared[name].get("MaxValue", 10**9))
        self.assertIn("RelayImageUri", with_relay)

    def test_it_fits_a_quota_of_one_instance(self):
        smallest, _ = deployments()
        self.assertIn(f"--desired-value {smallest['MaxVCpus']}\n", WALK)
        self.assertEqual(("4", "1"), (smallest["MaxVCpus"], smallest["MaxEnvironments"]))
        tasks = templates.root().parameters["TasksPerEnvironment"]
        self.assertEqual(int(smallest["MaxEnvironments"]) * int(tasks), int(smallest["MaxConcurrency"]))

    def test_its_stacks_are_those_whose_cost_the_table_has(self):
        smallest, with_relay = deployments()
        counted = {label.split(":")[0]: each for label, each in idle_cost.STACKS.items()}
        for name, value in counted["the smallest"].parameters.items():
            self.assertEqual(str(value), smallest[name])
        later = {**smallest, **with_relay}
        for name, value in counted["to try it"].parameters.items():
            with self.subTest(parameter=name):
                self.assertTrue(name == "AmqpUrlSecretArn" or str(value) == later[name])

    def test_every_output_that_it_asks_for_is_one(self):
        receiver = templates.Stack("infra/aws/receiver.yaml").body["Outputs"]
        self.assertLessEqual(set(re.findall(r"\$\(out (\w+)\)", PAGE)), set(templates.root().body["Outputs"]))
        self.assertEqual({"Host", "Log"}, set(re.findall(r"\$\(receiver (\w+)\)", WALK)))
        self.assertEqual({"Host", "Log"}, set(receiver))

    def test_the_first_task_is_one(self):
        ((*_, body),) = given("aws sqs send-message")
        task = json.loads(body)
        jsonschema.validate(task, json.loads((ROOT / "docs/contract/task.schema.json").read_text()))
        smallest, _ = deployments()
        self.assertEqual(f"s3://{smallest['LoraBucket']}/first.safetensors", task["lora_model_url"])
        self.assertEqual(f"https://{smallest['WebhookHosts']}", task["webhook_url"])
        (copied,) = given("aws s3 cp")
        self.assertEqual(task["lora_model_url"], copied[-1])

    def test_what_is_made_by_hand_is_removed_by_hand(self):
        removed = WALK.partition("### Removing everything")[2]
        made = WALK.partition("### Removing everything")[0]
        for kind, pattern, undo in (
            ("repository", r"create-repository --repository-name (\S+)", "delete-repository --force --repository-name {}"),
            ("bucket", r"s3 mb (\S+)", "s3 rb --force {}"),
            ("secret", r"create-secret --name (\S+)", "--secret-id {}"),
            ("stack", r"--stack-name (\S+)", "delete-stack --stack-name {}\n"),
        ):
            names = set(re.findall(pattern, made))
            self.assertTrue(names, kind)
            for name in names:
                with self.subTest(kind=kind, name=name):
                    self.assertIn(undo.format(name), removed)
        # Those that outlive the stack.
        retained = {
            f"{name}Bucket"
            for name, each in templates.Stack("infra/aws/storage.yaml").body["Resources"].items()
            if each.get("DeletionPolicy") == "Retain"
        }
        self.assertEqual(retained, set(re.findall(r"\$\(out (\w+Bucket)\)", removed)))

    def test_the_steps_figures_are_those_of_the_script(self):
        prices = idle_cost.options([])
        month = {
            label.split(":")[0]: sum(dollars * count(stack) for _, dollars, count in idle_cost.rows(prices))
            for label, stack in idle_cost.STACKS.items()
        }
        world = World()
        steps = WALK.partition("### What the steps cost")[2].partition("###")[0]
        for figure in (
            f"{prices.images * prices.ecr:.2f} a month",
            f"{month['the smallest']:.2f} a month",
            f"{month['to try it'] - month['the smallest']:.2f} a month",
            f"most of it waiting: {world.node_hour * world.lambda_fee / 4:.2f}.",
        ):
            with self.subTest(figure=figure):
                self.assertIn(figure, steps)

    def test_every_command_uses_the_region_that_was_said_once(self):
        blocks = "".join(re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
        self.assertEqual(1, blocks.count("export AWS_REGION=us-east-1 AWS_DEFAULT_REGION=us-east-1\n"))
        self.assertNotIn("$REGION", PAGE)
        self.assertNotIn("--region", blocks)


if __name__ == "__main__":
    unittest.main()
