"""Prints what a deployment costs while nobody asks and no GPU runs, as a table in US dollars.

Every price is an option. Its default is the price in us-east-1 on a public page, read on 2026-11-29; --help names the
pages. STACKS says what is counted for each stack, and tests/deploy checks that against the templates. If AWS' own page
or your bill says something else, trust those.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/DEPLOY.md"
BEGIN, END = "<!-- idle cost -->\n", "<!-- /idle cost -->"
HOURS = 730  # of a month
VCPUS, MEMORY = 0.25, 0.5  # of a relay task, in vCPUs and GB: infra/aws/relay.yaml
MODEL = 2.134  # GB: Stable Diffusion 1.5 in half precision

FARGATE = "factualminds.com/blog/amazon-fargate-ecs-task-pricing-2026, 2026-06"
# By option: the default in dollars, what it is for, and the page.
PRICES = {
    "nat": (0.045, "NAT gateway, an hour", "cloudburn.io/blog/aws-nat-gateway-pricing, 2026-02"),
    "address": (0.005, "public IPv4 address, an hour", "cloudburn.io/blog/aws-nat-gateway-pricing, 2026-02"),
    "vcpu": (0.04048, "vCPU of Fargate, an hour", FARGATE),
    "memory": (0.004445, "GB of Fargate, an hour", FARGATE),
    "broker": (
        0.09,
        "mq.m7g.medium for RabbitMQ, an hour",
        "no price page was at hand; reports of users say 56, 66 and 71 dollars a month, and this is the middle one",
    ),
    "secret": (0.40, "secret, a month", "hivebook.wiki/wiki/aws-secrets-manager-rotated-secrets-dynamic-db-credentials-kms, undated"),
    "alarm": (0.10, "alarm, a month", "the same in ten public repositories; ten are free: aws.amazon.com/cloudwatch/pricing"),
    "metric": (0.30, "metric of one's own, a month", "as for alarms; ten are free"),
    "dashboard": (3.00, "dashboard, a month", "as for alarms; three are free"),
    "ecr": (0.10, "GB in ECR, a month", "the page docs/getting-started/costs-and-cleanup of a course on AWS, undated"),
    "efs": (0.30, "GB on EFS, a month", "factualminds.com/blog/amazon-efs-pricing-throughput-modes-storage-classes, 2026-06"),
}


@dataclass(frozen=True)
class Counted:
    """How many of each thing a stack has while nothing runs."""

    parameters: dict
    nats: int
    addresses: int
    relays: int
    brokers: int
    secrets: int
    alarms: int
    metrics: int = 1
    dashboards: int = 1


AMQP = {"AmqpUrlSecretArn": "arn:aws:secretsmanager:us-east-1:123456789012:secret:amqp"}
VPC = {"VpcId": "vpc-1", "SubnetIds": "subnet-1,subnet-2,subnet-3"}
OPEN = {"Connectivity": "public"}
STACKS = {
    "as it comes: new VPC, Amazon MQ": Counted({}, nats=1, addresses=1, relays=2, brokers=1, secrets=3, alarms=5),
    "VPC and broker of your own": Counted(VPC | AMQP, nats=0, addresses=0, relays=2, brokers=0, secrets=1, alarms=5),
    "to try it: public subnets, one relay, broker of your own": Counted(
        OPEN | AMQP | {"RelayTasks": 1}, nats=0, addresses=1, relays=1, brokers=0, secrets=1, alarms=5
    ),
    "the smallest: public subnets, no relay, tasks to SQS": Counted(
        OPEN | {"RelayTasks": 0}, nats=0, addresses=0, relays=0, brokers=0, secrets=1, alarms=3, metrics=0
    ),
}


def rows(price):
    """Each row: its name, its price for a month, and how many of it a stack has."""
    relay = VCPUS * price.vcpu + MEMORY * price.memory
    return [
        (f"NAT gateway, ${price.nat:g} an hour", price.nat * HOURS, lambda stack: stack.nats),
        (f"public address, ${price.address:g} an hour", price.address * HOURS, lambda stack: stack.addresses),
        (f"relay task, ${relay:.4f} an hour", relay * HOURS, lambda stack: stack.relays),
        (f"broker mq.m7g.medium, about ${price.broker:g} an hour", price.broker * HOURS, lambda stack: stack.brokers),
        ("secret", price.secret, lambda stack: stack.secrets),
        (f"images in ECR, {price.images:g} GB (assumed)", price.images * price.ecr, lambda stack: 1),
        ("alarm", price.alarm, lambda stack: stack.alarms),
        ("metric of a log filter", price.metric, lambda stack: stack.metrics),
        ("dashboard", price.dashboard, lambda stack: stack.dashboards),
    ]


def table(price):
    """The table, and the cost of the model in the image and on a volume."""
    lines = ["| dollars a month | " + " | ".join(STACKS) + " |", "| --- |" + " ---: |" * len(STACKS)]
    sums = dict.fromkeys(STACKS, 0.0)
    for name, month, count in rows(price):
        cells = []
        for label, stack in STACKS.items():
            number, dollars = count(stack), count(stack) * month
            sums[label] += dollars
            cells.append("" if not number else f"{dollars:.2f}" if number == 1 else f"{number} × = {dollars:.2f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append("| **a month** | " + " | ".join(f"**{each:.2f}**" for each in sums.values()) + " |")
    lines.append("| an hour | " + " | ".join(f"{each / HOURS:.3f}" for each in sums.values()) + " |")
    volume, image = MODEL * price.efs, MODEL * price.ecr
    lines += ["", f"The model's {MODEL:g} GB cost ${image:.2f} of that in the image; on an EFS volume, ${volume:.2f}."]
    return "\n".join(lines) + "\n"


def options(arguments=None):
    """The prices from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (default, what, source) in PRICES.items():
        text = f"dollars for: {what} (default {default:g}: {source})"
        parser.add_argument(f"--{name}", type=dollars, default=default, metavar="DOLLARS", help=text)
    text = "GB of both images in ECR, model included (default 4: the model, and 2 that were assumed)"
    parser.add_argument("--images", type=dollars, default=4.0, metavar="GB", help=text)
    parser.add_argument("--write", action="store_true", help="write the table into docs/DEPLOY.md")
    return parser.parse_args(arguments)


def dollars(text):
    """A finite number from 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no figure from 0, such as 0.045")
    return value


def main():
    """Prints the table, or writes it."""
    given = options()
    if not given.write:
        sys.stdout.write(table(given))
        return
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(before + BEGIN + table(given) + END + after)


if __name__ == "__main__":
    main()
