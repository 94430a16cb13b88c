"""How pictures are read, for each value of PictureAccess: the one way that was asked for is open, and no other."""

import unittest

import templates

CLOUDFRONT = {"Service": "cloudfront.amazonaws.com"}
# Of the bucket's four locks, those that are on.
POLICY, ACLS = {"BlockPublicPolicy", "RestrictPublicBuckets"}, {"BlockPublicAcls", "IgnorePublicAcls"}


def storage(access):
    """The stack of the buckets with this access."""
    return templates.Stack("infra/aws/storage.yaml", {"Access": access, "PictureDays": 0})


def pictures(access):
    """The bucket of the pictures, as (locks that are on, who owns objects, what is allowed)."""
    stack = storage(access)
    bucket = stack.body["Resources"]["Pictures"]["Properties"]
    locks = {name for name, value in bucket["PublicAccessBlockConfiguration"].items() if stack.value(value)}
    (rule,) = bucket["OwnershipControls"]["Rules"]
    policy = stack.body["Resources"]["PicturesPolicy"]["Properties"]["PolicyDocument"]
    statements = [stack.value(each) for each in policy["Statement"]]
    allowed = [each for each in statements if each != "AWS::NoValue" and each["Effect"] == "Allow"]
    return locks, stack.value(rule["ObjectOwnership"]), allowed


class Pictures(unittest.TestCase):
    def check_only_pictures(self, statement):
        self.assertEqual("s3:GetObject", statement["Action"])
        self.assertEqual({"Sub": "${Pictures.Arn}/generations/*"}, statement["Resource"])

    def test_by_policy_everybody_reads_pictures_and_acls_are_locked(self):
        locks, owner, (statement,) = pictures("bucket-policy")
        self.assertEqual((ACLS, "BucketOwnerEnforced", "*"), (locks, owner, statement["Principal"]))
        self.check_only_pictures(statement)

    def test_by_cloudfront_its_one_distribution_reads_pictures_and_all_is_locked(self):
        locks, owner, (statement,) = pictures("cloudfront")
        self.assertEqual((ACLS | POLICY, "BucketOwnerEnforced"), (locks, owner))
        self.assertEqual(CLOUDFRONT, statement["Principal"])
        self.check_only_pictures(statement)
        self.assertIn(":distribution/${Distribution}", str(statement["Condition"]["StringEquals"]["AWS:SourceArn"]))
        distribution = storage("cloudfront").body["Resources"]["Distribution"]["Properties"]["DistributionConfig"]
        (origin,) = distribution["Origins"]
        self.assertEqual({"GetAtt": "OriginAccess.Id"}, origin["OriginAccessControlId"])
        self.assertEqual({"GetAtt": "Pictures.RegionalDomainName"}, origin["DomainName"])

    def test_by_acl_the_policy_opens_nothing(self):
        self.assertEqual((POLICY, "BucketOwnerPreferred", []), pictures("acl"))

    def test_private_pictures_are_open_to_nobody(self):
        self.assertEqual((ACLS | POLICY, "BucketOwnerEnforced", []), pictures("private"))

    def test_a_result_url_leads_to_where_pictures_are_read(self):
        for access, host, acl in (
            ("bucket-policy", "Pictures.RegionalDomainName", "none"),
            ("acl", "Pictures.RegionalDomainName", "public-read"),
            ("cloudfront", "Distribution.DomainName", "none"),
        ):
            stack = storage(access)
            outputs = {name: stack.value(each["Value"]) for name, each in stack.body["Outputs"].items()}
            with self.subTest(access=access):
                self.assertIn("https://${" + host + "}", outputs["ResultBaseUrl"])
                self.assertEqual(acl, outputs["ResultAcl"])


if __name__ == "__main__":
    unittest.main()
