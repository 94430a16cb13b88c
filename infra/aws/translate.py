"""Expands a template that uses SAM as CloudFormation would, offline."""

import copy
import json
from pathlib import Path

import boto3
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse

REGION = "us-east-1"
HERE = Path(__file__).parent
ROOT = HERE.parent.parent / "template.yaml"
FUNCTION = HERE / "function.yaml"
NESTED = {path.name: path for path in sorted(HERE.glob("*.yaml"))}


def load(path):
    """A template as it is written, with the long names of intrinsic functions."""
    return yaml_parse(path.read_text())


def translate(template, parameters=None):
    """The template with SAM's resources expanded, for these parameters."""
    template = copy.deepcopy(template)
    # This version of the translator does not know the property. CloudFormation passes it on unchanged.
    accelerators = {
        name: resource["Properties"].pop("AcceleratorConfig")
        for name, resource in template["Resources"].items()
        if "AcceleratorConfig" in resource.get("Properties", {})
    }
    operator = "AWSLambdaManagedEC2ResourceOperator"
    policies = {operator: f"arn:aws:iam::aws:policy/service-role/{operator}"}
    plain = Translator(policies, Parser(), boto_session=boto3.Session(region_name=REGION)).translate(template, parameters or {})
    for name, accelerator in accelerators.items():
        plain["Resources"][name]["Properties"]["AcceleratorConfig"] = accelerator
    return plain


if __name__ == "__main__":
    print(json.dumps(translate(load(FUNCTION)), indent=2))
