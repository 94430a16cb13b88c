"""Each document of each overlay has the fields that its kind has, and no others."""

import unittest

import jsonschema
import kubernetes_validate
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as monitoring
import manifests

KUBERNETES = "1.37"
CUSTOM = {
    each.__name__: each
    for each in (keda.ScaledJob, keda.TriggerAuthentication, monitoring.ServiceMonitor, monitoring.PodMonitor)
}


def strict(schema):
    """The schema, refusing fields that it does not name: the models themselves ignore them."""
    if isinstance(schema, dict):
        made = {key: strict(value) for key, value in schema.items()}
        if isinstance(made.get("properties"), dict) and "additionalProperties" not in made:
            made["additionalProperties"] = False
        return made
    return [strict(each) for each in schema] if isinstance(schema, list) else schema


class Schemas(unittest.TestCase):
    def test_every_document_fits_the_schema_of_its_kind(self):
        schemas = {name: strict(model.model_json_schema(by_alias=True)) for name, model in CUSTOM.items()}
        for overlay in manifests.OVERLAYS:
            for document in manifests.build(overlay):
                kind = document["kind"]
                with self.subTest(overlay=overlay, kind=kind, name=document["metadata"]["name"]):
                    if kind in schemas:
                        self.assertEqual(
                            schemas[kind]["properties"]["apiVersion"]["anyOf"][0]["const"], document["apiVersion"]
                        )
                        # Without a look at the schema itself, which would take most of the time.
                        errors = jsonschema.Draft202012Validator(schemas[kind]).iter_errors(document)
                        self.assertEqual([], [f"{error.json_path}: {error.message[:200]}" for error in errors])
                    else:
                        kubernetes_validate.validate(document, KUBERNETES, strict=True)

    def test_the_job_that_keda_makes_is_one(self):
        for overlay in manifests.OVERLAYS:
            spec = manifests.find(overlay, "ScaledJob", "worker")["spec"]["jobTargetRef"]
            job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"generateName": "worker-"}, "spec": spec}
            with self.subTest(overlay=overlay):
                kubernetes_validate.validate(job, KUBERNETES, strict=True)


if __name__ == "__main__":
    unittest.main()
