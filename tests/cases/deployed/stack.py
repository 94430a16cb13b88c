"""One template, deployed to a stand-in for AWS, and the values of its intrinsic functions there. Unknown ones are an error."""

import json
import re

REGION, ACCOUNT = "us-east-1", "123456789012"


class Stack:
    """A template, the parameters that it got, and what it became."""

    def __init__(self, name, template, parameters):
        self.name, self.template = name, template
        defaults = {name: one["Default"] for name, one in template["Parameters"].items() if "Default" in one}
        self.parameters = {name: text(value) for name, value in (defaults | parameters).items()}
        self.ids, self.outputs, self.nested = {}, {}, {}

    def deploy(self, cloud, resources):
        """Puts up these resources of it."""
        body = json.dumps({**self.template, "Resources": resources})
        given = [{"ParameterKey": key, "ParameterValue": value} for key, value in self.parameters.items()]
        cloud.cloudformation.create_stack(StackName=self.name, TemplateBody=body, Parameters=given)
        found = cloud.cloudformation.describe_stacks(StackName=self.name)["Stacks"][0]
        assert found["StackStatus"] == "CREATE_COMPLETE", found
        self.outputs = {one["OutputKey"]: one["OutputValue"] for one in found.get("Outputs", [])}
        found = cloud.cloudformation.describe_stack_resources(StackName=self.name)["StackResources"]
        # What the stand-in does not know is listed without names.
        named = {"LogicalResourceId", "PhysicalResourceId"}
        self.ids = {one["LogicalResourceId"]: one["PhysicalResourceId"] for one in found if named <= one.keys()}

    def get(self, resource, attribute=None):
        if attribute and attribute.startswith("Outputs."):
            return self.nested[resource].outputs[attribute.removeprefix("Outputs.")]
        physical = self.ids[resource]
        match self.template["Resources"][resource]["Type"], attribute:
            case _, None:
                return physical
            case "AWS::SQS::Queue", "Arn":
                return f"arn:aws:sqs:{REGION}:{ACCOUNT}:{physical.rsplit('/', 1)[1]}"
            case "AWS::S3::Bucket", "Arn":
                return f"arn:aws:s3:::{physical}"
        raise LookupError(f"{resource}.{attribute}")

    def condition(self, node):
        match node:
            case {"Condition": name}:
                return self.condition(self.template["Conditions"][name])
            case {"Fn::Equals": [left, right]}:
                return str(self.resolve(left)) == str(self.resolve(right))
            case {"Fn::Not": [inner]}:
                return not self.condition(inner)
            case {"Fn::And": inner}:
                return all(self.condition(one) for one in inner)
        raise LookupError(f"condition {node}")

    def resolve(self, node):
        """A value with its functions carried out; None for what AWS::NoValue takes away."""
        match node:
            case {"Ref": "AWS::NoValue"}:
                return None
            case {"Ref": "AWS::Region"}:
                return REGION
            case {"Ref": "AWS::StackName"}:
                return self.name
            case {"Fn::FindInMap": [name, first, second]}:
                return self.template["Mappings"][name][self.resolve(first)][second]
            case {"Fn::Join": [mark, parts]}:
                parts = self.resolve(parts)
                return mark.join(parts) if isinstance(parts, list) else parts
            case {"Fn::Select": [index, parts]}:
                return self.resolve(parts)[int(index)]
            case {"Fn::Split": [mark, joined]}:
                return self.resolve(joined).split(mark)
            case {"Ref": name}:
                return self.parameters[name] if name in self.parameters else self.get(name)
            case {"Fn::GetAtt": [name, attribute]}:
                return self.get(name, attribute)
            case {"Fn::If": [name, yes, no]}:
                return self.resolve(yes if self.condition({"Condition": name}) else no)
            case {"Fn::Sub": str(text)}:
                return re.sub(r"\$\{([^}]+)\}", lambda found: self.substitute(found[1]), text)
            case {"Fn::Sub": [text, own]}:
                own = self.resolve(own)
                return re.sub(r"\$\{([^}]+)\}", lambda found: own[found[1]] if found[1] in own else self.substitute(found[1]), text)
            case dict():
                return {key: value for key, inner in node.items() if (value := self.resolve(inner)) is not None}
            case list():
                return [value for inner in node if (value := self.resolve(inner)) is not None]
        return node

    def substitute(self, name):
        known = {"AWS::Region": REGION, "AWS::Partition": "aws", "AWS::AccountId": ACCOUNT}
        return known[name] if name in known else str(self.resolve(reference(name)))

    def of_type(self, kind):
        """The properties of all resources of a type that are wanted under the conditions."""
        for name, resource in self.template["Resources"].items():
            wanted = "Condition" not in resource or self.condition({"Condition": resource["Condition"]})
            if resource["Type"] == kind and wanted:
                yield name, self.resolve(resource["Properties"])


def reference(name):
    return {"Fn::GetAtt": name.split(".", 1)} if "." in name else {"Ref": name}


def text(value):
    return ",".join(value) if isinstance(value, list) else str(value)
