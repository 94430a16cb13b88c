"""Puts template.yaml with what it nests up in a stand-in for AWS.

What the stand-in's CloudFormation does not know is left out of the stacks. Bucket and queue policies, alarms and metric
filters are then made through the services' own interfaces, from the same properties. Capacity provider, version and alias
are looked at in the template and left out; CloudFront and Amazon MQ are not asked for. Refuses anything else."""

import json
import re
import sys
from pathlib import Path

import boto3

sys.path.insert(0, str(Path(__file__).parents[3] / "infra/aws"))
import translate  # noqa: E402

REGION, ACCOUNT = translate.REGION, "123456789012"


class Cloud:
    """Clients for the stand-in."""

    def __init__(self, endpoint):
        self.endpoint = endpoint

    def __getattr__(self, service):
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        client = boto3.client(service.replace("_", "-"), endpoint_url=self.endpoint, region_name=REGION, **keys)
        setattr(self, service, client)
        return client


class Stack:
    """A template, the parameters that it got, and what it became."""

    def __init__(self, name, template, parameters):
        self.name, self.template = name, template
        defaults = {name: one["Default"] for name, one in template["Parameters"].items() if "Default" in one}
        self.parameters = {name: text(value) for name, value in (defaults | parameters).items()}
        self.ids, self.outputs, self.nested = {}, {}, {}

    def deploy(self, cloud, resources):
        """Puts up these resources of it."""
        outputs = {} if self.nested else self.template["Outputs"]
        body = json.dumps({**self.template, "Resources": resources, "Outputs": outputs})
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


def deploy(cloud, name, parameters):
    """Puts all stacks up, each with the outputs of others as parameters: the stand-in cannot nest them."""
    root = Stack(name, translate.translate(translate.load(translate.ROOT)), parameters)
    own = dict(root.template["Resources"])
    waiting = {name: own.pop(name) for name in list(own) if own[name]["Type"] == "AWS::CloudFormation::Stack"}
    while waiting:
        for logical, resource in list(waiting.items()):
            try:
                wanted = "Condition" not in resource or root.condition({"Condition": resource["Condition"]})
                given = root.resolve(resource["Properties"]["Parameters"])
            except KeyError:
                continue  # the output of one that is still to come
            del waiting[logical]
            if wanted:
                template = translate.load(translate.NESTED[Path(resource["Properties"]["TemplateURL"]).name])
                stack = root.nested[logical] = Stack(f"{name}-{logical}", template, given)
                stack.deploy(cloud, template["Resources"])
                complete(cloud, stack)
                break
        else:
            raise LookupError(f"{list(waiting)} wait for each other")
    root.deploy(cloud, root.resolve(known_here(own, name)))
    return root


def known_here(resources, name):
    """Takes out what the stand-in would stumble over, after a look at how it is tied in."""
    function = resources["Handler"]["Properties"]
    alias = resources.pop("HandlerAliaslive")["Properties"]
    version = resources.pop(alias["FunctionVersion"]["Fn::GetAtt"][0])
    assert version["DeletionPolicy"] == "Retain", "an older version must stay for the way back"
    mapping = resources["HandlerTask"]["Properties"]
    assert mapping["FunctionName"] == {"Ref": "HandlerAliaslive"}, "the queue feeds the alias"
    config = function.pop("CapacityProviderConfig")["LambdaManagedInstancesCapacityProviderConfig"]
    assert config["CapacityProviderArn"]["Fn::Sub"].endswith(":capacity-provider:${Capacity}"), config
    assert "VpcConfig" not in function, "the capacity provider has the network"
    assert function["AcceleratorConfig"] == {"AcceleratorMemorySize": {"Ref": "AcceleratorMemory"}}
    resources.pop("Capacity")
    mapping["FunctionName"] = function["FunctionName"] = name
    return resources


def complete(cloud, stack):
    """Makes what the stand-in's CloudFormation does not know. Of a bucket it knows encryption only."""
    for name, bucket in stack.of_type("AWS::S3::Bucket"):
        own = {"Bucket": stack.get(name)}
        block = {key: str(value).lower() == "true" for key, value in bucket["PublicAccessBlockConfiguration"].items()}
        cloud.s3.put_public_access_block(**own, PublicAccessBlockConfiguration=block)
        cloud.s3.put_bucket_ownership_controls(**own, OwnershipControls=bucket["OwnershipControls"])
        rules = [lifecycle(rule) for rule in bucket["LifecycleConfiguration"]["Rules"]]
        cloud.s3.put_bucket_lifecycle_configuration(**own, LifecycleConfiguration={"Rules": rules})
    for _, policy in stack.of_type("AWS::S3::BucketPolicy"):
        cloud.s3.put_bucket_policy(Bucket=policy["Bucket"], Policy=json.dumps(policy["PolicyDocument"]))
    for _, policy in stack.of_type("AWS::SQS::QueuePolicy"):
        for url in policy["Queues"]:
            cloud.sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": json.dumps(policy["PolicyDocument"])})
    for _, alarm in stack.of_type("AWS::CloudWatch::Alarm"):
        cloud.cloudwatch.put_metric_alarm(**alarm | {"Threshold": float(alarm["Threshold"])})
    for name, rule in stack.of_type("AWS::Logs::MetricFilter"):
        transformations = [
            {key[0].lower() + key[1:]: value for key, value in one.items()} for one in rule["MetricTransformations"]
        ]
        cloud.logs.put_metric_filter(
            logGroupName=rule["LogGroupName"],
            filterName=name,
            filterPattern=rule["FilterPattern"],
            metricTransformations=transformations,
        )


def lifecycle(rule):
    """A rule in the words of S3, which are others than CloudFormation's."""
    words = {"ID": rule["Id"], "Status": rule["Status"], "Filter": {"Prefix": rule.get("Prefix", "")}}
    if "ExpirationInDays" in rule:
        words["Expiration"] = {"Days": int(rule["ExpirationInDays"])}
    if "AbortIncompleteMultipartUpload" in rule:
        words["AbortIncompleteMultipartUpload"] = rule["AbortIncompleteMultipartUpload"]
    return words
