"""What the roles may do against what the binaries call: not less, and not more.

The calls are found in the sources, by the names in AWS's own models.
"""

import re
import unittest
from pathlib import Path

import botocore.session
import templates

SOURCES = Path(__file__).resolve().parents[2]
PAGE = SOURCES / "docs/KUBERNETES.md"
SERVICES = ("sqs", "s3", "secretsmanager")
# Where an operation is not called as the action that permits it.
ACTIONS = {
    "sqs:SendMessageBatch": "sqs:SendMessage",
    "sqs:DeleteMessageBatch": "sqs:DeleteMessage",
    "sqs:ChangeMessageVisibilityBatch": "sqs:ChangeMessageVisibility",
    "s3:HeadObject": "s3:GetObject",
    "s3:HeadBucket": "s3:ListBucket",
    "s3:ListObjectsV2": "s3:ListBucket",
}
# Done for the container and for the function, and not by them.
PLATFORM = {"logs:CreateLogStream", "logs:PutLogEvents", "elasticfilesystem:ClientMount"}
GIVEN = {
    "AccessPointArn": "arn:aws:elasticfilesystem:eu-central-1:1:access-point/fsap-1",
    "FileSystemArn": "arn:fs",
    "ModelUrl": "",
    "PictureKeyArn": "",
    "PictureTags": "",
    "ImageBucket": "",
}


def operations():
    """Every operation of the services, by the name of its method."""
    session = botocore.session.get_session()
    for service in SERVICES:
        for name in session.get_service_model(service).operation_names:
            yield botocore.xform_name(name), f"{service}:{name}"


def called(binary):
    """The actions that a binary's calls need."""
    known, found = dict(operations()), set()
    for path in (SOURCES / binary / "src").rglob("*.rs"):
        if "tests" not in path.with_suffix("").parts:
            code = path.read_text().partition("#[cfg(test)]\nmod tests {")[0]
            found |= {known[name] for name in re.findall(r"\.(\w+)\(\)", code) if name in known}
    return {ACTIONS.get(each, each) for each in found}


def statements(path, policy, parameters):
    """The template with these parameters, and the statements that a role's policy then has."""
    stack = templates.Stack(path, parameters)
    for _, _, _, role in (each for each in stack.resources() if each[2] == "AWS::IAM::Role"):
        for each in role["Policies"]:
            if each["PolicyName"] == policy:
                found = map(stack.value, each["PolicyDocument"]["Statement"])
                return stack, [one for one in found if isinstance(one, dict)]
    raise AssertionError(f"{path} has no policy {policy}")


def allowed(path, policy, parameters):
    """The actions that a role's policy allows."""
    stack, found = statements(path, policy, parameters)
    actions = (one["Action"] for one in found)
    listed = (stack.value(one) for few in actions for one in (few if isinstance(few, list) else [few]))
    return set(listed) - {"AWS::NoValue"}


class Permissions(unittest.TestCase):
    def test_the_relay_may_do_what_it_calls_and_nothing_else(self):
        self.assertEqual(called("relay"), allowed("infra/aws/relay.yaml", "relay", {}))

    def test_the_page_gives_the_relay_on_a_cluster_the_same(self):
        (row,) = re.findall(r"\| of the service account `relay` \| (.*) \|", PAGE.read_text())
        self.assertEqual(allowed("infra/aws/relay.yaml", "relay", {}), set(re.findall(r"`(\w+:\w+)`", row)))

    def test_the_function_may_do_what_it_calls_and_nothing_else(self):
        wanted = called("handler") | PLATFORM
        self.assertIn("sqs:ChangeMessageVisibility", wanted)
        self.assertEqual(wanted, allowed("infra/aws/permissions.yaml", "handler", {**GIVEN, "Acl": "none"}))

    def test_an_acl_is_permitted_where_pictures_get_one(self):
        with_acl, without = (
            allowed("infra/aws/permissions.yaml", "handler", {**GIVEN, "Acl": acl}) for acl in ("public-read", "none")
        )
        self.assertEqual({"s3:PutObjectAcl"}, with_acl - without)

    def test_tags_are_permitted_where_pictures_get_some(self):
        with_tags, without = (
            allowed("infra/aws/permissions.yaml", "handler", {**GIVEN, "Acl": "none", "PictureTags": tags}) for tags in ("k=v", "")
        )
        self.assertEqual({"s3:PutObjectTagging"}, with_tags - without)

    def test_a_key_of_pictures_may_be_used_where_there_is_one_and_no_other(self):
        given = {**GIVEN, "Acl": "none", "PictureKeyArn": "arn:aws:kms:eu-central-1:1:key/a"}
        stack, found = statements("infra/aws/permissions.yaml", "handler", given)
        (one,) = (each for each in found if "kms:" in str(each["Action"]))
        self.assertEqual(["kms:GenerateDataKey", "kms:Decrypt"], one["Action"])
        self.assertEqual(given["PictureKeyArn"], stack.value(one["Resource"]))

    def test_pictures_to_begin_from_may_be_read_where_a_bucket_is_named_and_only_there(self):
        def resources(bucket):
            stack, found = statements("infra/aws/permissions.yaml", "handler", {**GIVEN, "Acl": "none", "ImageBucket": bucket})
            few = [one for one in found if one["Sid"] in ("Look", "Read")]
            return {(one["Sid"], str(stack.value(each))) for one in few for each in one["Resource"]} - {
                (one["Sid"], "AWS::NoValue") for one in few
            }

        more = resources("uploads") - resources("")
        self.assertEqual(["Look", "Read"], sorted(sid for sid, _ in more))
        self.assertTrue(all("ImageBucket" in each or "uploads" in each for _, each in more), more)

    def test_the_function_may_read_the_models_folder_where_it_fetches_it_and_nothing_beside(self):
        for url, wanted in (("", []), ("s3://models/sd15/f16", [("s3:GetObject", "models/sd15/f16/*")])):
            given = {**GIVEN, "ModelUrl": url}
            stack, found = statements("infra/aws/permissions.yaml", "handler", given)
            model = [one for one in found if one["Sid"] == "Model"]
            resources = [one["Resource"]["Sub"] for one in model]
            said = [text.replace("${Folder}", stack.value(own["Folder"])) for text, own in resources]
            said = [each.removeprefix("arn:${AWS::Partition}:s3:::") for each in said]
            with self.subTest(url=url):
                self.assertEqual(wanted, [(one["Action"], each) for one, each in zip(model, said, strict=True)])
                self.assertNotIn("models", str([one for one in found if one["Sid"] != "Model"]))


if __name__ == "__main__":
    unittest.main()
