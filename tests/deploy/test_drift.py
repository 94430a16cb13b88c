"""The manifests and the templates against the binaries, and against each other. No number here is known twice."""

import unittest

import binaries
import dockerfile
import manifests
import templates

RUNNABLE = {"relay", "handler"}


def ecs_containers():
    """Every container of the templates, as (name, binary, arguments, variables)."""
    for stack, name, kind, properties in templates.root().resources():
        if kind != "AWS::ECS::TaskDefinition":
            continue
        for container in properties["ContainerDefinitions"]:
            image = next(iter(container["Image"].values()))
            command = [str(stack.value(word)) for word in container.get("Command", [])]
            yield (
                f"{name}/{container['Name']}",
                image.removesuffix("ImageUri").lower(),
                command,
                templates.named(container),
            )


class Commands(unittest.TestCase):
    def check_variables(self, where, binary, arguments, names):
        subcommand = binaries.subcommand(arguments)
        if binary == "handler" and not subcommand:
            subcommand = ("function",)
        for name in names:
            if not binaries.OTHERS.fullmatch(name):
                self.assertIn(
                    name, binaries.variables(binary, subcommand), f"{where}: {binary} {subcommand} reads no {name}"
                )

    def test_every_variable_of_the_manifests_is_one_that_the_binary_reads(self):
        for overlay in manifests.OVERLAYS:
            for owner, _, container in manifests.containers(overlay):
                names = manifests.environment(overlay, container)
                self.check_variables(
                    f"{overlay} {owner}", manifests.binary(container), container.get("args", []), names
                )

    def test_every_variable_of_the_templates_is_one_that_the_binary_reads(self):
        _, function = templates.the("AWS::Serverless::Function", lambda each: "ImageUri" in each)
        self.check_variables("function.yaml", "handler", [], function["Environment"]["Variables"])
        for where, binary, arguments, names in ecs_containers():
            with self.subTest(where=where):
                self.check_variables(where, binary, arguments, names)

    def test_every_command_line_is_one_that_the_binary_takes(self):
        for overlay in manifests.OVERLAYS:
            for owner, _, container in manifests.containers(overlay):
                self.assertIn(manifests.binary(container), RUNNABLE)
                self.assertNotIn("command", container, "the image's entrypoint is the binary")
                with self.subTest(overlay=overlay, owner=owner):
                    self.assertIsNone(binaries.accepts(manifests.binary(container), container.get("args", [])))
        for where, binary, arguments, _ in ecs_containers():
            with self.subTest(where=where):
                self.assertIsNone(binaries.accepts(binary, arguments))

    def test_the_binaries_take_every_value(self):
        for overlay in manifests.OVERLAYS:
            for owner, _, container in manifests.containers(overlay):
                if owner.startswith("Job/"):
                    continue
                given = {
                    name: value
                    for name, value in manifests.environment(overlay, container).items()
                    if value is not None
                }
                binary, arguments = manifests.binary(container), [*container.get("args", [])]
                arguments += ["--check"] if binary == "relay" else []
                environment = {**given, **binaries.MISSING, **binaries.QUICK}
                started = binaries.start(binary, *arguments, environment=environment)
                with self.subTest(overlay=overlay, owner=owner):
                    self.assertNotIn(started.returncode, (0, binaries.REFUSED), started.stderr)


class Health(unittest.TestCase):
    def test_probes_and_monitors_ask_the_port_on_which_the_binary_listens(self):
        for overlay in manifests.OVERLAYS:
            for owner, _, container in manifests.containers(overlay):
                probes = {key: each["httpGet"] for key, each in container.items() if key.endswith("Probe")}
                if not probes:
                    self.assertTrue(owner.startswith("Job/"), f"{owner} has no probe")
                    continue
                known = binaries.variables(manifests.binary(container), binaries.subcommand(container.get("args", [])))
                variable = next(name for name, option in known.items() if option.flag == "--health-addr")
                listens = manifests.environment(overlay, container).get(variable, known[variable].default)
                address, _, port = listens.rpartition(":")
                self.assertEqual("0.0.0.0", address, "a kubelet does not come from within")
                ports = {each["name"]: each["containerPort"] for each in container["ports"]}
                self.assertIn("livenessProbe", probes)
                for name, probe in probes.items():
                    with self.subTest(overlay=overlay, owner=owner, probe=name):
                        self.assertEqual(int(port), ports[probe["port"]])
                        self.assertEqual("/healthz" if name == "livenessProbe" else "/readyz", probe["path"])

    def test_the_relay_on_fargate_is_asked_where_it_listens_and_may_end_in_order(self):
        stack, task = templates.the(
            "AWS::ECS::TaskDefinition", lambda each: "HealthCheck" in each["ContainerDefinitions"][0]
        )
        container = task["ContainerDefinitions"][0]
        given = stack.given(container)
        known = binaries.variables("relay")
        get = {name: given.get(name, option.default) for name, option in known.items()}
        self.assertIn(get["RELAY_HEALTH_ADDR"].replace(":", "/"), " ".join(container["HealthCheck"]["Command"]))
        self.assertIn("/healthz", " ".join(container["HealthCheck"]["Command"]))
        self.assertGreater(container["StopTimeout"], int(get["RELAY_SHUTDOWN_TIMEOUT"]))

    def test_prometheus_finds_the_pods_and_may_reach_them(self):
        for overlay in manifests.OVERLAYS:
            labels = {owner: template["metadata"]["labels"] for owner, template in manifests.pod_templates(overlay)}
            service = manifests.find(overlay, "Service", "relay")
            monitor = manifests.find(overlay, "ServiceMonitor", "relay")["spec"]
            self.assertLessEqual(service["spec"]["selector"].items(), labels["Deployment/relay"].items())
            self.assertLessEqual(monitor["selector"]["matchLabels"].items(), service["metadata"]["labels"].items())
            self.assertEqual(service["spec"]["ports"][0]["name"], monitor["endpoints"][0]["port"])
            monitor = manifests.find(overlay, "PodMonitor", "worker")["spec"]
            self.assertLessEqual(monitor["selector"]["matchLabels"].items(), labels["ScaledJob/worker"].items())
            ports = {
                each["name"] for _, _, container in manifests.containers(overlay) for each in container.get("ports", [])
            }
            allowed = manifests.find(overlay, "NetworkPolicy", "prometheus")["spec"]["ingress"][0]["ports"]
            wanted = {each["port"] for each in (*monitor["podMetricsEndpoints"], *allowed)}
            self.assertLessEqual(wanted, ports)

    def test_the_image_exposes_the_ports_of_the_manifests(self):
        stages = dockerfile.stages(manifests.ROOT / "infra/image/Dockerfile")
        for _, _, container in manifests.containers("eks"):
            for port in container.get("ports", []):
                self.assertIn(port["containerPort"], stages[manifests.binary(container)].ports)


if __name__ == "__main__":
    unittest.main()
