"""Deploys to a stand-in, checks the result, and prints the settings of relay and handler there, as JSON.
Usage: main.py ENDPOINT NAME standard|fifo LORA_BUCKET WEBHOOK_HOST AMQP_URL TOKEN."""

import json
import sys

import checks
import stacks

ROOT = stacks.translate.ROOT.parent


def secret(cloud, name, value):
    return cloud.secretsmanager.create_secret(Name=name, SecretString=value)["ARN"]


def main(endpoint, name, kind, lora_bucket, webhook_host, amqp_url, token):
    cloud = stacks.Cloud(endpoint)
    token_arn, amqp_arn = secret(cloud, f"{name}-token", token), secret(cloud, f"{name}-amqp", amqp_url)
    images = f"{stacks.ACCOUNT}.dkr.ecr.{stacks.REGION}.amazonaws.com"
    parameters = {
        "HandlerImageUri": f"{images}/handler:1",
        "RelayImageUri": f"{images}/relay:1",
        "LoraBucket": lora_bucket,
        "WebhookHosts": webhook_host,
        "QueueType": kind,
        "InternalApiTokenArn": token_arn,
        "AmqpUrlSecretArn": amqp_arn,
        "AmqpQueue": name,
    }
    # One with the model on a volume, the other as the default has it.
    parameters |= {"ModelVolume": "efs"} if kind == "standard" else {}
    root = stacks.deploy(cloud, name, parameters)
    function = cloud.__getattr__("lambda").get_function_configuration(FunctionName=name)
    definition = cloud.ecs.describe_task_definition(taskDefinition=root.nested["Relay"].ids["Task"])["taskDefinition"]
    [task] = definition["containerDefinitions"]
    # The stand-in keeps a gap where AWS::NoValue leaves nothing.
    relay = {one["name"]: one["value"] for one in task["environment"] if one}
    mapping = checks.queue(cloud, root, function, relay)
    checks.buckets(cloud, root)
    checks.roles(cloud, root)
    checks.logs(cloud, root)
    checks.secrets(function, task, token, token_arn, amqp_arn)
    checks.relay(cloud, root, task, relay)
    alarm = checks.alarms(cloud, root, ROOT / "relay/src")
    body = json.loads(cloud.cloudwatch.get_dashboard(DashboardName=name)["DashboardBody"])
    # The stand-in would invoke the function in a container; a worker takes its place.
    cloud.__getattr__("lambda").update_event_source_mapping(UUID=mapping, Enabled=False)
    stacks.allow_plain(cloud, root)
    for one in task["secrets"]:
        relay[one["name"]] = cloud.secretsmanager.get_secret_value(SecretId=one["valueFrom"])["SecretString"]
    tasks = root.nested["Queue"].outputs["TasksUrl"]
    shown = [one for widget in body["widgets"] for one in widget["properties"]["metrics"]]
    checks.endings(shown, ROOT / "handler/src")
    environment = function["Environment"]["Variables"]
    health = task["healthCheck"]["command"][1:]
    said = {"handler": environment, "relay": relay, "health": health, "tasks": tasks, "alarm": alarm, "dashboard": shown}
    print(json.dumps(said))


main(*sys.argv[1:])
