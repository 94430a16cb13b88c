"""Who may reach whom: the pods by their policies, the containers and instances on AWS by their security groups."""

import ipaddress
import unittest

import manifests
import templates

# What an overlay may open: the agent of EKS Pod Identity.
AGENTS = {"169.254.170.23/32", "fd00:ec2::23/128"}
# Where names are asked for when no pod answers: the tenth address of a service range of EKS and of kubeadm, and the
# address of NodeLocal DNSCache.
NAME_SERVERS = ["10.100.0.10", "172.20.0.10", "10.96.0.10", "169.254.20.10", "fd12:3456::a"]
METADATA = ["169.254.169.254", "169.254.170.2", "fd00:ec2::254"]


def selects(selector, labels):
    """Whether a selector of pods means those with these labels."""
    wanted = selector.get("matchLabels", {}).items()
    among = selector.get("matchExpressions", [])
    return wanted <= labels.items() and all(labels.get(each["key"]) in each["values"] for each in among)


def reachable(overlay, labels):
    """The ports that a pod with these labels may call, somewhere, as (protocol, port)."""
    found = set()
    for policy in (each["spec"] for each in manifests.build(overlay) if each["kind"] == "NetworkPolicy"):
        if selects(policy["podSelector"], labels):
            ports = [port for rule in policy.get("egress", []) for port in rule["ports"]]
            found |= {(each["protocol"], each["port"]) for each in ports}
    return found


class Network(unittest.TestCase):
    def test_what_is_not_named_is_refused(self):
        for overlay in manifests.OVERLAYS:
            spec = manifests.find(overlay, "NetworkPolicy", "default-deny")["spec"]
            self.assertEqual({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}, spec)

    def test_no_rule_reaches_a_metadata_service(self):
        for overlay in manifests.OVERLAYS:
            for policy in (each for each in manifests.build(overlay) if each["kind"] == "NetworkPolicy"):
                for rule in policy["spec"].get("egress", []):
                    self.assertTrue(rule.get("to"), f"{policy['metadata']['name']}: a rule to everywhere")
                    for block in (to["ipBlock"] for to in rule["to"] if "ipBlock" in to):
                        if block["cidr"] in AGENTS:
                            self.assertEqual("eks-pod-identity", overlay)
                            continue
                        for address in map(ipaddress.ip_address, METADATA):
                            inside = address in ipaddress.ip_network(block["cidr"])
                            excepted = any(address in ipaddress.ip_network(each) for each in block.get("except", []))
                            self.assertTrue(not inside or excepted, f"{policy['metadata']['name']} allows {address}")

    def test_names_are_found_where_the_cluster_answers_at_an_address(self):
        for overlay in manifests.OVERLAYS:
            (rule,) = manifests.find(overlay, "NetworkPolicy", "names")["spec"]["egress"]
            blocks = [ipaddress.ip_network(to["ipBlock"]["cidr"]) for to in rule["to"] if "ipBlock" in to]
            self.assertEqual({53}, {each["port"] for each in rule["ports"]})
            for address in map(ipaddress.ip_address, NAME_SERVERS):
                with self.subTest(overlay=overlay, address=address):
                    self.assertTrue(any(address in block for block in blocks))

    def test_every_pod_may_reach_what_it_calls_and_no_other_a_broker(self):
        names, https, broker = {("UDP", 53), ("TCP", 53)}, {("TCP", 443)}, {("TCP", 5671), ("TCP", 5672)}
        wanted = {"Deployment/relay": names | https | broker, "ScaledJob/worker": names | https}
        wanted["Job/weights"] = names | https
        for overlay in ("eks", "eks-pod-identity"):
            for owner, template in manifests.pod_templates(overlay):
                # The agent of the pods' identity is on port 80 of its own address.
                found = reachable(overlay, template["metadata"]["labels"]) - {("TCP", 80)}
                with self.subTest(overlay=overlay, owner=owner):
                    self.assertEqual(wanted[owner], found)


class Groups(unittest.TestCase):
    def test_what_others_let_in_the_callers_group_lets_out(self):
        groups, rules = {}, []
        for stack, _, kind, each in templates.root().resources():
            if kind == "AWS::EC2::SecurityGroup":
                groups[each["GroupDescription"]] = each
            elif kind == "AWS::EC2::SecurityGroupIngress" and "SourceSecurityGroupId" in each:
                rules.append((each["FromPort"], each["ToPort"]))
        out = groups["GPU instances, relay and fill task of Easel"]["SecurityGroupEgress"]
        self.assertNotIn("SecurityGroupIngress", groups["GPU instances, relay and fill task of Easel"])
        for first, last in [(443, 443), *rules]:
            with self.subTest(port=first):
                self.assertTrue(any(each["FromPort"] <= first and last <= each["ToPort"] for each in out))
        self.assertIn((5671, 5671), rules)
        self.assertIn((2049, 2049), rules)


class Zones(unittest.TestCase):
    """The network that the template makes, with either way to the internet."""

    WAYS = {"nat": "Nat", "public": "Internet"}

    def network(self, connectivity):
        """Its stack, and what is made of it by name, as (type, properties)."""
        stack = templates.Stack("infra/aws/network.yaml", {"Connectivity": connectivity})
        return stack, {name: (kind, each) for _, name, kind, each in stack.resources(made=True)}

    def output(self, stack, name):
        """An output as it is written, after what its conditions choose."""
        node = stack.body["Outputs"][name]["Value"]
        while "If" in node:
            condition, yes, no = node["If"]
            node = yes if stack.condition(condition) else no
        return node

    def test_instances_have_a_subnet_in_each_of_three_zones_and_a_way_out_of_it(self):
        for connectivity, gateway in self.WAYS.items():
            stack, made = self.network(connectivity)
            names = [each["Ref"] for each in self.output(stack, "SubnetIds")["Join"][1]]
            zones = [made[name][1]["AvailabilityZone"]["Select"][0] for name in names]
            tables = {
                each["SubnetId"]["Ref"]: each["RouteTableId"]["Ref"]
                for kind, each in made.values()
                if kind == "AWS::EC2::SubnetRouteTableAssociation"
            }
            ways = {
                each["RouteTableId"]["Ref"]: each.get("NatGatewayId", each.get("GatewayId"))["Ref"]
                for kind, each in made.values()
                if kind == "AWS::EC2::Route" and each["DestinationCidrBlock"] == "0.0.0.0/0"
            }
            with self.subTest(connectivity=connectivity):
                self.assertEqual([0, 1, 2], zones)
                self.assertEqual([gateway] * 3, [ways[tables[name]] for name in names])
                (endpoint,) = (each for kind, each in made.values() if kind == "AWS::EC2::VPCEndpoint")
                routed = [stack.value(each) for each in endpoint["RouteTableIds"]]
                self.assertEqual([tables[names[0]]], routed)

    def test_no_two_subnets_have_the_same_addresses(self):
        stack, made = self.network("nat")
        whole = ipaddress.ip_network(made["Vpc"][1]["CidrBlock"])
        subnets = [each for each in stack.body["Resources"].values() if each["Type"] == "AWS::EC2::Subnet"]
        blocks = [ipaddress.ip_network(each["Properties"]["CidrBlock"]) for each in subnets]
        self.assertTrue(all(block.subnet_of(whole) for block in blocks))
        for at, block in enumerate(blocks):
            self.assertFalse(any(block.overlaps(other) for other in blocks[at + 1 :]), block)

    def test_addresses_are_public_where_there_is_no_nat_gateway_and_only_there(self):
        for connectivity, is_open in (("nat", False), ("public", True)):
            stack, made = self.network(connectivity)
            kinds = [kind for kind, _ in made.values()]
            given = {
                stack.value(each.get("MapPublicIpOnLaunch", False))
                for name, (kind, each) in made.items()
                if kind == "AWS::EC2::Subnet"
            }
            with self.subTest(connectivity=connectivity):
                self.assertEqual({is_open}, given)
                self.assertEqual(not is_open, "AWS::EC2::NatGateway" in kinds)
                self.assertEqual(not is_open, "AWS::EC2::EIP" in kinds)
                relays = stack.value(self.output(stack, "AssignPublicIp"))
                self.assertEqual("ENABLED" if is_open else "DISABLED", relays)
        relay = templates.root().body["Resources"]["Relay"]["Properties"]["Parameters"]["AssignPublicIp"]
        self.assertEqual({"GetAtt": "Network.Outputs.AssignPublicIp"}, relay)

    def test_an_existing_network_gets_a_security_group_and_keeps_its_subnets(self):
        given = {"VpcId": "vpc-1", "SubnetIds": "subnet-1,subnet-2"}
        for connectivity in self.WAYS:
            stack = templates.Stack("infra/aws/network.yaml", given | {"Connectivity": connectivity})
            with self.subTest(connectivity=connectivity):
                self.assertEqual(["Callers"], [name for _, name, _, _ in stack.resources(made=True)])
                self.assertEqual(given["SubnetIds"], stack.value(self.output(stack, "SubnetIds")))


if __name__ == "__main__":
    unittest.main()
