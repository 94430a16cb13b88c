"""How long `handler weights fetch` takes for a folder of the size of Stable Diffusion 1.5 in half precision, from a stand-in for S3 on loopback.

    python3 tests/bench/weights.py HANDLER [--rate 88] [--connections 1] [--rounds 3]

The files are made of random bytes: 859.5, 123.1 and 83.7 million numbers of two bytes, 2.1 GB. The stand-in sends them by sendfile(2), without
TLS, from the page cache. With --rate each of its connections sends so many MB/s at most, as one connection to S3 does; with --connections it
serves so many at a time, the others wait. Prints what the last line of the command says, and its processor time, for each round.
"""

import argparse
import contextlib
import hashlib
import json
import os
import resource
import shutil
import subprocess
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# Parameters of UNet, text encoder and VAE.
SIZES = {
    "unet/diffusion_pytorch_model.fp16.safetensors": 2 * 859_520_964,
    "text_encoder/model.fp16.safetensors": 2 * 123_060_480,
    "vae/diffusion_pytorch_model.fp16.safetensors": 2 * 83_653_863,
}
BLOCK = 8 << 20
# What is sent at once where a connection has a rate.
SLICE = 256 << 10


def make(folder):
    """The files and their manifest."""
    listed = []
    for path, size in SIZES.items():
        sha256, target = hashlib.sha256(), folder / path
        target.parent.mkdir(parents=True)
        with target.open("wb") as file:
            for start in range(0, size, BLOCK):
                block = os.urandom(min(BLOCK, size - start))
                sha256.update(block)
                file.write(block)
        listed.append({"path": path, "bytes": size, "sha256": sha256.hexdigest()})
    manifest = {"repo": "made/up", "revision": "main", "commit": "0" * 40, "variant": "fp16", "files": listed}
    (folder / "easel-weights.json").write_text(json.dumps(manifest))


class Storage(BaseHTTPRequestHandler):
    """S3 as far as a file is read from it: HEAD, and GET with a range."""

    protocol_version = "HTTP/1.1"
    folder, rate, turns = None, None, None

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        path, start, end = self.answer()
        limit = self.turns or contextlib.nullcontext()
        with limit, path.open("rb") as file:
            begun, at = time.monotonic(), start
            while at < end:
                at += os.sendfile(self.connection.fileno(), file.fileno(), at, min(end - at, SLICE if self.rate else end - at))
                if self.rate:
                    time.sleep(max(0, begun + (at - start) / self.rate - time.monotonic()))

    def answer(self):
        """The head of an answer; the file, and the first byte and the one after the last."""
        path = self.folder / self.path.split("?")[0].removeprefix("/models/sd15/")
        size = path.stat().st_size
        wanted = self.headers.get("Range")
        first, last = map(int, wanted.removeprefix("bytes=").split("-")) if wanted else (0, size - 1)
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("ETag", f'"{path.name}"')
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        self.wfile.flush()
        return path, first, last + 1

    def log_message(self, *_):
        """Nothing."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("handler")
    parser.add_argument("--rate", type=float, help="MB/s of a connection, at most")
    parser.add_argument("--connections", type=int, help="served at a time, at most")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, target = Path(name, "models"), Path(name, "model")
        make(folder)
        Storage.folder, Storage.rate = folder, given.rate and given.rate * 1e6
        Storage.turns = given.connections and threading.BoundedSemaphore(given.connections)
        server = ThreadingHTTPServer(("127.0.0.1", 0), Storage)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "NO_PROXY": "127.0.0.1",
        }
        # What was made is on the disk before the clock runs.
        os.sync()
        for _ in range(given.rounds):
            command = [given.handler, "weights", "fetch", "s3://models/sd15", "--to", target]
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
            print(f"{done.stdout.splitlines()[-1]}, processor {user:.1f} s user and {system:.1f} s system", flush=True)
            shutil.rmtree(target)


if __name__ == "__main__":
    main()
