"""Checks the deployed resources through the services' own interfaces; the templates only where the stand-in cannot say."""

import ast
import json
import re

SECONDS_OF_A_DAY = 86_400


def queue(cloud, root, function, relay):
    url, dead_url = (root.nested["Queue"].outputs[name] for name in ("TasksUrl", "DeadLettersUrl"))
    tasks, dead = (
        cloud.sqs.get_queue_attributes(QueueUrl=one, AttributeNames=["All"])["Attributes"] for one in (url, dead_url)
    )
    assert int(tasks["VisibilityTimeout"]) == 6 * function["Timeout"], tasks["VisibilityTimeout"]
    redrive = json.loads(tasks["RedrivePolicy"])
    assert redrive["deadLetterTargetArn"] == dead["QueueArn"], redrive
    assert str(redrive["maxReceiveCount"]) == function["Environment"]["Variables"]["EASEL_MAX_RECEIVE_COUNT"], redrive
    assert int(dead["MessageRetentionPeriod"]) == 14 * SECONDS_OF_A_DAY > int(tasks["MessageRetentionPeriod"])
    for one in tasks, dead:
        assert one["SqsManagedSseEnabled"] == "true", one
        refuses_plain(json.loads(one["Policy"])["Statement"])
    if url.endswith(".fifo"):
        assert dead_url.endswith(".fifo") and tasks["FifoQueue"] == dead["FifoQueue"] == "true"
        assert relay["SQS_MESSAGE_GROUP_ID"] == "json:/style_id", relay
    [mapping] = cloud.__getattr__("lambda").list_event_source_mappings(EventSourceArn=tasks["QueueArn"])[
        "EventSourceMappings"
    ]
    assert mapping["BatchSize"] == 1, mapping
    wanted = root.nested["Function"].template["Resources"]["HandlerTask"]["Properties"]
    assert wanted["FunctionResponseTypes"] == ["ReportBatchItemFailures"], wanted
    assert wanted["ScalingConfig"] == {"MaximumConcurrency": {"Ref": "MaxConcurrency"}}, wanted
    return mapping["UUID"]


def refuses_plain(statements):
    conditions = [one["Condition"] for one in statements if one["Effect"] == "Deny"]
    assert conditions == [{"Bool": {"aws:SecureTransport": "false"}}], statements


def buckets(cloud, root):
    pictures, payloads = (root.nested["Storage"].outputs[name] for name in ("Pictures", "Payloads"))
    for bucket, public in (pictures, True), (payloads, False):
        rules = cloud.s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"]
        assert rules[0]["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256", rules
        statements = json.loads(cloud.s3.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"]
        refuses_plain(statements)
        allowed = [(one["Action"], one["Resource"]) for one in statements if one["Effect"] == "Allow"]
        readable = [("s3:GetObject", f"arn:aws:s3:::{bucket}/generations/*")]
        assert allowed == (readable if public else []), allowed
        block = cloud.s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"]
        assert block["BlockPublicAcls"] and block["IgnorePublicAcls"], block
        assert block["BlockPublicPolicy"] == block["RestrictPublicBuckets"] == (not public), block
    days = {
        rule["ID"]: rule["Expiration"]["Days"]
        for bucket in (pictures, payloads)
        for rule in cloud.s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]
        if "Expiration" in rule
    }
    # Four days in the queue and fourteen in the other.
    assert days["claims"] == 1 and days["payloads"] > 4 + 14 and "pictures" not in days, days


def roles(cloud, root):
    found = [
        stack.ids[name]
        for logical, stack in root.nested.items()
        for name, resource in stack.template["Resources"].items()
        # That of the capacity provider is SAM's, with AWS' own policy.
        if resource["Type"] == "AWS::IAM::Role" and logical != "Function"
    ]
    # The volume's fill task has two.
    assert len(found) == (5 if "Volume" in root.nested else 3), found
    for role in found:
        assert not cloud.iam.list_attached_role_policies(RoleName=role)["AttachedPolicies"], role
        for name in cloud.iam.list_role_policies(RoleName=role)["PolicyNames"]:
            document = cloud.iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
            # The stand-in keeps what a stack made in the notation of Python.
            document = document if isinstance(document, dict) else ast.literal_eval(document)
            for statement in filter(None, document["Statement"]):
                actions = one_or_many(statement["Action"])
                assert not any("*" in action for action in actions), statement
                # The one action that knows no resource.
                if actions != ["ecr:GetAuthorizationToken"]:
                    assert all(one.startswith("arn:aws:") for one in one_or_many(statement["Resource"])), statement


def one_or_many(value):
    """As a list, without the empty values that the stand-in leaves for AWS::NoValue."""
    return [one for one in (value if isinstance(value, list) else [value]) if one is not None]


def logs(cloud, root):
    groups = cloud.logs.describe_log_groups()["logGroups"]
    ours = [group for group in groups if group["logGroupName"].startswith(root.name + "-")]
    wanted = 3 if "Volume" in root.nested else 2
    assert len(ours) == wanted and all(group["retentionInDays"] == 30 for group in ours), ours


def secrets(function, task, token, token_arn, amqp_arn):
    environment = function["Environment"]["Variables"]
    assert environment["INTERNAL_API_TOKEN_ARN"] == token_arn and "INTERNAL_API_TOKEN" not in environment
    assert token not in json.dumps(function) and token not in json.dumps(task), "a secret in plain text"
    [secret] = task["secrets"]
    assert secret == {"name": "AMQP_URL", "valueFrom": amqp_arn}, secret


def relay(cloud, root, task, environment):
    assert task["readonlyRootFilesystem"] and task["user"] == "65532:65532", task
    assert task["stopTimeout"] > int(environment["RELAY_SHUTDOWN_TIMEOUT"]), task
    host, port = environment["RELAY_HEALTH_ADDR"].split(":")
    assert f"/dev/tcp/{host}/{port}" in task["healthCheck"]["command"][-1], task["healthCheck"]
    names = {key.lower(): root.nested["Relay"].outputs[key] for key in ("Cluster", "Service")}
    [service] = cloud.ecs.describe_services(cluster=names["cluster"], services=[names["service"]])["services"]
    # Two relays would take turns with the messages of a group.
    ordered = environment["SQS_QUEUE_URL"].endswith(".fifo")
    assert service["desiredCount"] == (1 if ordered else 2), service
    wanted = root.nested["Relay"].template["Resources"]["Service"]["Properties"]["DeploymentConfiguration"]
    assert wanted["DeploymentCircuitBreaker"]["Rollback"], wanted


def alarms(cloud, root, source):
    """Alarms with their dimensions; and what the relay's filter looks for is what the relay says."""
    found = {
        alarm["AlarmName"].removeprefix(root.name + "-"): alarm
        for alarm in cloud.cloudwatch.describe_alarms(AlarmNamePrefix=root.name + "-")["MetricAlarms"]
    }
    assert sorted(found) == ["dead-letters", "failures", "relay-gone", "relay-not-ready", "waiting"], sorted(found)
    topic = root.nested["Observability"].outputs["Alarms"]
    assert all(alarm["AlarmActions"] == alarm["OKActions"] == [topic] for alarm in found.values()), found
    queues = root.nested["Queue"].outputs
    for name, queue_name in ("dead-letters", "DeadLettersName"), ("waiting", "TasksName"):
        assert found[name]["Dimensions"] == [{"Name": "QueueName", "Value": queues[queue_name]}], found[name]
    [rule] = cloud.logs.describe_metric_filters(logGroupName=root.nested["Relay"].outputs["Log"])["metricFilters"]
    made = rule["metricTransformations"][0]
    alarm = found["relay-not-ready"]
    assert (made["metricNamespace"], made["metricName"]) == (alarm["Namespace"], alarm["MetricName"]), made
    messages = rule["filterPattern"].split('"')[1::2]
    said = "".join(path.read_text() for path in source.rglob("*.rs"))
    # What it says of SQS and of S3 is one text.
    texts = {message: re.sub(r"\b(SQS|S3)\b", "{}", message) for message in messages}
    assert len(messages) == 6 and all(f'"{message}"' in said or f'"{text}"' in said for message, text in texts.items()), messages
    failures = found["failures"]
    return {"metric": failures["MetricName"], "namespace": failures["Namespace"], "dimensions": failures["Dimensions"]}


def endings(shown, source):
    """Every way for a task to end is on the dashboard."""
    text = (source / "observe/report.rs").read_text().split("impl Ending {")[1].split("\nimpl ")[0]
    words = re.findall(r'Self::\w+ => "([a-z-]+)"', text)
    assert len(words) >= 6 and all(any(word in row for row in shown) for word in words), (words, shown)
