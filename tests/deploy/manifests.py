"""The Kubernetes manifests as kustomize builds them.

Only these are checked, as they are what is applied.
"""

import functools
import os
import subprocess
from pathlib import Path

import yaml

ROOT = Path(os.environ.get("EASEL_ROOT", Path(__file__).resolve().parents[2]))
KUBECTL = Path(__file__).resolve().parents[2] / ".cache" / "kubectl"
OVERLAYS = sorted(path.parent.name for path in ROOT.glob("infra/kubernetes/overlays/*/kustomization.yaml"))


class NotBuilt(Exception):
    """kustomize refuses an overlay."""


@functools.cache
def build(overlay):
    """All documents of an overlay."""
    folder = ROOT / "infra/kubernetes/overlays" / overlay
    built = subprocess.run([KUBECTL, "kustomize", folder], capture_output=True, text=True, check=False)
    if built.returncode != 0:
        raise NotBuilt(f"overlay {overlay}: {built.stderr}")
    return list(yaml.safe_load_all(built.stdout))


def find(overlay, kind, name):
    """The one document of a kind and name."""
    found = [each for each in build(overlay) if each["kind"] == kind and each["metadata"]["name"] == name]
    assert len(found) == 1, f"overlay {overlay}: {len(found)} of {kind}/{name}"
    return found[0]


def pod_templates(overlay):
    """Every pod template, as (kind and name, template)."""
    for each in build(overlay):
        name = f"{each['kind']}/{each['metadata']['name']}"
        if each["kind"] in ("Deployment", "Job"):
            yield name, each["spec"]["template"]
        elif each["kind"] == "ScaledJob":
            yield name, each["spec"]["jobTargetRef"]["template"]


def containers(overlay):
    """Every container, as (owner, pod's spec, container)."""
    for name, template in pod_templates(overlay):
        for kind in ("initContainers", "containers"):
            for container in template["spec"].get(kind, []):
                yield name, template["spec"], container


def environment(overlay, container):
    """The container's variables; a secret's value is None."""
    found = {}
    for source in container.get("envFrom", []):
        if "configMapRef" in source:
            found.update(find(overlay, "ConfigMap", source["configMapRef"]["name"])["data"])
    for variable in container.get("env", []):
        found[variable["name"]] = variable.get("value")
    return found


def binary(container):
    """Which binary the container's image starts: that of the Dockerfile's target."""
    return container["image"].rpartition("/")[2].partition(":")[0].partition("@")[0].removeprefix("easel-")


def seconds(template):
    """How long a pod may take to end."""
    return template["spec"]["terminationGracePeriodSeconds"]


def bytes_of(quantity):
    """A quantity of Kubernetes in bytes."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    return int(quantity[:-2]) * units[quantity[-2:]] if quantity[-2:] in units else int(quantity)


def seconds_of(duration):
    """A duration of compose, in seconds."""
    assert duration.endswith("s"), duration
    return int(duration[:-1])
