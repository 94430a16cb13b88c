"""The AWS templates, with what their defaults make of parameters, mappings, conditions and nested stacks.

A value that only a deployment knows is an `Unknown`.
"""

import functools
import os
from pathlib import Path

import yaml

ROOT = Path(os.environ.get("EASEL_ROOT", Path(__file__).resolve().parents[2]))


class Call(dict):
    """An intrinsic function: one key, its argument."""


class Unknown(str):
    """Known to a deployment only."""


class Loader(yaml.SafeLoader):
    """Reads the short forms of intrinsic functions."""


def _call(loader, suffix, node):
    build = {yaml.ScalarNode: loader.construct_scalar, yaml.SequenceNode: loader.construct_sequence}
    argument = build.get(type(node), loader.construct_mapping)(
        node, **({} if isinstance(node, yaml.ScalarNode) else {"deep": True})
    )
    return Call({suffix: argument})


Loader.add_multi_constructor("!", _call)


@functools.cache
def written(path):
    """A template as it is written."""
    return yaml.load(path.read_text(), Loader)


class Stack:
    """One template with its parameters."""

    def __init__(self, path, parameters=None):
        self.path = ROOT / path
        self.body = written(self.path)
        given, declared = parameters or {}, self.body.get("Parameters", {})
        self.parameters = {name: given.get(name, each.get("Default", Unknown(name))) for name, each in declared.items()}

    def resources(self, made=False):
        """Every resource, those of nested stacks too, as (stack, name, type, properties); if asked only what is made."""
        for name, each in self.body["Resources"].items():
            if made and "Condition" in each and not self.condition(each["Condition"]):
                continue
            kind, properties = each["Type"], each.get("Properties", {})
            if kind == "AWS::CloudFormation::Stack":
                values = {key: self.value(value) for key, value in properties.get("Parameters", {}).items()}
                yield from Stack(self.value(properties["TemplateURL"]), values).resources(made)
            else:
                defaults = (
                    self.body.get("Globals", {}).get("Function", {}) if kind == "AWS::Serverless::Function" else {}
                )
                yield self, name, kind, {**defaults, **properties}

    def value(self, it):
        """A value as the defaults make it."""
        if not isinstance(it, Call):
            return it
        ((name, argument),) = it.items()
        if name == "Ref":
            return self.parameters.get(argument, Unknown(argument))
        if name == "FindInMap":
            table, *keys = argument
            found = self.body["Mappings"][table]
            for key in keys:
                found = found[str(self.value(key))]
            return found
        if name == "Join":
            found = self.value(argument[1])
            parts = [self.value(part) for part in found] if isinstance(found, list) else [Unknown(found)]
            known = not any(isinstance(part, Unknown) for part in parts)
            return argument[0].join(parts) if known else Unknown(f"{name} {argument}")
        if name == "Split":
            return str(self.value(argument[1])).split(argument[0])
        if name == "Select":
            return self.value(argument[1])[int(argument[0])]
        if name == "If":
            return self.value(argument[1 if self.condition(argument[0]) else 2])
        return Unknown(f"{name} {argument}")

    def given(self, container):
        """The variables that a container of ECS has, with their values."""
        there = map(self.value, container.get("Environment", []))
        return {each["Name"]: self.value(each["Value"]) for each in there if isinstance(each, dict)}

    def condition(self, it):
        """Whether a condition holds for the defaults."""
        if isinstance(it, str):
            return self.condition(self.body["Conditions"][it])
        ((name, argument),) = it.items()
        if name == "Equals":
            left, right = (str(self.value(each)) for each in argument)
            return left == right
        if name in ("And", "Or"):
            return (all if name == "And" else any)(self.condition(each) for each in argument)
        if name == "Not":
            return not self.condition(argument[0])
        assert name == "Condition", name
        return self.condition(argument)


def named(container):
    """The names of all variables that a container of ECS may have, whatever the conditions are."""
    entries = [each for key in ("Environment", "Secrets") for each in container.get(key, [])]
    entries = [branch for each in entries for branch in (each["If"][1:] if isinstance(each, Call) else [each])]
    return [each["Name"] for each in entries if not isinstance(each, Call)]


def root(parameters=None):
    """The template that is deployed."""
    return Stack("template.yaml", parameters)


def the(kind, where=lambda properties: True, parameters=None):
    """The only resource of a type that is as asked, as (stack, properties)."""
    found = [(stack, each) for stack, _, its, each in root(parameters).resources() if its == kind and where(each)]
    assert len(found) == 1, f"{len(found)} of {kind}"
    return found[0]


def made(parameters=None):
    """What a deployment with these parameters makes, as (stack, name, type, properties)."""
    return list(root(parameters).resources(made=True))
