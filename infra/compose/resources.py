"""Creates the queues and buckets of template.yaml in the stand-in for AWS, and uploads LoRAs to try."""

import json
import sys
from pathlib import Path

import boto3

MODELS, PICTURES = "stylelicense-models", "stylelicense-images"
LORAS = Path(sys.argv[1] if len(sys.argv) > 1 else "/loras")

sqs, s3 = boto3.client("sqs"), boto3.client("s3")
dead = sqs.create_queue(QueueName="tasks-dead-letters")["QueueUrl"]
arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
# Three receives are the default of the worker's EASEL_MAX_RECEIVE_COUNT.
redrive = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 3})
url = sqs.create_queue(QueueName="tasks", Attributes={"RedrivePolicy": redrive, "VisibilityTimeout": "300"})["QueueUrl"]
print("queue", url)
for bucket in (MODELS, PICTURES):
    s3.create_bucket(Bucket=bucket)
    print("bucket", bucket)
for path in sorted(LORAS.glob("*.safetensors")):
    s3.upload_file(str(path), MODELS, path.name)
    print("LoRA", f"s3://{MODELS}/{path.name}")
