"""Times and counts that the queue, the function, the workers and their pods must agree on."""

import math
import re
import sys
import unittest
from pathlib import Path

import binaries
import manifests
import templates

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
import scaling_model  # noqa: E402


def queue():
    """The queue of tasks: the one with a redrive policy."""
    return templates.the("AWS::SQS::Queue", lambda each: "RedrivePolicy" in each)


def visibility():
    """Seconds for which a task that a consumer has is hidden, by the queue itself."""
    stack, properties = queue()
    return int(stack.value(properties["VisibilityTimeout"]))


def painting():
    """Seconds that one task may take: the function's timeout."""
    stack, function = templates.the("AWS::Serverless::Function", lambda each: "ImageUri" in each)
    return int(stack.value(function["Timeout"]))


def setting(overlay, owner, name, binary="handler", subcommand=("worker",)):
    """A setting of the pod, or the binary's own default."""
    container = next(each for its, _, each in manifests.containers(overlay) if its == owner)
    given = manifests.environment(overlay, container).get(name)
    return binaries.variables(binary, subcommand)[name].default if given is None else given


class Queue(unittest.TestCase):
    def test_the_queue_hides_a_task_for_six_times_the_functions_timeout(self):
        for timeout in templates.root().body["Parameters"]["FunctionTimeout"]["AllowedValues"]:
            given = {"FunctionTimeout": timeout}
            stack, function = templates.the("AWS::Serverless::Function", parameters=given)
            self.assertEqual(timeout, stack.value(function["Timeout"]))
            stack, tasks = templates.the("AWS::SQS::Queue", lambda each: "RedrivePolicy" in each, given)
            with self.subTest(timeout=timeout):
                self.assertEqual(6 * int(timeout), int(stack.value(tasks["VisibilityTimeout"])))

    def test_a_change_of_its_type_loses_nothing_that_lies_in_a_queue(self):
        body = templates.Stack("infra/aws/queue.yaml").body["Resources"]
        kept = {name: each["UpdateReplacePolicy"] for name, each in body.items() if each["Type"] == "AWS::SQS::Queue"}
        self.assertEqual({"Tasks": "Retain", "DeadLetters": "Retain"}, kept)

    def test_a_pod_may_finish_the_longest_task_and_is_gone_before_the_queue_would_give_it_to_another(self):
        for overlay in manifests.OVERLAYS:
            grace = dict(manifests.pod_templates(overlay))["ScaledJob/worker"]["spec"]["terminationGracePeriodSeconds"]
            with self.subTest(overlay=overlay):
                self.assertGreater(grace, painting())
                self.assertLess(grace, visibility())

    def test_a_worker_renews_its_tasks_within_what_the_queue_allows(self):
        for overlay in manifests.OVERLAYS:
            own = int(setting(overlay, "ScaledJob/worker", "EASEL_VISIBILITY_TIMEOUT"))
            lease = int(setting(overlay, "ScaledJob/worker", "EASEL_CLAIM_LEASE"))
            with self.subTest(overlay=overlay):
                # It renews at each third of it. The claim of a dead worker is over when its task comes again.
                self.assertLessEqual(own, visibility())
                self.assertLessEqual(lease, own)

    def test_a_relay_may_end_in_order(self):
        for overlay in manifests.OVERLAYS:
            grace = manifests.seconds(dict(manifests.pod_templates(overlay))["Deployment/relay"])
            with self.subTest(overlay=overlay):
                self.assertGreater(
                    grace, int(setting(overlay, "Deployment/relay", "RELAY_SHUTDOWN_TIMEOUT", "relay", ()))
                )

    def test_a_relays_memory_holds_its_messages(self):
        # Twice: memory that was freed is not all given back. And 64 MiB for the relay itself, with the requests on their way.
        def needed(budget):
            return 2 * int(budget) + (64 << 20)

        for overlay in manifests.OVERLAYS:
            limits = next(each for its, _, each in manifests.containers(overlay) if its == "Deployment/relay")
            budget = setting(overlay, "Deployment/relay", "AMQP_PREFETCH_BYTES", "relay", ())
            with self.subTest(overlay=overlay):
                self.assertGreaterEqual(manifests.bytes_of(limits["resources"]["limits"]["memory"]), needed(budget))
        stack, task = templates.the("AWS::ECS::TaskDefinition", lambda each: "HealthCheck" in each["ContainerDefinitions"][0])
        given = stack.given(task["ContainerDefinitions"][0])
        default = binaries.variables("relay", ())["AMQP_PREFETCH_BYTES"].default
        self.assertGreaterEqual(int(task["Memory"]) << 20, needed(given.get("AMQP_PREFETCH_BYTES", default)))

    def test_a_task_outlives_a_few_invocations_that_find_no_room(self):
        # The function does not see these, so it could tell nobody of the last one. AWS advises five at least.
        stack, tasks = queue()
        self.assertGreaterEqual(stack.value(tasks["RedrivePolicy"]["maxReceiveCount"]), 5)

    def test_receives_are_counted_to_the_same_number_everywhere(self):
        stack, tasks = queue()
        counts = {"queue": stack.value(tasks["RedrivePolicy"]["maxReceiveCount"])}
        stack, function = templates.the("AWS::Serverless::Function", lambda each: "ImageUri" in each)
        counts["function"] = stack.value(function["Environment"]["Variables"]["EASEL_MAX_RECEIVE_COUNT"])
        for overlay in manifests.OVERLAYS:
            counts[overlay] = setting(overlay, "ScaledJob/worker", "EASEL_MAX_RECEIVE_COUNT")
        self.assertEqual(1, len({int(each) for each in counts.values()}), counts)

    def test_relay_worker_and_keda_have_one_queue(self):
        for overlay in manifests.OVERLAYS:
            relay = setting(overlay, "Deployment/relay", "SQS_QUEUE_URL", "relay", ())
            trigger = manifests.find(overlay, "ScaledJob", "worker")["spec"]["triggers"][0]["metadata"]
            with self.subTest(overlay=overlay):
                self.assertEqual(relay, setting(overlay, "ScaledJob/worker", trigger["queueURLFromEnv"]))
                container = next(each for its, _, each in manifests.containers(overlay) if its == "ScaledJob/worker")
                self.assertEqual(manifests.environment(overlay, container)["AWS_REGION"], trigger["awsRegion"])
                if ".amazonaws.com/" in relay:
                    self.assertIn(f".{trigger['awsRegion']}.", relay)

    def test_the_relay_groups_messages_on_a_cluster_as_on_fargate(self):
        said = templates.root().body["Parameters"]["MessageGroupId"]["Default"]
        for overlay in manifests.OVERLAYS:
            self.assertEqual(said, setting(overlay, "Deployment/relay", "SQS_MESSAGE_GROUP_ID", "relay", ()), overlay)

    def test_relay_and_worker_have_one_bucket_for_what_the_queue_cannot_carry(self):
        for overlay in manifests.OVERLAYS:
            left = setting(overlay, "Deployment/relay", "RELAY_PAYLOAD_BUCKET", "relay", ())
            with self.subTest(overlay=overlay):
                self.assertEqual(left, setting(overlay, "ScaledJob/worker", "EASEL_PAYLOAD_BUCKET"))

    def test_what_an_overlay_takes_from_the_template_is_an_output_of_it(self):
        outputs = templates.root().body["Outputs"]
        said = [
            (path.name, *each)
            for path in sorted(manifests.ROOT.glob("infra/kubernetes/overlays/*/*"))
            for each in re.findall(r"^ *# Output (\w+) of template.yaml\n *(\w+)[=:]", path.read_text(), flags=re.M)
        ]
        self.assertGreaterEqual(len(said), 7)
        for file, output, variable in said:
            with self.subTest(file=file, output=output):
                self.assertIn(output, outputs)
                named = re.search(r"\(([A-Z0-9_]+)\)", outputs[output]["Description"])
                if named:
                    self.assertEqual(named[1], variable)

    def test_kept_loras_and_those_on_their_way_fit_into_what_the_function_has(self):
        # A model that is fetched lies there, too.
        fetched = {"ModelVolume": "s3", "ModelUrl": "s3://models/sd15"}
        for parameters, model in (({}, 0), (fetched, math.ceil(scaling_model.World().weights * 1e9))):
            stack, function = templates.the("AWS::Serverless::Function", parameters=parameters)
            given = {name: stack.value(it) for name, it in function["Environment"]["Variables"].items()}
            known = binaries.variables("handler", ("function",))
            get = lambda name: int(given.get(name) or known[name].default)  # noqa: B023, E731
            tasks = int(stack.value(function["CapacityProviderConfig"]["PerExecutionEnvironmentMaxConcurrency"]))
            needed = get("EASEL_CACHE_MAX_BYTES") + tasks * get("EASEL_MAX_LORA_BYTES") + model
            size = function["EphemeralStorage"]["Size"] << 20
            with self.subTest(parameters=parameters):
                self.assertLessEqual(needed + get("EASEL_CACHE_RESERVE_BYTES"), size)

    def test_kept_loras_and_those_on_their_way_fit_into_the_volume(self):
        for overlay in manifests.OVERLAYS:
            get = lambda name: int(setting(overlay, "ScaledJob/worker", name))  # noqa: B023, E731
            template = dict(manifests.pod_templates(overlay))["ScaledJob/worker"]["spec"]
            volume = next(each for each in template["volumes"] if each["name"] == "cache")
            needed = get("EASEL_CACHE_MAX_BYTES") + get("EASEL_CONCURRENCY") * get("EASEL_MAX_LORA_BYTES")
            with self.subTest(overlay=overlay):
                # A full one is more than an error: the pod is evicted.
                limit = manifests.bytes_of(volume["emptyDir"]["sizeLimit"])
                self.assertLessEqual(needed + get("EASEL_CACHE_RESERVE_BYTES"), limit)


if __name__ == "__main__":
    unittest.main()
