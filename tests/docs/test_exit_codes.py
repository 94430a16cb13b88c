"""Each exit code that --help lists is one that comes, and no other does: every one has a command here that ends with it."""

import re
import socket
import tempfile
import unittest

import configuration

binaries = configuration.binaries
TOKEN = {"INTERNAL_API_TOKEN": "token"}


def refused():
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def listed(binary):
    """The codes in --help."""
    part = re.search(r"^Exit codes:\n((?: .*\n)+)", binaries.manual(binary), re.MULTILINE)[1]
    return {int(code) for code in re.findall(r"^  (\d+) +\S", part, re.MULTILINE)}


class ExitCodes(unittest.TestCase):
    def ends(self, binary, arguments, environment):
        started = binaries.start(binary, *arguments, environment=environment, timeout=60)
        self.assertNotIn("panicked", started.stderr)
        return started.returncode

    def test_of_the_handler(self):
        with tempfile.TemporaryDirectory() as empty:
            seen = {
                self.ends("handler", ["schema", "task"], {}),
                self.ends("handler", ["weights", "verify", empty], {}),
                self.ends("handler", ["worker", "--concurrency", "0"], TOKEN),
                self.ends("handler", ["nonsense"], {}),
            }
        self.assertEqual(seen, listed("handler"))

    def test_of_the_relay(self):
        environment = {"AMQP_URL": f"amqp://{refused()}", "SQS_QUEUE_URL": f"http://{refused()}/1/q", "AMQP_CONNECT_TIMEOUT": "1"}
        aws = {"AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            seen = {
                self.ends("relay", ["--help"], {}),
                self.ends("relay", ["--health-addr", address], {**environment, **aws}),
                self.ends("relay", ["--nonsense"], {}),
                self.ends("relay", ["--check"], {**environment, **aws}),
            }
        self.assertEqual(seen, listed("relay"))


if __name__ == "__main__":
    unittest.main()
