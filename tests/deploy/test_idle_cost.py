"""What a deployment costs while nobody asks: the page has what the script prints, and the script counts what is made."""

import contextlib
import io
import sys
import unittest
from pathlib import Path

import templates

sys.path.insert(0, str(templates.ROOT / "infra/aws"))
import idle_cost  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "docs/DEPLOY.md"


def counted(parameters):
    """What a deployment with these parameters pays for while nothing runs."""
    made = templates.made({"ModelVolume": "image", **parameters})
    number = {}
    for _, _, kind, _ in made:
        number[kind] = number.get(kind, 0) + 1
    relays = sum(stack.value(each["DesiredCount"]) for stack, _, kind, each in made if kind == "AWS::ECS::Service")
    network = next(stack for stack, name, _, _ in made if name == "Callers")
    return idle_cost.Counted(
        parameters,
        nats=number.get("AWS::EC2::NatGateway", 0),
        addresses=number.get("AWS::EC2::EIP", 0) + relays * network.condition("Open"),
        relays=relays,
        brokers=number.get("AWS::AmazonMQ::Broker", 0),
        secrets=number.get("AWS::SecretsManager::Secret", 0),
        alarms=number["AWS::CloudWatch::Alarm"],
        metrics=number.get("AWS::Logs::MetricFilter", 0),
        dashboards=number["AWS::CloudWatch::Dashboard"],
    )


class IdleCost(unittest.TestCase):
    def test_each_stack_has_what_the_templates_make_with_its_parameters(self):
        for label, stack in idle_cost.STACKS.items():
            with self.subTest(stack=label):
                self.assertEqual(counted(stack.parameters), stack)

    def test_nothing_that_is_paid_by_the_hour_is_left_out(self):
        # What the templates may make that costs something by its mere presence; a new kind has to be looked at.
        paid = {"NatGateway", "EIP", "Broker", "Secret", "Alarm", "MetricFilter", "Dashboard", "Service"}
        # By what lies in it, by what passes, or nothing.
        free = {
            *("VPC", "Subnet", "InternetGateway", "VPCGatewayAttachment", "RouteTable", "Route", "SecurityGroup"),
            *("SubnetRouteTableAssociation", "SecurityGroupIngress", "Role", "TaskDefinition", "Cluster", "LogGroup"),
            *("Queue", "QueuePolicy", "Bucket", "BucketPolicy", "Topic", "Function", "CapacityProvider"),
            *("Distribution", "OriginAccessControl", "FileSystem", "MountTarget", "AccessPoint"),
        }
        found = {kind.rsplit("::", 1)[1] for _, _, kind, _ in templates.root().resources()}
        self.assertEqual({"VPCEndpoint"}, found - paid - free)
        endpoints = [each for _, _, kind, each in templates.root().resources() if kind == "AWS::EC2::VPCEndpoint"]
        for each in endpoints:
            self.assertEqual("Gateway", each.get("VpcEndpointType", "Gateway"), "an interface endpoint is paid by the hour")

    def test_a_relay_task_and_the_broker_are_those_of_the_templates(self):
        task = next(
            each
            for _, _, kind, each in templates.root().resources()
            if kind == "AWS::ECS::TaskDefinition" and "HealthCheck" in each["ContainerDefinitions"][0]
        )
        self.assertEqual((idle_cost.VCPUS * 1024, idle_cost.MEMORY * 1024), (int(task["Cpu"]), int(task["Memory"])))
        stack, broker = templates.the("AWS::AmazonMQ::Broker")
        self.assertIn(stack.value(broker["HostInstanceType"]), idle_cost.PRICES["broker"][1])

    def test_the_page_has_the_table(self):
        page = PAGE.read_text()
        there = page.partition(idle_cost.BEGIN)[2].partition(idle_cost.END)[0]
        self.assertEqual(idle_cost.table(idle_cost.options([])), there, "to mend it: python3 infra/aws/idle_cost.py --write")

    def test_another_price_is_another_sum(self):
        prices = [f"--{name}=0" for name in idle_cost.PRICES]
        self.assertIn("| **a month** | **0.00** | **0.00** | **0.00** | **0.00** |", self.said(prices))
        self.assertIn("| **a month** | **73.00** | **0.00** |", self.said([*prices, "--nat=0.1"]))

    def test_a_price_that_is_none_is_refused_with_option_value_and_limit(self):
        for wrong in ("x", "-1", "inf", "nan"):
            told = io.StringIO()
            with self.subTest(given=wrong), contextlib.redirect_stderr(told), self.assertRaises(SystemExit):
                idle_cost.options([f"--nat={wrong}"])
            self.assertIn(f"--nat: {wrong!r} is no figure from 0", told.getvalue())

    def said(self, arguments):
        return idle_cost.table(idle_cost.options(arguments))


if __name__ == "__main__":
    unittest.main()
