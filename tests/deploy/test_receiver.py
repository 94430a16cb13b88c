"""The receiver for who has no backend: what it does with a webhook, and who may send it one."""

import contextlib
import io
import unittest

import templates

TOKEN = "token-that-nobody-may-read"


class Receiver(unittest.TestCase):
    def setUp(self):
        stack = templates.Stack("infra/aws/receiver.yaml")
        self.resources = {name: (kind, each) for _, name, kind, each in stack.resources()}

    def receive(self, **event):
        """What it answers, and what it writes into its log."""
        _, function = self.resources["Receiver"]
        module, name = function["Handler"].split(".")
        self.assertEqual("index", module, "that is what Lambda calls a ZipFile")
        code = {}
        exec(function["Code"]["ZipFile"], code)  # ours
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            answer = code[name](event, None)
        return answer["statusCode"], log.getvalue()

    def test_it_takes_a_webhook_and_writes_down_what_it_says_but_not_the_token(self):
        call = {"http": {"method": "POST"}}
        headers = {"authorization": f"Bearer {TOKEN}"}
        path, body = "/api/webhooks/inference/complete", '{"generation_id":1,"result_url":"https://b/generations/gen_1.jpg"}'
        code, log = self.receive(requestContext=call, rawPath=path, body=body, headers=headers)
        self.assertEqual((204, f"POST {path} {body}\n"), (code, log))
        self.assertEqual(204, self.receive(requestContext=call, rawPath="/", headers=headers)[0])

    def test_its_address_is_called_from_the_internet_and_it_may_do_nothing_but_log(self):
        allowed = {each["Action"]: each for kind, each in self.resources.values() if kind == "AWS::Lambda::Permission"}
        self.assertEqual({"lambda:InvokeFunctionUrl", "lambda:InvokeFunction"}, set(allowed))
        self.assertTrue(allowed["lambda:InvokeFunction"]["InvokedViaFunctionUrl"], "not by every account's API call")
        _, role = self.resources["Role"]
        (statement,) = role["Policies"][0]["PolicyDocument"]["Statement"]
        self.assertEqual(["logs:CreateLogStream", "logs:PutLogEvents"], statement["Action"])
        self.assertNotIn("ManagedPolicyArns", role)


if __name__ == "__main__":
    unittest.main()
