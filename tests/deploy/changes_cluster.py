"""How manifests and image are broken: for each test what is changed, from what, to what. It must fail then."""

BASE = "infra/kubernetes/base/"
EKS = "infra/kubernetes/overlays/eks/"
COMPOSE = "infra/compose/compose.yaml"
EXAMPLE = "infra/kubernetes/overlays/example/"
IMAGE = "infra/image/Dockerfile"

CHANGES = {
    "test_schemas.Schemas.test_every_document_fits_the_schema_of_its_kind": [
        (BASE + "worker.yaml", "pollingInterval:", "pollInterval:"),
        (BASE + "relay.yaml", "minReadySeconds: 10", 'minReadySeconds: "ten"'),
        (BASE + "monitoring.yaml", "podMetricsEndpoints", "podMetricEndpoints"),
    ],
    "test_schemas.Schemas.test_the_job_that_keda_makes_is_one": [
        (BASE + "worker.yaml", "restartPolicy: Never", "restartPolice: Never"),
    ],
    "test_drift.Commands.test_every_variable_of_the_manifests_is_one_that_the_binary_reads": [
        (BASE + "worker.env", "EASEL_IDLE_EXIT", "EASEL_IDLE"),
        (BASE + "relay.yaml", "name: AMQP_URL", "name: RABBITMQ_URL"),
    ],
    "test_credentials.Credentials.test_what_an_overlay_offers_behind_a_hash_is_what_the_worker_takes": [
        (EKS + "worker.env", "#EASEL_CREDENTIAL_KEY_ARN", "#EASEL_CREDENTIALS_KEY_ARN"),
        (EKS + "worker.env", "#EASEL_CREDENTIAL_KEY_ARN=", "#EASEL_CREDENTIAL_KEY_ARN "),
    ],
    "test_drift.Commands.test_every_command_line_is_one_that_the_binary_takes": [
        (BASE + "weights.yaml", "--revision=", "--commit="),
        (BASE + "worker.yaml", "args: [worker]", "args: [work]"),
    ],
    "test_drift.Commands.test_the_binaries_take_every_value": [
        (BASE + "worker.env", "EASEL_RESULT_ACL=none", "EASEL_RESULT_ACL=private"),
        (BASE + "relay.env", "0.0.0.0:9100", "9100"),
    ],
    "test_drift.Health.test_probes_and_monitors_ask_the_port_on_which_the_binary_listens": [
        (BASE + "worker.env", "0.0.0.0:8080", "0.0.0.0:8081"),
        (BASE + "relay.env", "0.0.0.0:9100", "127.0.0.1:9100"),
        (BASE + "relay.yaml", "path: /readyz", "path: /ready"),
    ],
    "test_drift.Health.test_prometheus_finds_the_pods_and_may_reach_them": [
        (BASE + "monitoring.yaml", "name: worker}\n  pod", "name: workers}\n  pod"),
    ],
    "test_drift.Health.test_the_image_exposes_the_ports_of_the_manifests": [
        (IMAGE, "EXPOSE 9100", "EXPOSE 9101"),
    ],
    "test_queue.Queue.test_a_pod_may_finish_the_longest_task_and_is_gone_before_the_queue_would_give_it_to_another": [
        (BASE + "worker.yaml", "Seconds: 360", "Seconds: 300"),
        (BASE + "worker.yaml", "Seconds: 360", "Seconds: 1800"),
    ],
    "test_queue.Queue.test_a_worker_renews_its_tasks_within_what_the_queue_allows": [
        (EKS + "worker.env", "AWS_REGION", "EASEL_VISIBILITY_TIMEOUT=1900\nAWS_REGION"),
    ],
    "test_queue.Queue.test_a_relay_may_end_in_order": [
        (BASE + "relay.yaml", "Seconds: 40", "Seconds: 25"),
    ],
    "test_queue.Queue.test_a_relays_memory_holds_its_messages": [
        (BASE + "relay.yaml", "limits: {memory: 384Mi}", "limits: {memory: 256Mi}"),
        (BASE + "relay.env", "RELAY_HEALTH_ADDR", "AMQP_PREFETCH_BYTES=268435456\nRELAY_HEALTH_ADDR"),
        ("infra/aws/relay.yaml", 'Memory: "512"', 'Memory: "256"'),
    ],
    "test_queue.Queue.test_receives_are_counted_to_the_same_number_everywhere": [
        (BASE + "worker.env", "RECEIVE_COUNT=5", "RECEIVE_COUNT=4"),
    ],
    "test_queue.Queue.test_the_relay_groups_messages_on_a_cluster_as_on_fargate": [
        (BASE + "relay.env", "json:/style_id", "json:/generation_id"),
    ],
    "test_queue.Queue.test_relay_and_worker_have_one_bucket_for_what_the_queue_cannot_carry": [
        (EKS + "worker.env", "EASEL_PAYLOAD_BUCKET=easel-payloads\n", ""),
    ],
    "test_queue.Queue.test_relay_worker_and_keda_have_one_queue": [
        (EKS + "relay.env", "easel-tasks", "tasks"),
    ],
    "test_queue.Queue.test_kept_loras_and_those_on_their_way_fit_into_the_volume": [
        (BASE + "worker.env", "MAX_BYTES=6442450944", "MAX_BYTES=8589934592"),
        (BASE + "worker.yaml", "sizeLimit: 9Gi", "sizeLimit: 8Gi"),
    ],
    "test_pods.Pods.test_no_container_is_root_or_writes_its_own_files_or_keeps_a_capability": [
        (BASE + "worker.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false"),
    ],
    "test_pods.Pods.test_a_pod_goes_where_its_image_runs": [
        (BASE + "worker.yaml", "kubernetes.io/arch: amd64", "kubernetes.io/arch: arm64"),
        (BASE + "weights.yaml", "      nodeSelector: {kubernetes.io/arch: amd64}\n", ""),
        (BASE + "relay.yaml", "      nodeSelector: {kubernetes.io/arch: amd64}\n", ""),
    ],
    "test_network.Network.test_names_are_found_where_the_cluster_answers_at_an_address": [
        (BASE + "network.yaml", "        - ipBlock: {cidr: 169.254.20.10/32}\n", ""),
        (BASE + "network.yaml", "        - ipBlock: {cidr: 172.16.0.0/12}\n", ""),
        (BASE + "network.yaml", '"fc00::/7"', '"fe80::/10"'),
    ],
    "test_pods.Pods.test_every_container_says_what_it_needs_and_has_a_limit": [
        (BASE + "relay.yaml", "limits: {memory: 384Mi}", "limits: {memory: 32Mi}"),
    ],
    "test_pods.Pods.test_a_worker_has_one_gpu_and_may_go_where_gpus_are": [
        (BASE + "worker.yaml", "- {key: nvidia.com/gpu,", "- {key: gpu,"),
        (BASE + "worker.env", "EASEL_DEVICE=cuda", "EASEL_DEVICE=auto"),
    ],
    "test_pods.Pods.test_folders_that_are_written_are_volumes_and_the_model_is_read_only": [
        (BASE + "worker.yaml", "claimName: models, readOnly: true", "claimName: models"),
    ],
    "test_pods.Pods.test_the_job_fills_and_verifies_the_folder_that_workers_read": [
        (BASE + "weights.yaml", "verify, /models/stable-diffusion-v1-5", "verify, /models/sd15"),
    ],
    "test_pods.Pods.test_a_disruption_leaves_a_relay": [
        (BASE + "relay.yaml", "maxUnavailable: 0", "maxUnavailable: 1"),
    ],
    "test_pods.Pods.test_secrets_come_by_name_alone": [
        (EKS + "relay.env", "AWS_REGION", "AMQP_CLIENT_KEY=/key\nAWS_REGION"),
    ],
    "test_network.Network.test_what_is_not_named_is_refused": [
        (BASE + "network.yaml", "policyTypes: [Ingress, Egress]", "policyTypes: [Ingress]"),
    ],
    "test_network.Network.test_no_rule_reaches_a_metadata_service": [
        (BASE + "network.yaml", "0.0.0.0/0, except: [169.254.0.0/16]", "0.0.0.0/0"),
    ],
    "test_network.Network.test_every_pod_may_reach_what_it_calls_and_no_other_a_broker": [
        (
            BASE + "network.yaml",
            "app.kubernetes.io/name: relay}\n  policyTypes: [Egress]",
            "app.kubernetes.io/part-of: easel}\n  policyTypes: [Egress]",
        ),
        (BASE + "network.yaml", "{port: 5671, protocol: TCP}, ", ""),
        (BASE + "network.yaml", "port: 443", "port: 8443"),
        (BASE + "network.yaml", "{port: 53, protocol: UDP}, ", ""),
        (BASE + "weights.yaml", "name: weights, app.kubernetes.io/part-of: easel", "name: weights"),
    ],
    "test_pods.Image.test_every_base_is_pinned_by_its_digest": [
        (IMAGE, "bookworm-slim@sha256:", "bookworm-slim#sha256:"),
    ],
    "test_pods.Image.test_the_relay_carries_no_cuda": [
        (IMAGE, "FROM ${DEBIAN_IMAGE} AS relay", "FROM ${CUDA_DEVEL_IMAGE} AS relay"),
    ],
    "test_model.Image.test_it_is_the_handlers_with_the_model_where_the_function_looks_for_it": [
        (IMAGE, "EASEL_MODEL_DIR=/opt/model", "EASEL_MODEL_DIR=/models"),
        (IMAGE, "--from=model / /opt/model", "--from=model / /models"),
    ],
    "test_model.Image.test_a_new_binary_leaves_the_models_layer_as_it_is": [
        (IMAGE, "COPY --link --chmod=755", "COPY --chmod=755"),
        (IMAGE, "ENV EASEL_MODEL_DIR=/opt/model", "RUN true\nENV EASEL_MODEL_DIR=/opt/model"),
    ],
    "test_model.Image.test_everybody_may_read_it": [
        (IMAGE, "--chmod=755", "--chmod=700"),
        (IMAGE, "--chmod=644", "--chmod=600"),
    ],
    "test_model.Image.test_no_image_is_made_of_a_folder_that_was_not_looked_at": [
        (IMAGE, "COPY --link --chmod=644 --from=model-check /model.json /usr/share/sbom/model.json\n", ""),
        (IMAGE, "FROM scratch AS model\n", "FROM ${DEBIAN_IMAGE} AS model\n"),
    ],
    "test_model.Image.test_a_folder_that_was_not_pulled_whole_is_refused_and_the_reason_said": [
        (IMAGE, "    && handler weights verify /opt/model \\\n", ""),
        (IMAGE, "with --build-context model=DIR\" >&2", "again\" >&2"),
    ],
    "test_dockerfile.Dockerfile.test_hadolint_has_nothing_to_say": [
        (IMAGE, "# hadolint ignore=DL3008\n", ""),
    ],
    "test_scaling.Scaling.test_keda_has_the_settings_that_the_simulation_chooses": [
        (BASE + "worker.yaml", 'queueLength: "80"', 'queueLength: "20"'),
    ],
    "test_scaling.Scaling.test_a_job_in_flight_counts_and_a_running_one_is_taken_off": [
        (BASE + "worker.yaml", 'scaleOnInFlight: "true"', 'scaleOnInFlight: "false"'),
    ],
    "test_volume.Volume.test_a_cluster_mounts_the_templates_file_system_as_its_policy_demands": [
        (EKS + "volume.yaml", "[tls, iam]", "[tls]"),
        ("infra/aws/volume.yaml", "Effect: Deny", "Effect: Allow"),
    ],
    "test_volume.Volume.test_the_fill_task_fills_the_folder_that_the_function_reads": [
        ("infra/aws/volume.yaml", "--to, !Ref ModelDir", "--to, /mnt/models/stable-diffusion-v1-5"),
        ("infra/aws/function.yaml", "LocalMountPath: /mnt/models", "LocalMountPath: /mnt/weights"),
    ],
    "test_volume.Volume.test_what_every_cold_start_reads_is_in_half_precision": [
        (BASE + "weights.yaml", "--variant=fp16", "--variant=full"),
        ("infra/aws/volume.yaml", "--variant, fp16", "--variant, full"),
    ],
    "test_volume.Volume.test_a_claim_asks_for_what_its_volume_offers": [
        (EKS + "volume.yaml", "[ReadWriteMany, ReadOnlyMany]", "[ReadWriteMany]"),
    ],
    "test_references.References.test_what_a_pod_names_is_there": [
        (BASE + "worker.yaml", "serviceAccountName: worker", "serviceAccountName: painter"),
        (BASE + "weights.yaml", "claimName: models", "claimName: model"),
    ],
    "test_references.References.test_settings_are_in_the_overlay_and_secrets_are_those_that_the_page_makes": [
        (BASE + "references.yaml", "kind: ScaledJob, path: spec", "kind: ScaledJob, path: specs"),
        (BASE + "relay.yaml", "name: easel-amqp, key: url", "name: easel-amqp, key: uri"),
        (EXAMPLE + "kustomization.yaml", "secretRef: {name: easel-aws}", "secretRef: {name: aws}"),
    ],
    "test_references.References.test_keda_reads_the_queue_with_what_is_there": [
        (BASE + "worker.yaml", "authenticationRef: {name: queue}", "authenticationRef: {name: sqs}"),
    ],
    "test_references.References.test_no_image_is_left_without_a_registry_or_a_tag": [
        (EKS + "kustomization.yaml", "{name: easel-handler,", "{name: easel-worker,"),
    ],
    "test_compose.Written.test_every_file_fits_the_schema": [
        (COMPOSE, "depends_on: {aws: {condition: service_healthy}}", "depends_on: {aws: {condition: healthy, extra: 1}}"),
    ],
    "test_compose.Written.test_every_variable_is_one_that_the_binary_reads_and_every_value_one_that_it_takes": [
        (COMPOSE, "EASEL_LORA_BUCKETS", "EASEL_LORA_BUCKET"),
        (COMPOSE, "EASEL_WEBHOOK_HOSTS: backend:8000", "EASEL_WEBHOOK_HOSTS: http://backend:8000"),
    ],
    "test_compose.Written.test_a_gpu_is_asked_for_where_there_is_one": [
        ("infra/compose/compose.gpu.yaml", "EASEL_DEVICE: cuda", "EASEL_DEVICE: auto"),
    ],
    "test_compose.Written.test_what_is_built_is_in_the_dockerfile_and_what_is_fetched_has_a_version": [
        (COMPOSE, "rabbitmq:4.2-management", "rabbitmq:latest"),
        (COMPOSE, "platform: linux/amd64", "platform: linux/arm64"),
    ],
    "test_compose.Written.test_nothing_is_open_to_other_machines_and_ours_may_do_little": [
        (COMPOSE, '"127.0.0.1:5000:5000"', '"5000:5000"'),
    ],
    "test_compose.Written.test_ours_may_end_in_order": [
        (COMPOSE, "stop_grace_period: 40s", "stop_grace_period: 10s"),
    ],
    "test_compose.Run.test_a_worker_paints_with_what_the_files_give_it": [
        (COMPOSE, "S3_BUCKET: stylelicense-images", "S3_BUCKET: stylelicense-image"),
        ("infra/compose/resources.py", '"maxReceiveCount": 3', '"maxReceiveCount": 5'),
    ],
}
