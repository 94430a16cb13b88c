"""The straightforward bridge from RabbitMQ to SQS, to compare the relay with: pika and boto3.

`single`: one send_message and one ack for each message. `batch`: one send_message_batch and one multiple ack for ten.
Settings come from the environment, as the relay's do. It is meant to be fair, not safe: it gives up at any error.
"""

import os
import signal
import sys

import boto3
import pika

LINGER_S = 0.02
BATCH = 10


def main() -> None:
    url = os.environ["SQS_QUEUE_URL"]
    sqs = boto3.client("sqs", endpoint_url=os.environ["AWS_ENDPOINT_URL_SQS"])
    connection = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=int(os.environ["AMQP_PREFETCH"]))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    deliveries = channel.consume(os.environ["AMQP_QUEUE"], inactivity_timeout=LINGER_S)
    (single if sys.argv[1] == "single" else batch)(sqs, url, channel, deliveries)


def attributes(properties) -> dict:
    return {"message_id": {"DataType": "String", "StringValue": properties.message_id}}


def single(sqs, url, channel, deliveries) -> None:
    for method, properties, body in deliveries:
        if method is None:
            continue
        sqs.send_message(QueueUrl=url, MessageBody=body.decode(), MessageAttributes=attributes(properties))
        channel.basic_ack(method.delivery_tag)


def batch(sqs, url, channel, deliveries) -> None:
    entries, last = [], None
    for method, properties, body in deliveries:
        if method is not None:
            last = method.delivery_tag
            entries.append(
                {"Id": str(len(entries)), "MessageBody": body.decode(), "MessageAttributes": attributes(properties)}
            )
        if entries and (method is None or len(entries) == BATCH):
            answer = sqs.send_message_batch(QueueUrl=url, Entries=entries)
            if answer.get("Failed"):
                sys.exit(f"not accepted: {answer['Failed']}")
            channel.basic_ack(last, multiple=True)
            entries = []


main()
