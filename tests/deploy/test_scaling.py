"""The manifests' and the template's numbers are those that the simulation of scaling chooses."""

import contextlib
import io
import sys
import unittest
from pathlib import Path

import manifests
import templates

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "bench"))
import scaling  # noqa: E402

PAGE = Path(__file__).resolve().parents[2] / "docs/SCALING.md"


class Scaling(unittest.TestCase):
    def test_keda_has_the_settings_that_the_simulation_chooses(self):
        chosen, _ = scaling.choose(scaling.keda(), scaling.World())
        for overlay in ("eks", "eks-pod-identity"):
            spec = manifests.find(overlay, "ScaledJob", "worker")["spec"]
            container = next(each for owner, _, each in manifests.containers(overlay) if owner == "ScaledJob/worker")
            settings = manifests.environment(overlay, container)
            said = scaling.Settings(
                spec["pollingInterval"],
                int(spec["triggers"][0]["metadata"]["queueLength"]),
                spec["maxReplicaCount"],
                int(settings["EASEL_IDLE_EXIT"]),
                int(settings["EASEL_CONCURRENCY"]),
            )
            self.assertEqual(chosen, said, overlay)

    def test_a_job_in_flight_counts_and_a_running_one_is_taken_off(self):
        # What the simulation takes for granted: KEDA's rule with these three settings.
        for overlay in manifests.OVERLAYS:
            spec = manifests.find(overlay, "ScaledJob", "worker")["spec"]
            trigger = spec["triggers"][0]["metadata"]
            self.assertEqual(("true", "0"), (trigger["scaleOnInFlight"], trigger["activationQueueLength"]))
            self.assertEqual("default", spec["scalingStrategy"]["strategy"])
            self.assertEqual("gradual", spec["rollout"]["strategy"])
            self.assertEqual(0, spec["minReplicaCount"])

    def test_the_simulation_knows_each_way_of_the_weights_and_chooses_the_same_for_all(self):
        known = templates.root().body["Parameters"]["ModelVolume"]
        self.assertEqual(known["AllowedValues"], list(scaling.ways(scaling.World())))
        chosen = {way: scaling.choose(scaling.serverless(way), scaling.World(), True)[0] for way in known["AllowedValues"]}
        self.assertEqual({way: way for way in chosen}, {way: each.weights for way, each in chosen.items()})
        self.assertEqual(1, len({(each.most, each.concurrency) for each in chosen.values()}), chosen)
        self.assertEqual(known["Default"], scaling.serverless()[0].weights)

    def test_the_page_has_what_the_simulation_prints(self):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            scaling.show(scaling.World())
        tables = [line for line in printed.getvalue().splitlines() if line.startswith("|")]
        self.assertGreater(len(tables), 20)
        self.assertLessEqual(set(tables), set(PAGE.read_text().splitlines()))

    def test_the_function_has_the_settings_that_the_simulation_chooses(self):
        stack, function = templates.the("AWS::Serverless::Function", lambda each: "ImageUri" in each)
        chosen, _ = scaling.choose(scaling.serverless(), scaling.World(), True)
        tasks = int(stack.value(function["CapacityProviderConfig"]["PerExecutionEnvironmentMaxConcurrency"]))
        most = int(stack.value(function["FunctionScalingConfig"]["MaxExecutionEnvironments"]))
        mapping = next(iter(function["Events"].values()))["Properties"]
        self.assertEqual((chosen.concurrency, chosen.most), (tasks, most))
        self.assertEqual(tasks * most, int(stack.value(mapping["ScalingConfig"]["MaximumConcurrency"])))


if __name__ == "__main__":
    unittest.main()
