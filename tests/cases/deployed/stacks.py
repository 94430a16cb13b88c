"""Deploys template.yaml with its nested stacks to a stand-in for AWS.

What the stand-in's CloudFormation does not know is left out of the stacks. Bucket and queue policies, alarms and metric
filters are then made through the services' own interfaces, from the same properties. Capacity provider, version and
alias are checked in the template and left out; CloudFront and Amazon MQ are switched off. Anything else is an error."""

import json
import sys
from pathlib import Path

import boto3

from stack import ACCOUNT, REGION, Stack

sys.path.insert(0, str(Path(__file__).parents[3] / "infra/aws"))
import translate  # noqa: E402


class Cloud:
    """Clients for the stand-in."""

    def __init__(self, endpoint):
        self.endpoint = endpoint

    def __getattr__(self, service):
        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        client = boto3.client(service.replace("_", "-"), endpoint_url=self.endpoint, region_name=REGION, **keys)
        setattr(self, service, client)
        return client


def deploy(cloud, name, parameters):
    """Deploys all stacks, each with the outputs of others as parameters: the stand-in cannot nest them."""
    root = Stack(name, translate.load(translate.ROOT), parameters)
    waiting = dict(root.template["Resources"])
    while waiting:
        for logical, resource in list(waiting.items()):
            try:
                wanted = "Condition" not in resource or root.condition({"Condition": resource["Condition"]})
                given = root.resolve(resource["Properties"]["Parameters"])
            except KeyError:
                continue  # the output of one that is still to come
            del waiting[logical]
            if wanted:
                path = translate.NESTED[Path(resource["Properties"]["TemplateURL"]).name]
                template = translate.load(path)
                template = translate.translate(template) if path == translate.FUNCTION else template
                stack = root.nested[logical] = Stack(f"{name}-{logical}", template, given)
                resources = template["Resources"]
                if path == translate.FUNCTION:
                    resources = stack.resolve(known_here(dict(resources), name))
                    template["Outputs"].pop("Alias")
                stack.deploy(cloud, resources)
                complete(cloud, stack)
                break
        else:
            raise LookupError(f"{list(waiting)} wait for each other")
    return root


def known_here(resources, name):
    """Takes out what the stand-in cannot deploy, after checking its references."""
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
    """A rule with S3's names, which differ from CloudFormation's."""
    words = {"ID": rule["Id"], "Status": rule["Status"], "Filter": {"Prefix": rule.get("Prefix", "")}}
    if "ExpirationInDays" in rule:
        words["Expiration"] = {"Days": int(rule["ExpirationInDays"])}
    if "AbortIncompleteMultipartUpload" in rule:
        words["AbortIncompleteMultipartUpload"] = rule["AbortIncompleteMultipartUpload"]
    return words


def allow_plain(cloud, root):
    """Removes the statements that forbid plain HTTP, because the stand-in has no TLS; the others stay in force."""
    for _, policy in root.nested["Storage"].of_type("AWS::S3::BucketPolicy"):
        document = policy["PolicyDocument"]
        document["Statement"] = [one for one in document["Statement"] if one["Effect"] != "Deny"]
        if document["Statement"]:
            cloud.s3.put_bucket_policy(Bucket=policy["Bucket"], Policy=json.dumps(document))
        else:
            cloud.s3.delete_bucket_policy(Bucket=policy["Bucket"])
