"""When a deployment publishes a version of the function. Without one, the alias stays where the old settings are."""

import logging
import sys
import unittest

import manifests

sys.path.insert(0, str(manifests.ROOT / "infra/aws"))
import translate  # noqa: E402

# What no version holds: how many of it there are, and what the queue sends to the alias.
BESIDE = {"FunctionScalingConfig", "Events", "ImageUri"}


def setUpModule():
    # SAM's translator says on every run that nobody collected its metrics.
    logging.getLogger("samtranslator").setLevel(logging.ERROR)


def version(parameters):
    """The name of the version that a deployment with these values has: another name is another version."""
    resources = translate.translate(translate.load(translate.FUNCTION), parameters)["Resources"]
    (name,) = (name for name, each in resources.items() if each["Type"] == "AWS::Lambda::Version")
    return name


def references(node):
    """Every name that is referred to in a part of a template."""
    if isinstance(node, list):
        return set().union(*map(references, node))
    if not isinstance(node, dict):
        return set()
    return {node["Ref"]} if node.keys() == {"Ref"} else set().union(*map(references, node.values()))


class Versions(unittest.TestCase):
    def setUp(self):
        template = translate.load(translate.FUNCTION)
        self.values = dict.fromkeys(template["Parameters"], "1")
        handler = template["Resources"]["Handler"]["Properties"]
        settings = {name: value for name, value in handler.items() if name not in BESIDE}
        self.settings = references(settings) & self.values.keys() | {"HandlerImageUri"}
        self.first = version(self.values)

    def test_another_image_or_setting_is_another_version(self):
        self.assertGreater(len(self.settings), 15)
        for name in self.settings:
            with self.subTest(parameter=name):
                self.assertNotEqual(self.first, version({**self.values, name: "2"}))

    def test_what_no_version_holds_publishes_none(self):
        # Lambda refuses to publish what it has published already.
        for name in self.values.keys() - self.settings:
            with self.subTest(parameter=name):
                self.assertEqual(self.first, version({**self.values, name: "2"}))

    def test_lambda_gets_the_image_alone(self):
        values = {**self.values, "HandlerImageUri": "registry/easel:1"}
        resources = translate.translate(translate.load(translate.FUNCTION), values)["Resources"]
        index, split = resources["Handler"]["Properties"]["Code"]["ImageUri"]["Fn::Select"]
        mark, text = split["Fn::Split"]
        self.assertEqual("registry/easel:1", text["Fn::Sub"].split(mark)[index])


if __name__ == "__main__":
    unittest.main()
