"""Dashboard and alert rules for Prometheus: they name the metrics that the running binaries show, all of them and no others."""

import functools
import json
import re
import socket
import subprocess
import time
import unittest
import urllib.request
from pathlib import Path

import binaries
import manifests
import promql_parser
import yaml

TREE = Path(__file__).resolve().parents[2]
FOLDER = manifests.ROOT / "infra/observability"
PAGE = TREE / "docs/OPERATIONS.md"
# What Prometheus itself adds.
ADDED = {"job", "instance", "le"}
# What a machine without a GPU does not show, with its labels and their values.
ON_A_GPU = {"easel_gpu_memory_bytes": ({"kind"}, {("kind", "used"), ("kind", "total")})}
SOURCE = TREE / "handler/src/observe/metrics.rs"
# The names of a histogram's series.
ENDINGS = re.compile(r"_(bucket|sum|count)$")


def free():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def scraped(*command, **environment):
    """What a service shows at /metrics as soon as it listens, though it reaches neither broker nor SQS."""
    address = f"127.0.0.1:{free()}"
    everything = {**binaries.QUICK, **binaries.MISSING, "SQS_QUEUE_URL": "http://127.0.0.1:1/1/tasks", **environment}
    everything |= {"AWS_REGION": "eu-central-1", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
    program, *rest = command
    command = [binaries.FOLDER / program, *rest, "--health-addr", address]
    with subprocess.Popen(command, env=everything, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            until = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < until:
                try:
                    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
                        return answer.read().decode()
                except OSError:
                    time.sleep(0.05)
        finally:
            process.kill()
        raise AssertionError(process.stderr.read())


@functools.cache
def shown():
    """Every metric, with the labels of its series, or None if it has no series yet."""
    cancels = {"AMQP_CANCEL_QUEUE": "tasks.cancel", "RELAY_CANCEL_BUCKET": "pictures"}
    text = scraped("relay", **cancels)
    text += scraped("handler", "worker", EASEL_MODEL_DIR=str(TREE / "tests/model/easel-tiny"), S3_BUCKET="pictures")
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    suffixes = {"counter": ["_total"], "info": ["_info"], "histogram": ["_bucket", "_sum", "_count"]}
    found = dict(ON_A_GPU)
    for name, kind in kinds.items():
        for suffix in suffixes.get(kind, [""]):
            series = re.findall(rf"^{re.escape(name + suffix)}(?:\{{(.*)\}})? ", text, re.MULTILINE)
            labels = {label for one in series for label in re.findall(r'(\w+)="', one)}
            values = {pair for one in series for pair in re.findall(r'(\w+)="([^"]*)"', one)}
            found[name + suffix] = (labels, values) if series else None
    return found


def selectors(node):
    """The metrics that an expression reads, as (name, matchers)."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node.name, node.matchers.matchers
        return
    for part in ("expr", "lhs", "rhs", "param", "vector_selector", "args"):
        below = getattr(node, part, None)
        for one in below if isinstance(below, list) else [below]:
            if one is not None and not isinstance(one, (str, int, float)):
                yield from selectors(one)


def grouped(node):
    """The labels by which an expression groups."""
    modifier = getattr(node, "modifier", None)
    yield from getattr(modifier, "labels", None) or []
    for part in ("expr", "lhs", "rhs", "args"):
        below = getattr(node, part, None)
        for one in below if isinstance(below, list) else [below]:
            if one is not None and not isinstance(one, (str, int, float)):
                yield from grouped(one)


def board():
    return json.loads((FOLDER / "dashboard.json").read_text())


def panels():
    return [panel for panel in board()["panels"] if panel["type"] != "row"]


def asked():
    """Every expression of the dashboard, as Prometheus gets it, with where it is."""
    for panel in panels():
        for target in panel["targets"]:
            text = target["expr"].replace("$__rate_interval", "5m").replace("$worker", ".+").replace("$relay", ".+")
            yield panel["title"], text


def rules():
    groups = yaml.safe_load((FOLDER / "rules.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions():
    yield from asked()
    yield from ((rule["alert"], rule["expr"]) for rule in rules())


class Names(unittest.TestCase):
    def test_the_binaries_show_metrics_of_all_kinds(self):
        for name in ("relay_sent_total", "relay_cancel_stored_total", "easel_tasks_total", "easel_stage_seconds_bucket"):
            self.assertIn(name, shown())
        self.assertGreater(len(shown()), 60)

    def test_what_only_a_gpu_shows_is_in_the_code(self):
        for name, (_, values) in ON_A_GPU.items():
            self.assertIn(f'all.register("{name.removeprefix("easel_")}"', SOURCE.read_text())
            for _, value in values:
                self.assertIn(f'("{value}", ', SOURCE.read_text())

    def test_no_expression_names_a_metric_a_label_or_a_value_that_is_not_there(self):
        for place, text in expressions():
            parsed = promql_parser.parse(text)
            with self.subTest(place=place, expression=text):
                labels = set()
                for name, matchers in selectors(parsed):
                    self.assertIn(name, shown())
                    known = shown()[name]
                    if known is None:
                        continue
                    labels |= known[0]
                    for matcher in matchers:
                        self.assertIn(matcher.name, known[0] | ADDED)
                        wanted = matcher.value.split("|") if matcher.name not in ADDED else []
                        self.assertEqual([], [one for one in wanted if (matcher.name, one) not in known[1]])
                if all(shown()[name] is not None for name, _ in selectors(parsed)):
                    self.assertEqual(set(), set(grouped(parsed)) - labels - ADDED)

    def test_every_metric_is_on_the_dashboard(self):
        there = {ENDINGS.sub("", name) for _, text in asked() for name, _ in selectors(promql_parser.parse(text))}
        self.assertEqual(set(), {ENDINGS.sub("", name) for name in shown()} - there)

    def test_every_metric_is_explained(self):
        page = PAGE.read_text()
        missing = {name for name in (ENDINGS.sub("", name) for name in shown()) if f"`{name}" not in page}
        self.assertEqual(set(), missing)


class Dashboard(unittest.TestCase):
    def test_it_is_one_that_grafana_takes(self):
        whole = board()
        self.assertTrue(whole["title"] and whole["uid"] and whole["schemaVersion"] >= 36)
        numbers = [panel["id"] for panel in whole["panels"]]
        self.assertEqual(len(numbers), len(set(numbers)))
        taken = set()
        for panel in whole["panels"]:
            place = panel["gridPos"]
            cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
            self.assertFalse(cells & taken, panel["title"])
            self.assertLessEqual(place["x"] + place["w"], 24)
            taken |= cells

    def test_it_asks_the_data_source_that_is_chosen(self):
        variables = {one["name"] for one in board()["templating"]["list"]}
        used = set(re.findall(r"\$\{?(\w+)", json.dumps(board()))) - {"__rate_interval", "__all"}
        self.assertEqual(variables, used)
        for panel in panels():
            self.assertEqual("${datasource}", panel["datasource"]["uid"])
            self.assertTrue(panel["description"] and panel["targets"], panel["title"])

    def test_its_variables_read_metrics_that_are_there(self):
        for one in board()["templating"]["list"]:
            for name in re.findall(r"label_values\((\w+),", json.dumps(one)):
                self.assertIn(name, shown())


class Rules(unittest.TestCase):
    def test_each_says_what_is_wrong_and_how_bad_it_is(self):
        names = [rule["alert"] for rule in rules()]
        self.assertEqual(len(names), len(set(names)))
        for rule in rules():
            with self.subTest(rule=rule["alert"]):
                self.assertLessEqual(rule.keys(), {"alert", "expr", "for", "labels", "annotations"})
                self.assertIn(rule["labels"]["severity"], ("warning", "critical"))
                self.assertEqual({"summary", "description"}, rule["annotations"].keys())
                self.assertTrue(all(isinstance(text, str) and text for text in rule["annotations"].values()))
                self.assertRegex(rule.get("for", "1m"), r"^\d+[mh]$")


if __name__ == "__main__":
    unittest.main()
