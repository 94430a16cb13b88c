"""How the relay's service on Fargate changes its tasks: two never less than two, and one never more than one."""

import json
import re
import unittest

import binaries
import templates


def service(kind):
    """The service's settings with a queue of this type."""
    stack, service = templates.the("AWS::ECS::Service", parameters={"QueueType": kind})
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

    def test_with_a_fifo_queue_two_relays_never_run_at_once(self):
        # Moving to another zone starts a second one as well, and is what ECS does unless it is told not to.
        wanted = {"tasks": 1, "least": 0, "most": 100, "moves": "DISABLED", "back": self.BACK}
        self.assertEqual(wanted, service("fifo"))

    def test_the_alarm_reads_what_the_relay_says_when_it_stops(self):
        _, rule = templates.the("AWS::Logs::MetricFilter")
        wanted = dict.fromkeys(re.findall(r'\$\.message = "([^"]+)"', rule["FilterPattern"]))
        self.assertEqual(4, len(wanted), rule["FilterPattern"])
        queue = {"SQS_QUEUE_URL": "http://127.0.0.1:1/1/tasks"}
        started = binaries.start("relay", "--check", environment={**queue, **binaries.MISSING, **binaries.QUICK})
        self.assertIn(json.loads(started.stderr.splitlines()[-1])["message"], wanted)


if __name__ == "__main__":
    unittest.main()
