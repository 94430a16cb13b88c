"""Where the function has its model from: in its image, fetched from S3, on a volume. What each way is given, and not."""

import re
import subprocess
import tempfile
import unittest
from pathlib import Path

import binaries
import dockerfile
import manifests
import templates

HERE = Path(__file__).resolve().parents[2]
URL = "s3://easel-models/sd15/f16"
# Each way with what it needs, and the folder that it has then. The function may write to /tmp alone.
WAYS = {
    "image": ({}, "/opt/model"),
    "s3": ({"ModelVolume": "s3", "ModelUrl": URL}, "/tmp/model"),
    "efs": ({"ModelVolume": "efs"}, "/mnt/models/stable-diffusion-v1-5"),
}


def function(parameters):
    """The function's variables, and what it mounts."""
    stack, found = templates.the("AWS::Serverless::Function", parameters=parameters)
    variables = {name: stack.value(it) for name, it in found["Environment"]["Variables"].items()}
    variables = {name: it for name, it in variables.items() if it != "AWS::NoValue"}
    mounts = stack.value(found["FileSystemConfigs"])
    return variables, [] if mounts == "AWS::NoValue" else mounts


class Ways(unittest.TestCase):
    def test_the_default_is_the_one_that_needs_nothing_of_aws(self):
        known = templates.root().body["Parameters"]["ModelVolume"]
        self.assertEqual("image", known["Default"])
        self.assertEqual(list(WAYS), known["AllowedValues"])
        self.assertIn("unproven", known["Description"])

    def test_each_way_has_its_folder_and_nothing_of_the_others(self):
        for way, (given, folder) in WAYS.items():
            variables, mounts = function(given)
            with self.subTest(way=way):
                self.assertEqual(folder, variables["EASEL_MODEL_DIR"])
                self.assertEqual(URL if way == "s3" else None, variables.get("EASEL_MODEL_URL"))
                self.assertEqual(way == "efs", bool(mounts))
                root = templates.root(given)
                self.assertEqual(way == "efs", root.condition(root.body["Resources"]["Volume"]["Condition"]))
                for output in ("FillTask", "VolumeHandle"):
                    self.assertEqual(way != "efs", root.value(root.body["Outputs"][output]["Value"]) == "none")

    def test_a_folder_of_ones_own_is_taken_as_it_is(self):
        for way, (given, _) in WAYS.items():
            with self.subTest(way=way):
                self.assertEqual("/own/folder", function({**given, "ModelDir": "/own/folder"})[0]["EASEL_MODEL_DIR"])

    def test_an_address_is_given_on_with_s3_alone(self):
        # As when a stack goes back from s3 and keeps its parameters; a rule asks for an empty one then.
        variables, _ = function({"ModelUrl": URL})
        self.assertNotIn("EASEL_MODEL_URL", variables)

    def test_s3_needs_an_address_and_an_address_needs_s3(self):
        for volume, url, fine in (
            ("image", "", True),
            ("efs", "", True),
            ("s3", URL, True),
            ("s3", "", False),
            ("image", URL, False),
            ("efs", URL, False),
        ):
            root = templates.root({"ModelVolume": volume, "ModelUrl": url})
            rules = [root.body["Rules"][name] for name in ("UrlOfTheModel", "ModelInABucket")]
            held = [
                root.condition(each["Assert"])
                for rule in rules
                if root.condition(rule["RuleCondition"])
                for each in rule["Assertions"]
            ]
            with self.subTest(volume=volume, url=url):
                self.assertEqual(fine, all(held))

    def test_an_address_is_a_bucket_and_a_prefix(self):
        known = templates.root().body["Parameters"]["ModelUrl"]
        pattern = re.compile(known["AllowedPattern"])
        for good in ("", URL, "s3://bucket/sd15", "s3://my.bucket-1/a/b_c.d/v1"):
            self.assertRegex(good, pattern)
        # A star or a variable would open more than the folder, and a last slash a folder without a name.
        for bad in ("s3://bucket", "s3://bucket/", URL + "/", "s3://bucket//a", "s3://bucket/*", "s3://bucket/${aws:x}",
                    "s3://Bucket/a", "https://bucket/a", "bucket/a", "s3://bucket/a b", "s3://bucket/a?"):  # fmt: skip
            with self.subTest(bad=bad):
                self.assertIsNone(pattern.fullmatch(bad))
        self.assertIn("s3://BUCKET/PREFIX", known["ConstraintDescription"])


class Image(unittest.TestCase):
    def setUp(self):
        self.stages = dockerfile.stages(manifests.ROOT / "infra/image/Dockerfile")
        self.image, self.check = self.stages["handler-with-model"], self.stages["model-check"]

    def test_it_is_the_handlers_with_the_model_where_the_function_looks_for_it(self):
        handler = self.stages["handler"]
        self.assertEqual("handler", self.image.base)
        self.assertEqual((handler.user, handler.entrypoint), (self.image.user, self.image.entrypoint))
        own = dict(self.image.environment.items() - handler.environment.items())
        self.assertEqual({"EASEL_MODEL_DIR": WAYS["image"][1]}, own)
        self.assertIn((("model", "/"), WAYS["image"][1]), self.image.copies)

    def test_a_new_binary_leaves_the_models_layer_as_it_is(self):
        # What --link copies does not depend on the layers below; anything that runs there would.
        self.assertLessEqual({word for word, _ in self.image.steps}, {"COPY", "ENV"})
        for _, rest in (step for step in self.image.steps if step[0] == "COPY"):
            with self.subTest(copy=rest):
                self.assertIn("link", dockerfile.flags(rest)[0])

    def test_everybody_may_read_it(self):
        # The folder may have been pulled by root, with a umask that lets nobody else in.
        for _, rest in (step for step in self.image.steps if step[0] == "COPY"):
            mode = int(dockerfile.flags(rest)[0]["chmod"], 8)
            with self.subTest(copy=rest):
                self.assertEqual(0o044, mode & 0o044)
        self.assertIn("--chmod=755", next(rest for word, rest in self.image.steps if "--from=model " in rest))

    def test_no_image_is_made_of_a_folder_that_was_not_looked_at(self):
        self.assertEqual(("scratch", []), (self.stages["model"].base, self.stages["model"].steps))
        self.assertIn("model-check", [origin for (origin, _), _ in self.image.copies])
        ((_, rest),) = [step for step in self.check.steps if step[0] == "RUN"]
        self.assertEqual("type=bind,from=model,target=/opt/model", dockerfile.flags(rest)[0]["mount"])

    def test_a_folder_that_was_not_pulled_whole_is_refused_and_the_reason_said(self):
        (line,) = self.check.run
        with tempfile.TemporaryDirectory() as temporary:
            folder, taken = Path(temporary, "model"), Path(temporary, "model.json")
            (folder / "unet").mkdir(parents=True)
            line = line.replace("/opt/model", str(folder)).replace("/model.json", str(taken))
            weights, manifest = folder / "unet/config.json", folder / "easel-weights.json"

            def tried():
                environment = {"PATH": f"{binaries.FOLDER}:/usr/bin:/bin"}
                ran = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, check=False)
                return ran.returncode == 0 and taken.exists(), ran.stdout + ran.stderr

            fine, said = tried()
            self.assertFalse(fine, "an empty folder")
            self.assertIn("--build-context model=DIR", said)
            self.assertIn("handler weights pull --variant fp16", said)
            weights.write_text("{}")
            self.assertFalse(tried()[0], "a folder without a manifest")
            sha256 = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
            manifest.write_text(
                '{"repo": "a/b", "revision": "main", "commit": "c", "variant": "fp16",'
                f' "files": [{{"path": "unet/config.json", "bytes": 2, "sha256": "{sha256}"}}]}}'
            )
            fine, said = tried()
            self.assertTrue(fine, said)
            weights.write_text("[]")
            taken.unlink()
            fine, said = tried()
            self.assertFalse(fine, "other bytes than the manifest has")
            self.assertIn("unet/config.json", said)


if __name__ == "__main__":
    unittest.main()
