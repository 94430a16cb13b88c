"""The volume with the model, as it is mounted on a cluster, against the file system that the template makes."""

import unittest

import manifests
import templates


class Volume(unittest.TestCase):
    def test_a_cluster_mounts_the_templates_file_system_as_its_policy_demands(self):
        _, system = templates.the("AWS::EFS::FileSystem")
        statements = system["FileSystemPolicy"]["Statement"]
        self.assertEqual(["Deny"], [each["Effect"] for each in statements], "only roles that may mount it get in")
        self.assertEqual("false", statements[0]["Condition"]["Bool"]["aws:SecureTransport"])
        for overlay in ("eks", "eks-pod-identity"):
            options = manifests.find(overlay, "PersistentVolume", "easel-models")["spec"]["mountOptions"]
            with self.subTest(overlay=overlay):
                self.assertEqual({"tls", "iam"}, set(options))

    def test_it_can_be_mounted_in_each_zone_of_two_or_three(self):
        for subnets in (["one", "two"], ["one", "two", "three"]):
            stack = templates.Stack("infra/aws/volume.yaml", {"SubnetIds": subnets})
            mounts = [each for _, _, kind, each in stack.resources(made=True) if kind == "AWS::EFS::MountTarget"]
            with self.subTest(subnets=len(subnets)):
                self.assertEqual(subnets, [stack.value(each["SubnetId"]) for each in mounts])

    def test_a_claim_asks_for_what_its_volume_offers(self):
        for overlay in ("eks", "eks-pod-identity"):
            claim = manifests.find(overlay, "PersistentVolumeClaim", "models")
            volume = manifests.find(overlay, "PersistentVolume", claim["spec"]["volumeName"])["spec"]
            with self.subTest(overlay=overlay):
                self.assertLessEqual(set(claim["spec"]["accessModes"]), set(volume["accessModes"]))
                self.assertEqual(claim["spec"]["storageClassName"], volume["storageClassName"])
                place = {key: claim["metadata"][key] for key in ("namespace", "name")}
                self.assertEqual(place, volume["claimRef"])

    def test_the_fill_task_fills_the_folder_that_the_function_reads(self):
        for own in ("", "/mnt/models/other"):
            given = {"ModelVolume": "efs", "ModelDir": own}
            stack, function = templates.the("AWS::Serverless::Function", parameters=given)
            folder = stack.value(function["Environment"]["Variables"]["EASEL_MODEL_DIR"])
            (mount,) = stack.value(function["FileSystemConfigs"])
            stack, task = templates.the("AWS::ECS::TaskDefinition", lambda each: "Volumes" in each, given)
            (container,) = task["ContainerDefinitions"]
            command = [stack.value(each) for each in container["Command"]]
            with self.subTest(own=own):
                self.assertEqual(own or "/mnt/models/stable-diffusion-v1-5", folder)
                self.assertTrue(folder.startswith(mount["LocalMountPath"] + "/"))
                self.assertEqual(mount["LocalMountPath"], container["MountPoints"][0]["ContainerPath"])
                self.assertEqual(folder, command[command.index("--to") + 1])

    def test_what_every_cold_start_reads_is_in_half_precision(self):
        _, task = templates.the("AWS::ECS::TaskDefinition", lambda each: "Volumes" in each)
        command = task["ContainerDefinitions"][0]["Command"]
        self.assertEqual("fp16", command[command.index("--variant") + 1])
        for overlay in manifests.OVERLAYS:
            pull = next(each["args"] for owner, _, each in manifests.containers(overlay) if owner == "Job/weights")
            with self.subTest(overlay=overlay):
                self.assertIn("--variant=fp16", pull)


if __name__ == "__main__":
    unittest.main()
