"""The broker that the template makes if none is named: who reaches it, and where its password is."""

import unittest

import templates


def broker(mode):
    """The broker's stack with this mode, with three subnets to choose from."""
    given = {"Mode": mode, "SubnetIds": ["one", "two", "three"], "Callers": "callers", "BackendSecurityGroup": ""}
    return templates.Stack("infra/aws/broker.yaml", given)


class Broker(unittest.TestCase):
    def test_one_broker_has_one_subnet_and_three_have_all(self):
        for mode, wanted in (("SINGLE_INSTANCE", ["one"]), ("CLUSTER_MULTI_AZ", ["one", "two", "three"])):
            stack = broker(mode)
            subnets = stack.value(stack.body["Resources"]["Broker"]["Properties"]["SubnetIds"])
            with self.subTest(mode=mode):
                self.assertEqual(wanted, [stack.value(each) for each in subnets])

    def test_it_is_not_public_and_lets_in_the_relay_and_the_backend_only(self):
        stack = broker("SINGLE_INSTANCE")
        resources = stack.body["Resources"]
        properties = resources["Broker"]["Properties"]
        self.assertFalse(properties["PubliclyAccessible"])
        self.assertEqual([{"Ref": "Group"}], properties["SecurityGroups"])
        rules = [each["Properties"] for each in resources.values() if each["Type"] == "AWS::EC2::SecurityGroupIngress"]
        sources = [each["SourceSecurityGroupId"] for each in rules]
        self.assertCountEqual([{"Ref": "Callers"}, {"Ref": "BackendSecurityGroup"}], sources)
        self.assertEqual({(5671, 5671)}, {(each["FromPort"], each["ToPort"]) for each in rules})
        self.assertFalse(stack.condition(resources["FromBackend"]["Condition"]))

    def test_its_password_is_made_there_and_read_where_it_is_needed(self):
        resources = broker("SINGLE_INSTANCE").body["Resources"]
        self.assertNotIn("SecretString", resources["Password"]["Properties"])
        (user,) = resources["Broker"]["Properties"]["Users"]
        reference = "{{resolve:secretsmanager:${Password}:SecretString:password}}"
        self.assertEqual({"Sub": reference}, user["Password"])
        text, _ = resources["AmqpUrl"]["Properties"]["SecretString"]["Sub"]
        self.assertEqual(f"amqps://{user['Username']}:{reference}@${{Host}}", text)


if __name__ == "__main__":
    unittest.main()
