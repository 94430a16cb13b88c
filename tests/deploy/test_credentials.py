"""Content Credentials of the function: off unless asked for, and then it may read those two secrets and no others."""

import re
import unittest

import binaries
import manifests
import templates

SECRETS = {"CredentialCertificateArn": "certificate", "CredentialKeyArn": "key", "InternalApiTokenArn": "token"}
GIVEN = {name: f"arn:aws:secretsmanager:eu-central-1:111122223333:secret:{it}" for name, it in SECRETS.items()}
VARIABLES = {
    "EASEL_CREDENTIAL_CERTIFICATE_ARN": "CredentialCertificateArn",
    "EASEL_CREDENTIAL_KEY_ARN": "CredentialKeyArn",
}


def variables(parameters):
    """The function's variables for them."""
    stack, function = templates.the("AWS::Serverless::Function", parameters=parameters)
    told = function["Environment"]["Variables"]
    values = {name: stack.value(told[name]) for name in VARIABLES}
    return {name: value for name, value in values.items() if value != "AWS::NoValue"}


def readable(parameters):
    """The secrets that the function's role may read."""
    for stack, _, kind, role in templates.root(parameters).resources():
        for policy in role.get("Policies", []) if kind == "AWS::IAM::Role" else []:
            for statement in policy["PolicyDocument"]["Statement"] if policy["PolicyName"] == "handler" else []:
                statement = stack.value(statement)
                # One that is left out is no dictionary.
                if isinstance(statement, dict) and statement["Action"] == "secretsmanager:GetSecretValue":
                    return {stack.value(each) for each in statement["Resource"]} - {"AWS::NoValue"}
    raise AssertionError("no statement about secrets")


class Credentials(unittest.TestCase):
    def test_without_a_certificate_there_are_none(self):
        given = {"InternalApiTokenArn": GIVEN["InternalApiTokenArn"]}
        self.assertEqual({}, variables(given))
        self.assertEqual(set(given.values()), readable(given))

    def test_the_function_is_told_both_secrets_and_may_read_just_these(self):
        given = {name: f"{arn}#pem" for name, arn in GIVEN.items()}
        self.assertEqual({name: given[parameter] for name, parameter in VARIABLES.items()}, variables(given))
        self.assertEqual(set(GIVEN.values()), readable(given))

    def test_what_an_overlay_offers_behind_a_hash_is_what_the_worker_takes(self):
        for path in manifests.ROOT.glob("infra/kubernetes/overlays/*/worker.env"):
            offered = dict(re.findall(r"^#([A-Z0-9_]+)=(\S+)$", path.read_text(), flags=re.M))
            self.assertLessEqual(offered.keys(), binaries.variables("handler", ("worker",)).keys())
            queue = {"SQS_QUEUE_URL": "http://127.0.0.1:1/1/tasks"}
            environment = {**offered, **queue, **binaries.MISSING, **binaries.QUICK}
            started = binaries.start("handler", "worker", environment=environment)
            with self.subTest(overlay=path.parent.name):
                self.assertNotIn(started.returncode, (0, binaries.REFUSED), started.stderr)


if __name__ == "__main__":
    unittest.main()
