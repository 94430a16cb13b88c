#!/usr/bin/env python3
"""Tasks a second of a worker that takes one task at a time, and of one that takes several, in one run.

    tests/bench/tasks.py HANDLER --model DIR --lora FILE [--tasks 24] [--concurrency 4] [--steps 50] [--latency 20] [--rounds 3]

The worker is the real one; queue and buckets are moto, in this process, and so is the receiver of the webhooks. Each request to S3
and each webhook is answered after `--latency` milliseconds, as a network would. Before it is measured, each worker paints as many
tasks as it takes at a time, twice. Measured is the time from the first message in the queue to the last `complete`. All tasks have
one LoRA and size, and prompts and seeds of their own. The ways take turns for `--rounds` rounds; figures are medians.
Needs moto[s3,sqs] and boto3 (infra/local/requirements-demo.txt).
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

SUBJECTS = ["lighthouse", "red heart", "cat", "flowers", "blue square", "sunset", "tree", "yellow star"]
PATIENCE = 300


class Receiver(ThreadingHTTPServer):
    """Takes webhooks, and says which tasks have ended."""

    def __init__(self, latency: float):
        super().__init__(("127.0.0.1", 0), Webhook)
        self.latency, self.ends, self.change = latency, {}, threading.Condition()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def wait_for(self, ids: range) -> float:
        """Waits until all have ended, and gives the moment of the last end."""
        with self.change:
            if not self.change.wait_for(lambda: all(task in self.ends for task in ids), PATIENCE):
                raise SystemExit(f"after {PATIENCE} s of {len(ids)} tasks {len([1 for task in ids if task in self.ends])} have ended")
            failed = [self.ends[task] for task in ids if not self.ends[task][0].endswith("/complete")]
            if failed:
                raise SystemExit(f"{len(failed)} tasks failed: {failed[0]}")
            return max(self.ends[task][1] for task in ids)


class Webhook(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        time.sleep(self.server.latency)
        if not self.path.endswith("/progress"):
            with self.server.change:
                self.server.ends[body["generation_id"]] = (self.path, time.monotonic(), body.get("error_message"))
                self.server.change.notify_all()
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    do_PATCH = do_POST

    def log_message(self, *_):
        pass


def stand_in(latency: float) -> str:
    """Starts moto; S3 answers late."""
    moto = DomainDispatcherApplication(create_backend_app)

    def application(environ, start_response):
        if "/s3/" in environ.get("HTTP_AUTHORIZATION", ""):
            time.sleep(latency)
        return moto(environ, start_response)

    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def free_port() -> int:
    with ThreadingHTTPServer(("127.0.0.1", 0), Webhook) as server:
        return server.server_port


class Worker:
    """One way of working, measured."""

    def __init__(self, options, aws, receiver, name: str, arguments: list[str], at_once: int):
        self.options, self.aws, self.receiver, self.name, self.at_once = options, aws, receiver, name, at_once
        self.arguments, self.port, self.folder = arguments, free_port(), tempfile.mkdtemp()
        self.queue = aws["sqs"].create_queue(QueueName=f"tasks-{self.port}")["QueueUrl"]
        self.times = []

    def send(self, ids: range) -> float:
        began = time.monotonic()
        for first in range(0, len(ids), 10):
            entries = [{"Id": str(task), "MessageBody": json.dumps(self.task(task))} for task in ids[first : first + 10]]
            self.aws["sqs"].send_message_batch(QueueUrl=self.queue, Entries=entries)
        return began

    def task(self, number: int) -> dict:
        return {
            "generation_id": number, "style_id": 1, "lora_model_url": "s3://models/lora.safetensors", "seed": number,
            "prompt_tags": [SUBJECTS[number % len(SUBJECTS)], "white background"], "artist_name": "Ada Kowalska",
            "num_inference_steps": self.options.steps, "webhook_url": f"http://127.0.0.1:{self.receiver.server_port}",
        }

    def measure(self, numbers) -> None:
        address = f"127.0.0.1:{self.port}"
        env = os.environ | self.aws["env"] | {"EASEL_CACHE_DIR": self.folder, "EASEL_MODEL_DIR": str(self.options.model)}
        command = [str(self.options.handler), "worker", "--sqs-queue-url", self.queue, "--health-addr", address, *self.arguments]
        with open(Path(self.folder) / "log", "w") as log, subprocess.Popen(command, env=env, stdout=log, stderr=log) as worker:
            try:
                self.until_ready(address, worker)
                for _ in range(2):
                    ids = numbers(self.at_once)
                    self.send(ids)
                    self.receiver.wait_for(ids)
                ids = numbers(self.options.tasks)
                self.times.append(-self.send(ids) + self.receiver.wait_for(ids))
            finally:
                worker.terminate()
        self.together = (Path(self.folder) / "log").read_text().count("painted together")

    def until_ready(self, address: str, worker) -> None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and worker.poll() is None:
            try:
                urllib.request.urlopen(f"http://{address}/readyz").close()
                return
            except OSError:
                time.sleep(0.05)
        raise SystemExit(f"the worker did not get ready: {(Path(self.folder) / 'log').read_text()[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("handler", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--lora", type=Path, required=True)
    for name, default in (("tasks", 24), ("concurrency", 4), ("steps", 50), ("latency", 20), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    env = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1"}
    env |= {"AWS_ENDPOINT_URL": stand_in(options.latency / 1e3), "EASEL_ALLOW_PRIVATE_WEBHOOKS": "true", "INTERNAL_API_TOKEN": "test"}
    env |= {"S3_BUCKET": "pictures", "EASEL_RESULT_ACL": "none"}
    os.environ |= env
    aws = {"env": env, "sqs": boto3.client("sqs"), "s3": boto3.client("s3")}
    for bucket in ("pictures", "models"):
        aws["s3"].create_bucket(Bucket=bucket)
    aws["s3"].put_object(Bucket="models", Key="lora.safetensors", Body=options.lora.read_bytes())
    receiver, last = Receiver(options.latency / 1e3), 0

    def numbers(count: int) -> range:
        nonlocal last
        last += count
        return range(last - count + 1, last + 1)

    many = str(options.concurrency)
    ways = [
        Worker(options, aws, receiver, "one by one", ["--concurrency", "1"], 1),
        Worker(options, aws, receiver, f"{many} at a time, painted alone", ["--concurrency", many, "--batch", "1"], options.concurrency),
        Worker(options, aws, receiver, f"{many} at a time, painted together", ["--concurrency", many, "--batch", many], options.concurrency),
    ]
    for _ in range(options.rounds):
        for way in ways:
            way.measure(numbers)
    base = statistics.median(ways[0].times)
    for way in ways:
        middle = statistics.median(way.times)
        print(f"{way.name:<30} {options.tasks / middle:7.2f} tasks/s  {1e3 * middle / options.tasks:7.1f} ms a task  ratio {base / middle:.2f}"
              f"  batches {way.together}  rounds {' '.join(f'{taken:.2f}' for taken in way.times)} s")


if __name__ == "__main__":
    main()
