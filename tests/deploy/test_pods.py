"""What every pod must and must not be allowed."""

import unittest

import dockerfile
import manifests


class Pods(unittest.TestCase):
    def test_no_container_is_root_or_writes_its_own_files_or_keeps_a_capability(self):
        stages = dockerfile.stages(manifests.ROOT / "infra/image/Dockerfile")
        for overlay in manifests.OVERLAYS:
            for owner, spec, container in manifests.containers(overlay):
                with self.subTest(overlay=overlay, owner=owner, container=container["name"]):
                    pod, own = spec["securityContext"], container["securityContext"]
                    self.assertTrue(pod["runAsNonRoot"])
                    self.assertEqual("RuntimeDefault", pod["seccompProfile"]["type"])
                    self.assertEqual(
                        f"{pod['runAsUser']}:{pod['runAsGroup']}", stages[manifests.binary(container)].user
                    )
                    self.assertFalse(own["allowPrivilegeEscalation"])
                    self.assertTrue(own["readOnlyRootFilesystem"])
                    self.assertEqual(["ALL"], own["capabilities"]["drop"])
                    self.assertFalse(spec["automountServiceAccountToken"])
                    self.assertNotEqual("default", spec["serviceAccountName"])

    def test_every_container_says_what_it_needs_and_has_a_limit(self):
        for overlay in manifests.OVERLAYS:
            for owner, _, container in manifests.containers(overlay):
                with self.subTest(overlay=overlay, owner=owner):
                    requests, limits = (container["resources"][key] for key in ("requests", "limits"))
                    self.assertLessEqual({"cpu", "memory"}, requests.keys())
                    self.assertLessEqual(manifests.bytes_of(requests["memory"]), manifests.bytes_of(limits["memory"]))

    def test_a_worker_has_one_gpu_and_may_go_where_gpus_are(self):
        for overlay in manifests.OVERLAYS:
            owner, spec, container = next(
                each for each in manifests.containers(overlay) if each[0] == "ScaledJob/worker"
            )
            with self.subTest(overlay=overlay):
                gpus = {container["resources"][key].get("nvidia.com/gpu") for key in ("requests", "limits")}
                # Never auto: a pod whose GPU cannot be used would paint for minutes, and nobody would know.
                device = manifests.environment(overlay, container)["EASEL_DEVICE"]
                self.assertEqual("cpu" if overlay == "example" else "cuda", device)
                self.assertEqual({None} if device == "cpu" else {1}, gpus)
                self.assertIn("nvidia.com/gpu", [each["key"] for each in spec["tolerations"]])

    def test_a_pod_goes_where_its_image_runs(self):
        for overlay in manifests.OVERLAYS:
            for owner, template in manifests.pod_templates(overlay):
                with self.subTest(overlay=overlay, owner=owner):
                    self.assertEqual("amd64", template["spec"]["nodeSelector"]["kubernetes.io/arch"])

    def test_folders_that_are_written_are_volumes_and_the_model_is_read_only(self):
        for overlay in manifests.OVERLAYS:
            owner, spec, container = next(
                each for each in manifests.containers(overlay) if each[0] == "ScaledJob/worker"
            )
            mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
            settings = manifests.environment(overlay, container)
            with self.subTest(overlay=overlay):
                self.assertFalse(mounts[settings["EASEL_CACHE_DIR"]].get("readOnly", False))
                model = next(
                    each for path, each in mounts.items() if settings["EASEL_MODEL_DIR"].startswith(f"{path}/")
                )
                self.assertTrue(model["readOnly"])
                volume = next(each for each in spec["volumes"] if each["name"] == model["name"])
                self.assertTrue(volume["persistentVolumeClaim"]["readOnly"])

    def test_the_job_fills_and_verifies_the_folder_that_workers_read(self):
        for overlay in manifests.OVERLAYS:
            every = list(manifests.containers(overlay))
            worker = next(each for owner, _, each in every if owner == "ScaledJob/worker")
            folder = manifests.environment(overlay, worker)["EASEL_MODEL_DIR"]
            pull, verify = (each["args"] for owner, _, each in every if owner == "Job/weights")
            with self.subTest(overlay=overlay):
                self.assertIn(f"--to={folder}", pull)
                self.assertEqual(["weights", "verify", folder], verify)

    def test_a_disruption_leaves_a_relay(self):
        for overlay in manifests.OVERLAYS:
            budget = manifests.find(overlay, "PodDisruptionBudget", "relay")["spec"]
            relay = manifests.find(overlay, "Deployment", "relay")["spec"]
            with self.subTest(overlay=overlay):
                self.assertEqual(relay["selector"], budget["selector"])
                self.assertEqual(0, relay["strategy"]["rollingUpdate"]["maxUnavailable"])
                self.assertGreaterEqual(relay["replicas"], budget["maxUnavailable"])

    def test_secrets_come_by_name_alone(self):
        for overlay in manifests.OVERLAYS:
            self.assertNotIn("Secret", [each["kind"] for each in manifests.build(overlay)])
            for _, _, container in manifests.containers(overlay):
                for name, value in manifests.environment(overlay, container).items():
                    if name in ("AMQP_URL", "INTERNAL_API_TOKEN", "EASEL_WEBHOOK_SECRET") or "KEY" in name:
                        self.assertIsNone(value, f"{overlay}: {name} is in plain text")


class Image(unittest.TestCase):
    def test_every_base_is_pinned_by_its_digest(self):
        path = manifests.ROOT / "infra/image/Dockerfile"
        known = dockerfile.arguments(path)
        stages = dockerfile.stages(path)
        for stage in stages.values():
            if stage.base not in (*stages, "scratch"):
                self.assertRegex(known[stage.base.strip("${}")], r":[\w.-]+@sha256:[0-9a-f]{64}$")

    def test_the_relay_carries_no_cuda(self):
        path = manifests.ROOT / "infra/image/Dockerfile"
        relay = dockerfile.stages(path)["relay"]
        self.assertNotIn("cuda", (dockerfile.arguments(path)[relay.base.strip("${}")] + " ".join(relay.run)).lower())
        self.assertTrue(all("handler" not in origin for (origin, _), _ in relay.copies))


if __name__ == "__main__":
    unittest.main()
