"""The function: when a deployment publishes a version of it, how it scales, and what its machine must have."""

import logging
import sys
import unittest

import binaries
import dockerfile
import manifests
import templates

sys.path.insert(0, str(manifests.ROOT / "infra/aws"))
import translate  # noqa: E402

# What no version holds: how many of it there are, and what the queue sends to the alias.
BESIDE = {"FunctionScalingConfig", "Events", "ImageUri"}


def setUpModule():
    # SAM's translator says on every run that nobody collected its metrics.
    logging.getLogger("samtranslator").setLevel(logging.ERROR)


def version(parameters):
    """The name of the version that a deployment with these values has: another name is another version."""
    resources = translate.translate(translate.load(translate.FUNCTION), parameters)["Resources"]
    (name,) = (name for name, each in resources.items() if each["Type"] == "AWS::Lambda::Version")
    return name


def references(node):
    """Every name that is referred to in a part of a template."""
    if isinstance(node, list):
        return set().union(*map(references, node))
    if not isinstance(node, dict):
        return set()
    return {node["Ref"]} if node.keys() == {"Ref"} else set().union(*map(references, node.values()))


class Versions(unittest.TestCase):
    def setUp(self):
        template = translate.load(translate.FUNCTION)
        self.values = dict.fromkeys(template["Parameters"], "1")
        handler = template["Resources"]["Handler"]["Properties"]
        settings = {name: value for name, value in handler.items() if name not in BESIDE}
        # A change of any of these replaces the capacity provider, which the versions that stand do not leave.
        capacity = template["Resources"]["Capacity"]["Properties"]
        settings["Capacity"] = [capacity["VpcConfig"], capacity["InstanceRequirements"]]
        self.settings = references(settings) & self.values.keys() | {"HandlerImageUri"}
        self.first = version(self.values)

    def test_another_image_or_setting_is_another_version(self):
        self.assertGreater(len(self.settings), 15)
        for name in self.settings:
            with self.subTest(parameter=name):
                self.assertNotEqual(self.first, version({**self.values, name: "2"}))

    def test_what_no_version_holds_publishes_none(self):
        # Lambda refuses to publish what it has published already.
        for name in self.values.keys() - self.settings:
            with self.subTest(parameter=name):
                self.assertEqual(self.first, version({**self.values, name: "2"}))

    def test_lambda_gets_the_image_alone(self):
        values = {**self.values, "HandlerImageUri": "registry/easel:1"}
        resources = translate.translate(translate.load(translate.FUNCTION), values)["Resources"]
        index, split = resources["Handler"]["Properties"]["Code"]["ImageUri"]["Fn::Select"]
        mark, text = split["Fn::Split"]
        self.assertEqual("registry/easel:1", text["Fn::Sub"][0].split(mark)[index])


class Scaling(unittest.TestCase):
    def test_an_account_that_may_have_one_instance_can_say_so(self):
        # AWS::Lambda::CapacityProvider takes 2 to 15000; an xlarge with a GPU has 4.
        limit = templates.root().body["Parameters"]["MaxVCpus"]
        self.assertEqual((2, 15000), (limit["MinValue"], limit["MaxValue"]))

    def test_it_aims_at_a_use_of_the_gpu_where_one_is_given(self):
        for given, mode, policies in (
            (0, "Auto", None),
            (70, "Manual", [("LambdaCapacityProviderAverageGPUUtilization", 70)]),
        ):
            stack, capacity = templates.the("AWS::Lambda::CapacityProvider", parameters={"GpuUtilization": given})
            scaling = capacity["CapacityProviderScalingConfig"]
            found = stack.value(scaling["ScalingPolicies"])
            with self.subTest(given=given):
                self.assertEqual(mode, stack.value(scaling["ScalingMode"]))
                if policies:
                    found = [(each["PredefinedMetricType"], stack.value(each["TargetValue"])) for each in found]
                    self.assertEqual(policies, found)
                else:
                    self.assertEqual("AWS::NoValue", found)


class Safety(unittest.TestCase):
    def test_the_mode_is_passed_on_where_one_is_given(self):
        allowed = templates.root().body["Parameters"]["Safety"]["AllowedValues"]
        self.assertEqual(["", "off", "flag", "black", "refuse"], allowed)
        for given in allowed:
            stack, function = templates.the("AWS::Serverless::Function", parameters={"Safety": given})
            with self.subTest(given=given):
                told = stack.value(function["Environment"]["Variables"]["EASEL_SAFETY"])
                self.assertEqual(given or "AWS::NoValue", told)
                if given:
                    self.assertIsNone(binaries.accepts("handler", ["function", "--safety", given]))


class Pictures(unittest.TestCase):
    def test_what_s3_is_told_of_pictures_is_passed_on_where_it_is_given(self):
        classes = templates.root().body["Parameters"]["PictureStorageClass"]["AllowedValues"]
        self.assertEqual("", classes[0])
        for parameter, option, variable, values in (
            ("PictureStorageClass", "--result-storage-class", "EASEL_RESULT_STORAGE_CLASS", classes),
            ("PictureTags", "--result-tags", "EASEL_RESULT_TAGS", ["", "team=art&cost=1"]),
            ("ImageBucket", "--image-buckets", "EASEL_IMAGE_BUCKETS", ["", "uploads"]),
            ("PictureCacheControl", "--result-cache-control", "EASEL_RESULT_CACHE_CONTROL", ["", "private, max-age=3600"]),
        ):
            for given in values:
                stack, function = templates.the("AWS::Serverless::Function", parameters={parameter: given})
                with self.subTest(parameter=parameter, given=given):
                    self.assertEqual(given or "AWS::NoValue", stack.value(function["Environment"]["Variables"][variable]))
                    if given:
                        self.assertIsNone(binaries.accepts("handler", ["function", option, given]))

    def test_the_webhook_of_cancelled_tasks_is_sent_where_it_is_asked_for(self):
        for given in templates.root().body["Parameters"]["CancelledWebhook"]["AllowedValues"]:
            stack, function = templates.the("AWS::Serverless::Function", parameters={"CancelledWebhook": given})
            self.assertEqual(given, stack.value(function["Environment"]["Variables"]["EASEL_CANCELLED_WEBHOOK"]))
            self.assertIsNone(binaries.accepts("handler", ["function", "--cancelled-webhook", given]))


class Tasks(unittest.TestCase):
    def test_what_tasks_may_ask_for_and_backends_are_told_is_passed_on(self):
        parameters = templates.root().body["Parameters"]
        for parameter, option, variable, others in (
            ("WebhookDetail", "--webhook-detail", "EASEL_WEBHOOK_DETAIL", parameters["WebhookDetail"]["AllowedValues"]),
            ("ProgressMarks", "--progress", "EASEL_PROGRESS", ["every:10", "50"]),
            ("ProgressPreview", "--progress-preview", "EASEL_PROGRESS_PREVIEW", parameters["ProgressPreview"]["AllowedValues"]),
            ("PictureKeyTemplate", "--result-key", "EASEL_RESULT_KEY", ["generations/{style_id}/{generation_id}-{number}.{extension}"]),
            ("CancelExpiry", "--cancel-expiry", "EASEL_CANCEL_EXPIRY", [1, parameters["CancelExpiry"]["MaxValue"]]),
            ("MinSide", "--min-side", "EASEL_MIN_SIDE", [64]),
            ("MaxSide", "--max-side", "EASEL_MAX_SIDE", [2048]),
            ("MaxPixels", "--max-pixels", "EASEL_MAX_PIXELS", [1 << 22]),
        ):
            for given in [parameters[parameter]["Default"], *others]:
                with self.subTest(parameter=parameter, given=given):
                    stack, function = templates.the("AWS::Serverless::Function", parameters={parameter: given})
                    self.assertEqual(str(given), str(stack.value(function["Environment"]["Variables"][variable])))
                    self.assertIsNone(binaries.accepts("handler", ["function", option, str(given)]))
                    self.assertRegex(str(given), parameters[parameter].get("AllowedPattern", "."))

    def test_a_key_of_pictures_that_the_role_may_not_write_or_the_handler_refuses_is_refused(self):
        pattern = templates.root().body["Parameters"]["PictureKeyTemplate"]["AllowedPattern"]
        for given in (
            *("gen_{generation_id}.png", "cancelled/{generation_id}", "claims/{generation_id}", "generations/gen.jpg", "generations/", ""),
            *("generations/{generation_id} .png", "generations/{generation_id}?", "/generations/{generation_id}"),
        ):
            with self.subTest(given=given):
                self.assertNotRegex(given, pattern)


class Machine(unittest.TestCase):
    def setUp(self):
        self.image = dockerfile.stages(manifests.ROOT / "infra/image/Dockerfile")["handler"].environment

    def test_a_gpu_is_asked_for_and_found_where_lambda_has_its_driver(self):
        _, function = templates.the("AWS::Serverless::Function", lambda each: "ImageUri" in each)
        self.assertEqual("cuda", function["Environment"]["Variables"]["EASEL_DEVICE"])
        end = ":/usr/local/cuda/lib64:/x86_64-bottlerocket-linux-gnu/sys-root/usr/lib/nvidia"
        path = self.image["LD_LIBRARY_PATH"]
        self.assertTrue(path.endswith(end), path)
        # An empty one is the folder in which the process happens to be.
        self.assertNotIn("", path.split(":"))

    def test_what_libraries_write_by_themselves_goes_to_tmp(self):
        self.assertEqual("/tmp", self.image["HOME"])
        self.assertTrue(self.image["CUDA_CACHE_PATH"].startswith("/tmp/"))
        for overlay in manifests.OVERLAYS:
            _, spec, _ = next(each for each in manifests.containers(overlay) if each[0] == "ScaledJob/worker")
            tmp = next(each["emptyDir"] for each in spec["volumes"] if each["name"] == "tmp")
            self.assertLess(int(self.image["CUDA_CACHE_MAXSIZE"]), manifests.bytes_of(tmp["sizeLimit"]))


if __name__ == "__main__":
    unittest.main()
