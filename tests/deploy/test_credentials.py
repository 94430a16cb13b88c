"""Content Credentials of the function: off unless asked for, and then it may read those two secrets and no others."""

import unittest

import templates

SECRETS = {"CredentialCertificateArn": "certificate", "CredentialKeyArn": "key", "InternalApiTokenArn": "token"}
GIVEN = {name: f"arn:aws:secretsmanager:eu-central-1:111122223333:secret:{it}" for name, it in SECRETS.items()}
VARIABLES = {"EASEL_CREDENTIAL_CERTIFICATE_ARN": "CredentialCertificateArn", "EASEL_CREDENTIAL_KEY_ARN": "CredentialKeyArn"}


def variables(parameters):
    """What the function is told of them."""
    stack, function = templates.the("AWS::Serverless::Function", parameters=parameters)
    told = function["Environment"]["Variables"]
    values = {name: stack.value(told[name]) for name in VARIABLES}
    return {name: value for name, value in values.items() if value != "AWS::NoValue"}


def readable(parameters):
    """The secrets that the function's role may read."""
    for stack, _, kind, role in templates.root(parameters).resources():
        for policy in role.get("Policies", []) if kind == "AWS::IAM::Role" else []:
            for statement in policy["PolicyDocument"]["Statement"] if policy["PolicyName"] == "handler" else []:
                if stack.value(statement).get("Action") == "secretsmanager:GetSecretValue":
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


if __name__ == "__main__":
    unittest.main()
