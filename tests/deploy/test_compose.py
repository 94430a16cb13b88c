"""The compose files against their schema and the binaries; and what they make, with a worker that paints by it."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import unittest
import urllib.request
from pathlib import Path

import binaries
import boto3
import compose
import dockerfile
from manifests import ROOT, seconds_of

HERE = Path(__file__).resolve().parents[2]
PATIENCE = 60


class Written(unittest.TestCase):
    def test_every_file_fits_the_schema(self):
        self.assertEqual(["compose.gpu.yaml", "compose.yaml"], [path.name for path in compose.FILES])
        command = [Path(sys.executable).with_name("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
        checked = subprocess.run([*command, *compose.FILES], capture_output=True, text=True, check=False)
        self.assertEqual(0, checked.returncode, checked.stdout)

    def test_every_variable_is_one_that_the_binary_reads_and_every_value_one_that_it_takes(self):
        for files in (("compose.yaml",), ("compose.yaml", "compose.gpu.yaml")):
            for name, binary in compose.OURS.items():
                service = compose.services(*files)[name]
                arguments = service.get("command", [])
                known = binaries.variables(binary, binaries.subcommand(arguments))
                for variable in (*service["environment"], *service["passed_on"]):
                    if not binaries.OTHERS.fullmatch(variable):
                        self.assertIn(variable, known, f"{files} {name}")
                check = ["--check"] if binary == "relay" else []
                environment = {**service["environment"], **binaries.MISSING, **binaries.QUICK}
                started = binaries.start(binary, *arguments, *check, environment=environment)
                with self.subTest(files=files, service=name):
                    self.assertNotIn(started.returncode, (0, binaries.REFUSED), started.stderr)

    def test_the_shell_says_what_becomes_of_flagged_pictures(self):
        self.assertEqual({"EASEL_SAFETY"}, compose.services()["worker"]["passed_on"])

    def test_a_gpu_is_asked_for_where_there_is_one(self):
        alone, beside = (
            compose.services(*files)["worker"] for files in (("compose.yaml",), ("compose.yaml", "compose.gpu.yaml"))
        )
        self.assertEqual(("cpu", "cuda"), tuple(each["environment"]["EASEL_DEVICE"] for each in (alone, beside)))
        (device,) = beside["deploy"]["resources"]["reservations"]["devices"]
        self.assertEqual(["gpu"], device["capabilities"])

    def test_what_is_built_is_in_the_dockerfile_and_what_is_fetched_has_a_version(self):
        stages = dockerfile.stages(ROOT / "infra/image/Dockerfile")
        for name, service in compose.services().items():
            with self.subTest(service=name):
                if name in compose.OURS:
                    self.assertEqual(compose.OURS[name], service["build"]["target"])
                    self.assertIn(service["build"]["target"], stages)
                    self.assertEqual("infra/image/Dockerfile", service["build"]["dockerfile"])
                    self.assertEqual("linux/amd64", service["platform"])
                else:
                    self.assertRegex(service["image"], r":\d+\.\d")
        stand_in = compose.services()["aws"]["image"].rpartition(":")[2]
        requirements = (HERE / "infra/local/requirements-demo.txt").read_text()
        self.assertEqual(re.search(r"^moto\[.*==(.*)$", requirements, flags=re.M)[1], stand_in)

    def test_nothing_is_open_to_other_machines_and_ours_may_do_little(self):
        for name, service in compose.services().items():
            for port in service.get("ports", []):
                self.assertTrue(port.startswith("127.0.0.1:"), f"{name}: {port}")
            if name in compose.OURS:
                self.assertTrue(service["read_only"])
                self.assertEqual(["ALL"], service["cap_drop"])

    def test_ours_may_end_in_order(self):
        limit = int(binaries.variables("relay")["RELAY_SHUTDOWN_TIMEOUT"].default)
        self.assertGreater(seconds_of(compose.services()["relay"]["stop_grace_period"]), limit)
        self.assertGreaterEqual(seconds_of(compose.services()["worker"]["stop_grace_period"]), 300)


class Local:
    """What compose starts, as processes of this machine."""

    def __init__(self, stack):
        self.stack = stack
        self.folder = stack.enter_context(tempfile.TemporaryDirectory())
        moto = self.start([Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", "0"])
        self.port = self.line(moto, r"Running on http://127\.0\.0\.1:(\d+)")[1]

    def start(self, command, environment=None):
        environment = {**os.environ, **(environment or {})}
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        self.stack.callback(lambda: (process.kill(), process.wait(), process.stdout.close()))
        return process

    def line(self, process, pattern):
        """The next line that has this."""
        said = []
        # What says nothing is ended, and then there is no line any more.
        patience = threading.Timer(PATIENCE, process.kill)
        patience.start()
        try:
            for line in process.stdout:
                said.append(line)
                if found := re.search(pattern, line):
                    return found
        finally:
            patience.cancel()
        raise AssertionError(f"{process.args}: nothing like {pattern} in:\n{''.join(said)}")

    def environment(self, service, **other):
        """The service's, with this machine's addresses."""
        given = compose.services()[service]["environment"]
        here = {name: re.sub(r"http://(aws|127\.0\.0\.1):5000", f"http://127.0.0.1:{self.port}", value)
                for name, value in given.items()}  # fmt: skip
        return {**here, "AWS_EC2_METADATA_DISABLED": "true", **other}


class Run(unittest.TestCase):
    def test_a_worker_paints_with_what_the_files_give_it(self):
        with contextlib.ExitStack() as stack:
            local = Local(stack)
            made = local.start(
                [sys.executable, compose.FOLDER / "resources.py", HERE / "tests/model/styles"],
                local.environment("resources"),
            )
            said = made.communicate(timeout=PATIENCE)[0]
            self.assertEqual(0, made.returncode, said)
            self.assertIn("LoRA s3://stylelicense-models/halftone.safetensors", said)
            backend = local.start([sys.executable, "-u", compose.FOLDER / "backend.py", "0"])
            port = local.line(backend, r"listening on port (\d+)")[1]
            settings = local.environment(
                "worker",
                EASEL_MODEL_DIR=str(HERE / "tests/model/easel-tiny"),
                EASEL_CACHE_DIR=local.folder,
                EASEL_WEBHOOK_HOSTS=f"127.0.0.1:{port}",
            )
            worker = local.start([binaries.FOLDER / "handler", *compose.services()["worker"]["command"]], settings)
            client = {"region_name": settings["AWS_REGION"], "endpoint_url": settings["AWS_ENDPOINT_URL"]}
            sqs = boto3.client("sqs", aws_access_key_id="local", aws_secret_access_key="local", **client)
            attributes = sqs.get_queue_attributes(QueueUrl=settings["SQS_QUEUE_URL"], AttributeNames=["All"])
            receives = json.loads(attributes["Attributes"]["RedrivePolicy"])["maxReceiveCount"]
            known = binaries.variables("handler", ("worker",))["EASEL_MAX_RECEIVE_COUNT"]
            self.assertEqual(int(known.default), receives)
            message = json.loads((compose.FOLDER / "task.json").read_text())
            self.assertEqual(binaries.variables("relay")["AMQP_QUEUE"].default, message["routing_key"])
            # By this machine's address, and quickly.
            here = {"webhook_url": f"http://127.0.0.1:{port}", "num_inference_steps": 1}
            task = {**json.loads(message["payload"]), **here}
            sqs.send_message(QueueUrl=settings["SQS_QUEUE_URL"], MessageBody=json.dumps(task))
            try:
                told = local.line(backend, r"(complete|failed) (.*)")
            except AssertionError as silent:
                worker.kill()
                raise AssertionError(worker.stdout.read()) from silent
            self.assertEqual("complete", told[1], told[2])
            with urllib.request.urlopen(json.loads(told[2])["result_url"]) as picture:
                self.assertEqual(b"\xff\xd8", picture.read(2))


if __name__ == "__main__":
    unittest.main()
