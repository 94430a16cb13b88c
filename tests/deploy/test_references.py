"""Every name that a manifest refers to is in the overlay, or is that of a secret that the page tells to make."""

import re
import unittest
from pathlib import Path

import manifests

PAGE = Path(__file__).resolve().parents[2] / "docs/KUBERNETES.md"
NAMES = {"configMapRef": "ConfigMap", "configMapKeyRef": "ConfigMap", "secretRef": "Secret", "secretKeyRef": "Secret"}


def made():
    """The secrets that the page tells to make, each with its keys."""
    lines = re.findall(r"create secret generic (\S+)((?: --from-literal=\S+)+)", PAGE.read_text())
    return {name: set(re.findall(r"--from-literal=([\w-]+)=", literals)) for name, literals in lines}


def references(node):
    """Every reference of a container to a ConfigMap or Secret, as (kind, name, key or None)."""
    if isinstance(node, list):
        for each in node:
            yield from references(each)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key in NAMES:
                yield NAMES[key], value["name"], value.get("key")
            else:
                yield from references(value)


class References(unittest.TestCase):
    def names(self, overlay, kind):
        return {each["metadata"]["name"] for each in manifests.build(overlay) if each["kind"] == kind}

    def test_what_a_pod_names_is_there(self):
        for overlay in manifests.OVERLAYS:
            for owner, spec, container in manifests.containers(overlay):
                with self.subTest(overlay=overlay, owner=owner):
                    self.assertIn(spec["serviceAccountName"], self.names(overlay, "ServiceAccount"))
                    volumes = spec.get("volumes", [])
                    claims = (each.get("persistentVolumeClaim") for each in volumes)
                    claimed = {each["claimName"] for each in claims if each}
                    self.assertLessEqual(claimed, self.names(overlay, "PersistentVolumeClaim"))
                    mounted = {each["name"] for each in container.get("volumeMounts", [])}
                    self.assertLessEqual(mounted, {each["name"] for each in volumes})

    def test_settings_are_in_the_overlay_and_secrets_are_those_that_the_page_makes(self):
        for overlay in manifests.OVERLAYS:
            for owner, _, container in manifests.containers(overlay):
                for kind, name, key in references([container.get("envFrom", []), container.get("env", [])]):
                    with self.subTest(overlay=overlay, owner=owner, name=name):
                        self.assertIn(name, self.names(overlay, kind) if kind == "ConfigMap" else made())
                        self.assertTrue(kind == "ConfigMap" or key is None or key in made()[name])

    def test_keda_reads_the_queue_with_what_is_there(self):
        for overlay in manifests.OVERLAYS:
            (trigger,) = manifests.find(overlay, "ScaledJob", "worker")["spec"]["triggers"]
            used = manifests.find(overlay, "TriggerAuthentication", trigger["authenticationRef"]["name"])["spec"]
            with self.subTest(overlay=overlay):
                for each in used.get("secretTargetRef", []):
                    self.assertIn(each["key"], made()[each["name"]])

    def test_no_image_is_left_without_a_registry_or_a_tag(self):
        for overlay in ("eks", "eks-pod-identity"):
            for owner, _, container in manifests.containers(overlay):
                with self.subTest(overlay=overlay, owner=owner):
                    self.assertRegex(container["image"], r"^[\w.-]+\.[a-z]+/[\w/-]+:[\w.-]+$")


if __name__ == "__main__":
    unittest.main()
