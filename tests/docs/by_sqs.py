import json
import os

import boto3

task = {
    "generation_id": 502,
    "style_id": 12,
    "lora_model_url": os.environ["LORA_URL"],
    "prompt_tags": ["lighthouse", "night"],
    "artist_name": "Ada Kowalska",
    "webhook_url": os.environ["WEBHOOK_URL"],
    "num_inference_steps": 10,
}
boto3.client("sqs").send_message(QueueUrl=os.environ["SQS_QUEUE_URL"], MessageBody=json.dumps(task))
s3, picture = boto3.client("s3"), {"Bucket": "stylelicense-images", "Key": "generations/gen_502.jpg"}
s3.get_waiter("object_exists").wait(**picture, WaiterConfig={"Delay": 1, "MaxAttempts": 300})
print(s3.head_object(**picture)["ContentLength"], "bytes")
