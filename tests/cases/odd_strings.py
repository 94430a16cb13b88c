"""Publishes messages whose AMQP strings are not UTF-8, and a good one after each; every one is confirmed.

Usage: odd_strings.py AMQP_URL QUEUE
"""

import sys

import pika

ODD = b"\xff\xfe"


class OddKey(str):
    """A routing key: pika asks for text there."""

    def encode(self, *_):
        return ODD


def main():
    url, queue = sys.argv[1:]
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.confirm_delivery()
    channel.queue_bind(queue, "amq.fanout")

    def publish(body, exchange="", key=queue, **properties):
        properties = pika.BasicProperties(delivery_mode=2, **properties)
        channel.basic_publish(exchange, key, body, properties, mandatory=True)

    for number, odd in enumerate(
        [
            {"message_id": ODD},
            {"correlation_id": b"a\x80b"},
            {"headers": {ODD: "value"}},
            {"headers": {"outer": {"list": [{ODD: 1}]}}},
            {"headers": {b"%03d\xff" % number: number for number in range(200)}},
            {"exchange": "amq.fanout", "key": OddKey()},
        ]
    ):
        publish(b'{"odd":%d}' % number, **odd)
        publish(b'{"good":%d}' % number, message_id="good-%d" % number)
    connection.close()


main()
