"""How the templates for AWS are broken: for each test what is changed, from what, to what. It must fail then."""

CHANGES = {
    "test_drift.Health.test_the_relay_on_fargate_is_asked_where_it_listens_and_may_end_in_order": [
        ("infra/aws/relay.yaml", "StopTimeout: 40", "StopTimeout: 20"),
        ("infra/aws/relay.yaml", "127.0.0.1:9100", "127.0.0.1:9101"),
    ],
    "test_scaling.Scaling.test_the_function_has_the_settings_that_the_simulation_chooses": [
        ("template.yaml", "MaxConcurrency: {Type: Number, Default: 16", "MaxConcurrency: {Type: Number, Default: 8"),
    ],
    "test_scaling.Scaling.test_the_simulation_knows_each_way_of_the_weights_and_chooses_the_same_for_all": [
        ("template.yaml", "AllowedValues: [image, s3, efs]", "AllowedValues: [image, efs]"),
        ("template.yaml", "ModelVolume: {Type: String, Default: image", "ModelVolume: {Type: String, Default: s3"),
    ],
    "test_function.Versions.test_another_image_or_setting_is_another_version": [
        ("infra/aws/function.yaml", "${ResultBaseUrl}|${WebhookHosts}|", "${ResultBaseUrl}|"),
        ("infra/aws/function.yaml", "|${ModelUrl}", ""),
        ("infra/aws/function.yaml", "${MaxPixels}|${Safety}|", "${MaxPixels}|"),
        ("infra/aws/function.yaml", "|${WebhookDetail}|", "|"),
        ("infra/aws/function.yaml", "AutoPublishAliasAllProperties: true", "AutoPublishCodeSha256: one"),
        # Another capacity provider, and the function stays on the old one.
        ("infra/aws/function.yaml", 'Types: !Join [",", !Ref InstanceTypes]', "Types: any"),
        ("infra/aws/function.yaml", 'Subnets: !Join [",", !Ref SubnetIds]', "Subnets: any"),
        ("infra/aws/function.yaml", '|${Callers}"', '"'),
    ],
    "test_function.Versions.test_what_no_version_holds_publishes_none": [
        ("infra/aws/function.yaml", "${HandlerImageUri}|${RoleArn}", "${HandlerImageUri}|${MaxConcurrency}|${RoleArn}"),
    ],
    "test_function.Scaling.test_it_aims_at_a_use_of_the_gpu_where_one_is_given": [
        ("infra/aws/function.yaml", "AverageGPUUtilization", "AverageCPUUtilization"),
        ("infra/aws/function.yaml", "!If [Aims, Manual, Auto]", "Auto"),
        ("template.yaml", "GpuUtilization: !Ref GpuUtilization, ", "GpuUtilization: 0, "),
    ],
    "test_function.Safety.test_the_mode_is_passed_on_where_one_is_given": [
        ("infra/aws/function.yaml", "!If [Chooses, !Ref Safety, !Ref AWS::NoValue]", "!Ref Safety"),
        ("template.yaml", "Safety: !Ref Safety,", 'Safety: "",'),
        ("template.yaml", '["", "off", flag, black, refuse]', '["", "off", flag, black, reject]'),
    ],
    "test_function.Pictures.test_what_s3_is_told_of_pictures_is_passed_on_where_it_is_given": [
        ("infra/aws/function.yaml", "!If [Tags, !Ref PictureTags, !Ref AWS::NoValue]", "!Ref PictureTags"),
        ("template.yaml", "PictureCacheControl: !Ref PictureCacheControl,", 'PictureCacheControl: "",'),
        ("template.yaml", "INTELLIGENT_TIERING, GLACIER_IR]", "INTELLIGENT_TIERING, GLACIER]"),
    ],
    "test_function.Pictures.test_the_webhook_of_cancelled_tasks_is_sent_where_it_is_asked_for": [
        ("template.yaml", "CancelledWebhook: !Ref CancelledWebhook,", 'CancelledWebhook: "false",'),
    ],
    "test_function.Tasks.test_what_tasks_may_ask_for_and_backends_are_told_is_passed_on": [
        ("template.yaml", "MaxSide: !Ref MaxSide,", "MaxSide: 1024,"),
        ("infra/aws/function.yaml", "EASEL_PROGRESS: !Ref ProgressMarks", 'EASEL_PROGRESS: "0,50"'),
        ("template.yaml", "AllowedValues: [seed, full]", "AllowedValues: [seed, all]"),
        ("template.yaml", "MinSide: {Type: Number, Default: 256", "MinSide: {Type: Number, Default: 250"),
        ("template.yaml", "MaxValue: 1209600", "MaxValue: 1209601"),
        ("infra/aws/function.yaml", "EASEL_RESULT_KEY: !Ref PictureKeyTemplate", "EASEL_RESULT_KEY: generations/{generation_id}"),
    ],
    "test_function.Tasks.test_a_key_of_pictures_that_the_role_may_not_write_or_the_handler_refuses_is_refused": [
        ("template.yaml", "^generations/[A-Za-z0-9/", "^[A-Za-z0-9/"),
        ("template.yaml", "\\\\{generation_id\\\\}", ""),
    ],
    "test_observability.Names.test_no_expression_names_a_metric_a_label_or_a_value_that_is_not_there": [
        ("infra/observability/rules.yaml", "expr: relay_sqs_ready == 0", "expr: relay_sqs_up == 0"),
        ("infra/observability/rules.yaml", 'cause="payload-bucket"', 'cause="payloads"'),
        ("infra/observability/dashboard.json", "sum by (ending)", "sum by (end)"),
        ("infra/observability/rules.yaml", "relay_held_messages > 0", "relay_held_messages >"),
    ],
    "test_observability.Names.test_every_metric_is_on_the_dashboard": [
        ("infra/observability/dashboard.json", "easel_lora_refetches_total", "easel_lora_evictions_total"),
    ],
    "test_observability.Dashboard.test_it_asks_the_data_source_that_is_chosen": [
        ("infra/observability/dashboard.json", '"name": "datasource"', '"name": "source"'),
    ],
    "test_relay.Relay.test_a_queue_for_cancelling_is_passed_on_with_its_rights_where_it_is_given": [
        ("template.yaml", "AmqpCancelQueue: !Ref AmqpCancelQueue,", 'AmqpCancelQueue: "",'),
        ("infra/aws/relay.yaml", "${PicturesArn}/cancelled/*", "${PicturesArn}/claims/*"),
        ("template.yaml", "CancelExpiry: !Ref CancelExpiry, Pictures:", "CancelExpiry: 345600, Pictures:"),
        ("infra/aws/relay.yaml", "{Name: RELAY_CANCEL_BUCKET,", "{Name: RELAY_CANCELS,"),
    ],
    "test_function.Machine.test_a_gpu_is_asked_for_and_found_where_lambda_has_its_driver": [
        ("infra/aws/function.yaml", "EASEL_DEVICE: cuda", "EASEL_DEVICE: auto"),
        ("infra/image/Dockerfile", ":/x86_64-bottlerocket-linux-gnu/sys-root/usr/lib/nvidia", ""),
    ],
    "test_function.Machine.test_what_libraries_write_by_themselves_goes_to_tmp": [
        ("infra/image/Dockerfile", "HOME=/tmp ", ""),
        ("infra/image/Dockerfile", "CUDA_CACHE_PATH=/tmp/", "CUDA_CACHE_PATH=/var/"),
        ("infra/image/Dockerfile", "134217728", "1073741824"),
    ],
    "test_function.Versions.test_lambda_gets_the_image_alone": [
        ("infra/aws/function.yaml", "${HandlerImageUri}|${RoleArn}", "${RoleArn}|${HandlerImageUri}"),
    ],
    "test_model.Ways.test_the_default_is_the_one_that_needs_nothing_of_aws": [
        ("template.yaml", "ModelVolume: {Type: String, Default: image", "ModelVolume: {Type: String, Default: efs"),
        ("template.yaml", ", unproven on Managed Instances", ""),
    ],
    "test_model.Ways.test_each_way_has_its_folder_and_nothing_of_the_others": [
        ("template.yaml", "image: {Folder: /opt/model}", "image: {Folder: /models}"),
        ("template.yaml", "s3: {Folder: /tmp/model}", "s3: {Folder: /var/model}"),
        ("template.yaml", "OnVolume: !Equals [!Ref ModelVolume, efs]", "OnVolume: !Not [!Equals [!Ref ModelVolume, image]]"),
        ("infra/aws/function.yaml", "!If [Fetches, !Ref ModelUrl, !Ref AWS::NoValue]", "!Ref ModelUrl"),
        ("infra/aws/function.yaml", "          EASEL_MODEL_URL: !If [Fetches, !Ref ModelUrl, !Ref AWS::NoValue]\n", ""),
    ],
    "test_model.Ways.test_a_folder_of_ones_own_is_taken_as_it_is": [
        ("template.yaml", 'UsualFolder: !Equals [!Ref ModelDir, ""]', "UsualFolder: !Equals [a, a]"),
    ],
    "test_model.Ways.test_an_address_is_given_on_with_s3_alone": [
        ("template.yaml", 'ModelUrl: !If [InBucket, !Ref ModelUrl, ""]', "ModelUrl: !Ref ModelUrl"),
    ],
    "test_model.Ways.test_s3_needs_an_address_and_an_address_needs_s3": [
        ("template.yaml", "RuleCondition: !Equals [!Ref ModelVolume, s3]", "RuleCondition: !Equals [!Ref ModelVolume, efs]"),
        ("template.yaml", "- Assert: !Equals [!Ref ModelVolume, s3]", "- Assert: !Not [!Equals [!Ref ModelVolume, efs]]"),
    ],
    "test_model.Ways.test_an_address_is_a_bucket_and_a_prefix": [
        ("template.yaml", "(/[A-Za-z0-9!_.'()=+@-]+)+$", "/.+$"),
        ("template.yaml", "[a-z0-9](/[A-Za-z0-9!_.'()=+@-]+)+$", "[a-z0-9](/[A-Za-z0-9!_.'()=+@-]+)*$"),
    ],
    "test_permissions.Permissions.test_the_function_may_read_the_models_folder_where_it_fetches_it_and_nothing_beside": [
        ("infra/aws/permissions.yaml", "s3:::${Folder}/*", "s3:::${Folder}*"),
        ("infra/aws/permissions.yaml", "Action: s3:GetObject\n                  Resource: !Sub", "Action: s3:*\n                  Resource: !Sub"),
        ("infra/aws/permissions.yaml", 'Fetches: !Not [!Equals [!Ref ModelUrl, ""]]', "Fetches: !Equals [a, a]"),
    ],
    "test_credentials.Credentials.test_without_a_certificate_there_are_none": [
        ("infra/aws/permissions.yaml", "!Ref CredentialKeyArn]], !Ref AWS::NoValue]", '!Ref CredentialKeyArn]], "*"]'),
    ],
    "test_credentials.Credentials.test_the_function_is_told_both_secrets_and_may_read_just_these": [
        ("infra/aws/function.yaml", "[Credits, !Ref CredentialKeyArn", "[Credits, !Ref CredentialCertificateArn"),
    ],
    "test_drift.Commands.test_every_variable_of_the_templates_is_one_that_the_binary_reads": [
        ("infra/aws/function.yaml", "EASEL_LORA_BUCKETS:", "EASEL_LORA_BUCKET:"),
    ],
    "test_queue.Queue.test_the_queue_hides_a_task_for_six_times_the_functions_timeout": [
        ("infra/aws/queue.yaml", "1800", "1700"),
        ("infra/aws/queue.yaml", "5400", "5000"),
    ],
    "test_queue.Queue.test_what_an_overlay_takes_from_the_template_is_an_output_of_it": [
        ("template.yaml", "  TasksUrl:", "  TaskUrl:"),
    ],
    "test_relay.Relay.test_a_deployment_starts_a_new_task_before_it_ends_an_old_one": [
        ("infra/aws/relay.yaml", "!If [Ordered, 1, !Ref Tasks]", "1"),
        ("infra/aws/relay.yaml", "!If [Ordered, 0, 100]", "50"),
    ],
    "test_relay.Relay.test_with_a_fifo_queue_two_relays_never_run_at_once": [
        ("infra/aws/relay.yaml", "!If [Ordered, DISABLED, ENABLED]", "ENABLED"),
        ("infra/aws/relay.yaml", "!If [Ordered, 100, 200]", "200"),
    ],
    "test_permissions.Permissions.test_the_relay_may_do_what_it_calls_and_nothing_else": [
        ("infra/aws/relay.yaml", "sqs:SendMessage, ", ""),
        ("infra/aws/relay.yaml", "sqs:SendMessage, ", "sqs:SendMessage, sqs:ReceiveMessage, "),
    ],
    "test_permissions.Permissions.test_the_function_may_do_what_it_calls_and_nothing_else": [
        ("infra/aws/permissions.yaml", ", s3:DeleteObject]", "]"),
        ("infra/aws/permissions.yaml", ", s3:DeleteObject]", ", s3:DeleteObject, s3:GetObjectVersion]"),
        ("infra/aws/permissions.yaml", "                  - sqs:ChangeMessageVisibility\n", ""),
    ],
    "test_permissions.Permissions.test_the_page_gives_the_relay_on_a_cluster_the_same": [
        ("infra/aws/relay.yaml", "s3:PutObject", "s3:PutObjectTagging"),
    ],
    "test_permissions.Permissions.test_an_acl_is_permitted_where_pictures_get_one": [
        ("infra/aws/permissions.yaml", "!If [HasAcl, s3:PutObjectAcl, !Ref AWS::NoValue]", "s3:PutObjectAcl"),
    ],
    "test_permissions.Permissions.test_tags_are_permitted_where_pictures_get_some": [
        ("infra/aws/permissions.yaml", "!If [Tags, s3:PutObjectTagging, !Ref AWS::NoValue]", "!Ref AWS::NoValue"),
    ],
    "test_permissions.Permissions.test_pictures_to_begin_from_may_be_read_where_a_bucket_is_named_and_only_there": [
        (
            "infra/aws/permissions.yaml",
            '!If [Begins, !Sub "arn:${AWS::Partition}:s3:::${ImageBucket}/*", !Ref AWS::NoValue]',
            "!Ref AWS::NoValue",
        ),
    ],
    "test_queue.Queue.test_kept_loras_and_those_on_their_way_fit_into_what_the_function_has": [
        ("infra/aws/function.yaml", "EphemeralStorage: {Size: 10240}", "EphemeralStorage: {Size: 8192}"),
        ("infra/aws/function.yaml", '"5368709120"', '"6442450944"'),
        ("infra/aws/function.yaml", '"3221225472"', '"4294967296"'),
    ],
    "test_relay.Relay.test_the_alarm_reads_what_the_relay_says_when_it_stops": [
        ("infra/aws/observability.yaml", '$.message = "relay stopped"', '$.fields.message = "relay stopped"'),
        ("infra/aws/observability.yaml", '"relay stopped"', '"the relay stopped"'),
    ],
    "test_network.Groups.test_what_others_let_in_the_callers_group_lets_out": [
        ("infra/aws/network.yaml", "FromPort: 5671, ToPort: 5672", "FromPort: 5672, ToPort: 5672"),
        ("infra/aws/network.yaml", "FromPort: 2049, ToPort: 2049", "FromPort: 2048, ToPort: 2048"),
        ("infra/aws/network.yaml", "FromPort: 443, ToPort: 443", "FromPort: 80, ToPort: 80"),
    ],
    "test_queue.Queue.test_a_task_outlives_a_few_invocations_that_find_no_room": [
        ("template.yaml", "MaxReceiveCount: {Type: Number, Default: 5", "MaxReceiveCount: {Type: Number, Default: 3"),
    ],
    "test_queue.Queue.test_a_change_of_its_type_loses_nothing_that_lies_in_a_queue": [
        ("infra/aws/queue.yaml", "UpdateReplacePolicy: Retain", "UpdateReplacePolicy: Delete"),
    ],
    "test_pictures.Pictures.test_by_policy_everybody_reads_pictures_and_acls_are_locked": [
        ("infra/aws/storage.yaml", "BlockPublicAcls: !If [ByAcl, false, true]", "BlockPublicAcls: false"),
        ("infra/aws/storage.yaml", "${Pictures.Arn}/generations/*", "${Pictures.Arn}/*"),
    ],
    "test_pictures.Pictures.test_by_cloudfront_its_one_distribution_reads_pictures_and_all_is_locked": [
        ("infra/aws/storage.yaml", "distribution/${Distribution}", "distribution/*"),
        ("infra/aws/storage.yaml", "BlockPublicPolicy: !If [ByPolicy, false, true]", "BlockPublicPolicy: false"),
        ("infra/aws/storage.yaml", "            OriginAccessControlId: !GetAtt OriginAccess.Id\n", ""),
    ],
    "test_pictures.Pictures.test_by_acl_the_policy_opens_nothing": [
        ("infra/aws/storage.yaml", "RestrictPublicBuckets: !If [ByPolicy, false, true]", "RestrictPublicBuckets: 0"),
    ],
    "test_pictures.Pictures.test_a_result_url_leads_to_where_pictures_are_read": [
        ("infra/aws/storage.yaml", "!If [ByAcl, public-read, none]", "none"),
        ("infra/aws/storage.yaml", "https://${Distribution.DomainName}", "https://${Pictures.RegionalDomainName}"),
    ],
    "test_broker.Broker.test_it_is_not_public_and_lets_in_the_relay_and_the_backend_only": [
        ("infra/aws/broker.yaml", "PubliclyAccessible: false", "PubliclyAccessible: true"),
        ("infra/aws/broker.yaml", "ToPort: 5671", "ToPort: 15671"),
        ("infra/aws/broker.yaml", "SourceSecurityGroupId: !Ref Callers", "CidrIp: 0.0.0.0/0"),
    ],
    "test_broker.Broker.test_its_password_is_made_there_and_read_where_it_is_needed": [
        ("infra/aws/broker.yaml", "Username: easel", "Username: relay"),
    ],
    "test_broker.Broker.test_one_broker_has_one_subnet_and_three_have_all": [
        ("infra/aws/broker.yaml", "!If [Single, [!Select [0, !Ref SubnetIds]], !Ref SubnetIds]", "!Ref SubnetIds"),
        ("infra/aws/broker.yaml", "!Ref SubnetIds]\n      Users", "[!Select [1, !Ref SubnetIds]]]\n      Users"),
    ],
    "test_function.Scaling.test_an_account_that_may_have_one_instance_can_say_so": [
        ("template.yaml", "Default: 16, MinValue: 2, MaxValue: 15000", "Default: 16, MinValue: 12, MaxValue: 15000"),
    ],
    "test_network.Zones.test_instances_have_a_subnet_in_each_of_three_zones_and_a_way_out_of_it": [
        ("infra/aws/network.yaml", "!Ref PrivateTwo, !Ref PrivateThree]", "!Ref PrivateTwo]"),
        ("infra/aws/network.yaml", "AvailabilityZone: !Select [2,", "AvailabilityZone: !Select [1,"),
        ("infra/aws/network.yaml", "{SubnetId: !Ref PublicThree, RouteTableId: !Ref PublicRoutes}",
            "{SubnetId: !Ref PublicThree, RouteTableId: !Ref PrivateRoutes}"),
        ("infra/aws/network.yaml", "[!If [Open, !Ref PublicRoutes, !Ref PrivateRoutes]]", "[!Ref PublicRoutes]"),
    ],
    "test_network.Zones.test_no_two_subnets_have_the_same_addresses": [
        ("infra/aws/network.yaml", "10.42.10.0/24", "10.42.9.0/24"),
        ("infra/aws/network.yaml", "10.42.12.0/22", "10.42.16.0/22"),
    ],
    "test_network.Zones.test_addresses_are_public_where_there_is_no_nat_gateway_and_only_there": [
        ("infra/aws/network.yaml", "MapPublicIpOnLaunch: !If [Open, true, false]", "MapPublicIpOnLaunch: true"),
        ("infra/aws/network.yaml", "  Nat:\n    Type: AWS::EC2::NatGateway\n    Condition: NewNat",
            "  Nat:\n    Type: AWS::EC2::NatGateway\n    Condition: New"),
        ("infra/aws/network.yaml", "!If [Open, ENABLED, DISABLED]", "DISABLED"),
        ("template.yaml", "AssignPublicIp: !GetAtt Network.Outputs.AssignPublicIp, Tasks:", "Tasks:"),
    ],
    "test_network.Zones.test_an_existing_network_gets_a_security_group_and_keeps_its_subnets": [
        ("infra/aws/network.yaml", "NewOpen: !And [!Condition New, !Condition Open]", "NewOpen: !Condition Open"),
    ],
    "test_volume.Volume.test_it_can_be_mounted_in_each_zone_of_two_or_three": [
        ("infra/aws/volume.yaml", "    Condition: Three\n", ""),
        ("infra/aws/volume.yaml", "SubnetId: !Select [2,", "SubnetId: !Select [1,"),
    ],
    "test_relay.Relay.test_there_are_as_many_as_are_asked_for_and_one_with_a_fifo_queue": [
        ("infra/aws/relay.yaml", "!If [Ordered, 1, !Ref Tasks]", "!If [Ordered, 1, 2]"),
        ("infra/aws/relay.yaml", "!If [Ordered, 1, !Ref Tasks]", "!Ref Tasks"),
    ],
    "test_relay.Relay.test_without_a_relay_nothing_of_it_is_made_nor_watched_and_no_broker": [
        ("template.yaml", "NewBroker: !And [!Condition Relays, !Equals [!Ref AmqpUrlSecretArn, \"\"]]",
            "NewBroker: !Equals [!Ref AmqpUrlSecretArn, \"\"]"),
        ("template.yaml", "    Condition: Relays\n", ""),
        ("infra/aws/observability.yaml", "  RelayGone:\n    Type: AWS::CloudWatch::Alarm\n    Condition: Relays\n",
            "  RelayGone:\n    Type: AWS::CloudWatch::Alarm\n"),
        ("infra/aws/observability.yaml", "            - \" \"\n", "            - \",\"\n"),
    ],
    "test_relay.Relay.test_a_relay_without_an_image_is_refused_by_name": [
        ("template.yaml", "!Not [!Equals [!Ref RelayTasks, \"0\"]]", "!Equals [!Ref RelayTasks, \"0\"]"),
        ("template.yaml", "RelayImageUri is empty: give", "It is empty: give"),
    ],
    "test_idle_cost.IdleCost.test_each_stack_has_what_the_templates_make_with_its_parameters": [
        ("infra/aws/idle_cost.py", "nats=1, addresses=1, relays=2, brokers=1, secrets=3", "nats=1, addresses=1, relays=2, brokers=1, secrets=2"),
        ("infra/aws/network.yaml", "  NatAddress:\n    Type: AWS::EC2::EIP\n    Condition: NewNat",
            "  NatAddress:\n    Type: AWS::EC2::EIP\n    Condition: New"),
        ("template.yaml", "RelayTasks: {Type: Number, Default: 2", "RelayTasks: {Type: Number, Default: 3"),
    ],
    "test_idle_cost.IdleCost.test_nothing_that_is_paid_by_the_hour_is_left_out": [
        ("infra/aws/network.yaml", "    Type: AWS::EC2::VPCEndpoint\n    Condition: New\n    Properties:\n",
            "    Type: AWS::EC2::VPCEndpoint\n    Condition: New\n    Properties:\n      VpcEndpointType: Interface\n"),
    ],
    "test_idle_cost.IdleCost.test_a_relay_task_and_the_broker_are_those_of_the_templates": [
        ("infra/aws/relay.yaml", 'Cpu: "256"', 'Cpu: "512"'),
        ("infra/aws/broker.yaml", "Default: mq.m7g.medium", "Default: mq.m7g.large"),
    ],
    "test_idle_cost.IdleCost.test_the_page_has_the_table": [
        ("infra/aws/idle_cost.py", '"nat": (0.045,', '"nat": (0.05,'),
        ("infra/aws/idle_cost.py", "HOURS = 730", "HOURS = 720"),
    ],
    "test_idle_cost.IdleCost.test_a_price_that_is_none_is_refused_with_option_value_and_limit": [
        ("infra/aws/idle_cost.py", "if not 0 <= value < float(\"inf\"):", "if value < 0:"),
    ],
    "test_receiver.Receiver.test_it_takes_a_webhook_and_writes_down_what_it_says_but_not_the_token": [
        ("infra/aws/receiver.yaml", 'event.get("body", ""))', 'event.get("body", ""), event["headers"])'),
        ("infra/aws/receiver.yaml", '{"statusCode": 204}', '{"statusCode": 302}'),
    ],
    "test_receiver.Receiver.test_its_address_is_called_from_the_internet_and_it_may_do_nothing_but_log": [
        ("infra/aws/receiver.yaml", "      InvokedViaFunctionUrl: true\n", "      InvokedViaFunctionUrl: false\n"),
    ],
    "test_walk.Walk.test_each_deployment_gives_what_must_be_given_within_its_limits": [
        ("template.yaml", "  PictureDays: {Type: Number, Default: 0, MinValue: 0,", "  PictureDays: {Type: Number, MinValue: 0,"),
        ("template.yaml", "AllowedValues: [nat, public]", "AllowedValues: [nat, open]"),
    ],
    "test_walk.Walk.test_it_fits_a_quota_of_one_instance": [
        ("template.yaml", "TasksPerEnvironment: {Type: Number, Default: 4", "TasksPerEnvironment: {Type: Number, Default: 2"),
    ],
    "test_walk.Walk.test_every_output_that_it_asks_for_is_one": [
        ("template.yaml", "  PicturesUrl:", "  PictureUrl:"),
    ],
    "test_walk.Walk.test_what_is_made_by_hand_is_removed_by_hand": [
        ("infra/aws/storage.yaml", "  Payloads:\n    Type: AWS::S3::Bucket\n    DeletionPolicy: Retain",
            "  Payloads:\n    Type: AWS::S3::Bucket\n    DeletionPolicy: Delete"),
    ],
    "test_walk.Walk.test_the_steps_figures_are_those_of_the_script": [
        ("infra/aws/idle_cost.py", '"ecr": (0.10,', '"ecr": (0.20,'),
    ],
}
