"""How many tasks the relay's service on Fargate has, how it changes them, and that all of it can be left out."""

import json
import re
import unittest

import binaries
import templates


def service(kind, **parameters):
    """The service's settings with a queue of this type."""
    stack, service = templates.the("AWS::ECS::Service", parameters={"QueueType": kind, **parameters})
    deployment = service["DeploymentConfiguration"]
    return {
        "tasks": stack.value(service["DesiredCount"]),
        "least": stack.value(deployment["MinimumHealthyPercent"]),
        "most": stack.value(deployment["MaximumPercent"]),
        "moves": stack.value(service["AvailabilityZoneRebalancing"]),
        "back": deployment["DeploymentCircuitBreaker"],
    }


class Relay(unittest.TestCase):
    BACK = {"Enable": True, "Rollback": True}

    def test_a_deployment_starts_a_new_task_before_it_ends_an_old_one(self):
        wanted = {"tasks": 2, "least": 100, "most": 200, "moves": "ENABLED", "back": self.BACK}
        self.assertEqual(wanted, service("standard"))

    def test_there_are_as_many_as_are_asked_for_and_one_with_a_fifo_queue(self):
        for kind, asked, wanted in (("standard", 1, 1), ("standard", 3, 3), ("fifo", 3, 1)):
            with self.subTest(kind=kind, asked=asked):
                self.assertEqual(wanted, service(kind, RelayTasks=asked)["tasks"])

    def test_without_a_relay_nothing_of_it_is_made_nor_watched_and_no_broker(self):
        kinds = ("AWS::ECS::", "AWS::AmazonMQ::", "AWS::Logs::MetricFilter")
        for asked, wanted in ((2, True), (0, False)):
            made = templates.made({"RelayTasks": asked, "ModelVolume": "image"})
            with self.subTest(tasks=asked):
                for kind in kinds:
                    self.assertEqual(wanted, any(each.startswith(kind) for _, _, each, _ in made), kind)
                alarms = {name for _, name, kind, _ in made if kind == "AWS::CloudWatch::Alarm"}
                self.assertEqual({"DeadLetters", "Waiting", "Failures"}, alarms - {"RelayNotReady", "RelayGone"})
                self.assertEqual(wanted, {"RelayNotReady", "RelayGone"} <= alarms)
                self.assertEqual(wanted, "RelayGone" in alarms or "RelayNotReady" in alarms)
                boards = (each for _, _, kind, each in made if kind == "AWS::CloudWatch::Dashboard")
                text, own = next(boards)["DashboardBody"]["Sub"]
                _, there, left_out = own["Relay"]["If"]
                shown = json.loads(text.replace("${Relay}", there["Sub"] if wanted else left_out))
                self.assertEqual(3 + wanted, len(shown["widgets"]))

    def test_a_relay_without_an_image_is_refused_by_name(self):
        rule = templates.root().body["Rules"]["ImageOfTheRelay"]
        for given, refused in (({"RelayTasks": 0}, False), ({}, True), ({"RelayImageUri": "relay:1"}, False)):
            root = templates.root(given)
            (assertion,) = rule["Assertions"]
            wrong = root.condition(rule["RuleCondition"]) and not root.condition(assertion["Assert"])
            with self.subTest(given=given):
                self.assertEqual(refused, wrong)
        self.assertIn("RelayImageUri", assertion["AssertDescription"])
        self.assertIn("RelayTasks=0", assertion["AssertDescription"])

    def test_a_queue_for_cancelling_is_passed_on_with_its_rights_where_it_is_given(self):
        for given in ("", "image_generation.cancel"):
            parameters = {"AmqpCancelQueue": given, "CancelExpiry": 3600}
            stack, task = templates.the("AWS::ECS::TaskDefinition", lambda each: "relay" in str(each), parameters)
            (container,) = task["ContainerDefinitions"]
            told = stack.given(container)
            sends = lambda each: "sqs:SendMessage" in str(each)  # noqa: E731
            _, role = templates.the("AWS::IAM::Role", sends, {"AmqpCancelQueue": given})
            (policy,) = role["Policies"]
            rights = [one for one in map(stack.value, policy["PolicyDocument"]["Statement"]) if isinstance(one, dict)]
            sids = {one["Sid"]: one["Resource"] for one in rights}
            with self.subTest(given=given):
                if not given:
                    self.assertFalse({"AMQP_CANCEL_QUEUE", "RELAY_CANCEL_BUCKET", "RELAY_CANCEL_EXPIRY"} & told.keys())
                    self.assertEqual({"Send", "Payloads", "Look"}, sids.keys())
                    continue
                self.assertEqual(given, told["AMQP_CANCEL_QUEUE"])
                self.assertTrue(told["RELAY_CANCEL_BUCKET"])
                self.assertEqual("3600", str(told["RELAY_CANCEL_EXPIRY"]))
                self.assertIn("/cancelled/*", str(sids["Cancelled"]))
                self.assertIn("Pictures", sids)
                options = ["--cancel-queue", given, "--cancel-bucket", "pictures", "--cancel-expiry", "3600"]
                self.assertIsNone(binaries.accepts("relay", ["--sqs-queue-url", "http://h/q", "--amqp-url", "amqp://h", *options]))

    def test_with_a_fifo_queue_two_relays_never_run_at_once(self):
        # Moving to another zone starts a second one as well, and is what ECS does unless it is told not to.
        wanted = {"tasks": 1, "least": 0, "most": 100, "moves": "DISABLED", "back": self.BACK}
        self.assertEqual(wanted, service("fifo"))

    def test_the_alarm_reads_what_the_relay_says_when_it_stops(self):
        _, rule = templates.the("AWS::Logs::MetricFilter")
        wanted = dict.fromkeys(re.findall(r'\$\.message = "([^"]+)"', rule["FilterPattern"]))
        self.assertEqual(6, len(wanted), rule["FilterPattern"])
        queue = {"SQS_QUEUE_URL": "http://127.0.0.1:1/1/tasks"}
        started = binaries.start("relay", "--check", environment={**queue, **binaries.MISSING, **binaries.QUICK})
        self.assertIn(json.loads(started.stderr.splitlines()[-1])["message"], wanted)


if __name__ == "__main__":
    unittest.main()
