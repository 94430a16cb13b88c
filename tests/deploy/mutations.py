#!/usr/bin/env python3
"""Breaks the manifests, templates and image one way after the other, in a copy, and demands that the named test turns red.

Run by hand, with the Python of .cache/venv: two minutes. Refuses a change that changes nothing.
"""
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE = "infra/kubernetes/base/"
EKS = "infra/kubernetes/overlays/eks/"
IMAGE = "infra/image/Dockerfile"
COMMANDS, HEALTH = "test_drift.Commands.test_", "test_drift.Health.test_"
QUEUE, PODS, NETWORK = "test_queue.Queue.test_", "test_pods.Pods.test_", "test_pods.Network.test_"
SCHEMAS, SCALING = "test_schemas.Schemas.test_", "test_scaling.Scaling.test_"

# What is changed, from what, to what, and the test that must fail.
MUTATIONS = [
    (BASE + "worker.yaml", "pollingInterval:", "pollInterval:", SCHEMAS + "every_document_fits_the_schema_of_its_kind"),
    (BASE + "relay.yaml", "minReadySeconds: 10", 'minReadySeconds: "ten"', SCHEMAS + "every_document_fits_the_schema_of_its_kind"),
    (BASE + "monitoring.yaml", "podMetricsEndpoints", "podMetricEndpoints", SCHEMAS + "every_document_fits_the_schema_of_its_kind"),
    (BASE + "worker.yaml", "restartPolicy: Never", "restartPolice: Never", SCHEMAS + "the_job_that_keda_makes_is_one"),
    (BASE + "worker.env", "EASEL_IDLE_EXIT", "EASEL_IDLE", COMMANDS + "every_variable_of_the_manifests_is_one_that_the_binary_reads"),
    (BASE + "relay.yaml", "name: AMQP_URL", "name: RABBITMQ_URL", COMMANDS + "every_variable_of_the_manifests_is_one_that_the_binary_reads"),
    ("template.yaml", "EASEL_LORA_BUCKETS:", "EASEL_LORA_BUCKET:", COMMANDS + "every_variable_of_the_templates_is_one_that_the_binary_reads"),
    (BASE + "weights.yaml", "--revision=", "--commit=", COMMANDS + "every_command_line_is_one_that_the_binary_takes"),
    (BASE + "worker.yaml", "args: [worker]", "args: [work]", COMMANDS + "every_command_line_is_one_that_the_binary_takes"),
    (BASE + "worker.env", "EASEL_RESULT_ACL=none", "EASEL_RESULT_ACL=private", COMMANDS + "the_binaries_take_every_value"),
    (BASE + "relay.env", "0.0.0.0:9100", "9100", COMMANDS + "the_binaries_take_every_value"),
    (BASE + "worker.env", "0.0.0.0:8080", "0.0.0.0:8081", HEALTH + "probes_and_monitors_ask_the_port_on_which_the_binary_listens"),
    (BASE + "relay.env", "0.0.0.0:9100", "127.0.0.1:9100", HEALTH + "probes_and_monitors_ask_the_port_on_which_the_binary_listens"),
    (BASE + "relay.yaml", "path: /readyz", "path: /ready", HEALTH + "probes_and_monitors_ask_the_port_on_which_the_binary_listens"),
    (BASE + "monitoring.yaml", "name: worker}\n  pod", "name: workers}\n  pod", HEALTH + "prometheus_finds_the_pods_and_may_reach_them"),
    (IMAGE, "EXPOSE 9100", "EXPOSE 9101", HEALTH + "the_image_exposes_the_ports_of_the_manifests"),
    ("template.yaml", "1800", "1700", QUEUE + "the_queue_hides_a_task_for_six_times_the_functions_timeout"),
    (BASE + "worker.yaml", "Seconds: 360", "Seconds: 300", QUEUE + "a_pod_may_finish_the_longest_task_and_is_gone_before_the_queue_would_give_it_to_another"),
    (BASE + "worker.yaml", "Seconds: 360", "Seconds: 1800", QUEUE + "a_pod_may_finish_the_longest_task_and_is_gone_before_the_queue_would_give_it_to_another"),
    (EKS + "worker.env", "AWS_REGION", "EASEL_VISIBILITY_TIMEOUT=1900\nAWS_REGION", QUEUE + "a_worker_renews_its_tasks_within_what_the_queue_allows"),
    (BASE + "relay.yaml", "Seconds: 40", "Seconds: 25", QUEUE + "a_relay_may_end_in_order"),
    (BASE + "worker.env", "RECEIVE_COUNT=3", "RECEIVE_COUNT=4", QUEUE + "receives_are_counted_to_the_same_number_everywhere"),
    (EKS + "relay.env", "easel-tasks", "tasks", QUEUE + "relay_worker_and_keda_have_one_queue"),
    ("template.yaml", "  TasksUrl:", "  TaskUrl:", QUEUE + "what_an_overlay_takes_from_the_template_is_an_output_of_it"),
    (BASE + "worker.env", "MAX_BYTES=6442450944", "MAX_BYTES=8589934592", QUEUE + "kept_loras_and_those_on_their_way_fit_into_the_volume"),
    (BASE + "worker.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", PODS + "no_container_is_root_or_writes_its_own_files_or_keeps_a_capability"),
    (BASE + "relay.yaml", "limits: {memory: 384Mi}", "limits: {memory: 32Mi}", PODS + "every_container_says_what_it_needs_and_has_a_limit"),
    (BASE + "worker.yaml", "- {key: nvidia.com/gpu,", "- {key: gpu,", PODS + "a_worker_has_one_gpu_and_may_go_where_gpus_are"),
    (BASE + "worker.yaml", "claimName: models, readOnly: true", "claimName: models", PODS + "folders_that_are_written_are_volumes_and_the_model_is_read_only"),
    (BASE + "weights.yaml", "verify, /models/stable-diffusion-v1-5", "verify, /models/sd15", PODS + "the_job_fills_and_verifies_the_folder_that_workers_read"),
    (BASE + "relay.yaml", "maxUnavailable: 0", "maxUnavailable: 1", PODS + "a_disruption_leaves_a_relay"),
    (EKS + "relay.env", "AWS_REGION", "AMQP_CLIENT_KEY=/key\nAWS_REGION", PODS + "secrets_come_by_name_alone"),
    (BASE + "network.yaml", "policyTypes: [Ingress, Egress]", "policyTypes: [Ingress]", NETWORK + "what_is_not_named_is_refused"),
    (BASE + "network.yaml", "0.0.0.0/0, except: [169.254.0.0/16]", "0.0.0.0/0", NETWORK + "no_rule_reaches_a_metadata_service"),
    (BASE + "network.yaml", "app.kubernetes.io/name: relay}\n  policyTypes: [Egress]", "app.kubernetes.io/part-of: easel}\n  policyTypes: [Egress]", NETWORK + "only_the_relay_may_reach_a_broker"),
    (IMAGE, "bookworm-slim@sha256:", "bookworm-slim#sha256:", "test_pods.Image.test_every_base_is_pinned_by_its_digest"),
    (IMAGE, "FROM ${DEBIAN_IMAGE} AS relay", "FROM ${CUDA_BASE_IMAGE} AS relay", "test_pods.Image.test_the_relay_carries_no_cuda"),
    (IMAGE, "# hadolint ignore=DL3008\n", "", "test_dockerfile.Dockerfile.test_hadolint_has_nothing_to_say"),
    (BASE + "worker.yaml", 'queueLength: "80"', 'queueLength: "20"', SCALING + "keda_has_the_settings_that_the_simulation_chooses"),
    (BASE + "worker.yaml", 'scaleOnInFlight: "true"', 'scaleOnInFlight: "false"', SCALING + "a_job_in_flight_counts_and_a_running_one_is_taken_off"),
]


def red(test, root):
    """Whether the test fails on this copy."""
    command = [sys.executable, "-m", "unittest", test]
    ran = subprocess.run(command, cwd=Path(__file__).parent, env={**os.environ, "EASEL_ROOT": str(root)}, capture_output=True, text=True, check=False)
    assert "Ran 1 test" in ran.stderr, ran.stderr
    return ran.returncode != 0


def main():
    """All of them; ends with 1 if a test stayed green."""
    green = []
    for file, old, new, test in MUTATIONS:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            shutil.copytree(ROOT / "infra", root / "infra")
            shutil.copy(ROOT / "template.yaml", root)
            text = (root / file).read_text()
            assert old in text, f"{file} has no {old!r}"
            (root / file).write_text(text.replace(old, new))
            failed = red(test, root)
        print("red  " if failed else "GREEN", f"{file}: {old.strip()!r} -> {new.strip()!r}: {test.partition('.test_')[2]}", flush=True)
        green += [] if failed else [test]
    print(f"{len(MUTATIONS) - len(green)} passed, {len(green)} failed")
    return bool(green)


if __name__ == "__main__":
    sys.exit(main())
