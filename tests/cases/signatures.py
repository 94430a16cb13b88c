"""Checks webhooks with the library of standardwebhooks.com.

Usage: signatures.py FILE; it holds a JSON array of {"secret", "headers", "body"}. Prints one line for each: right or wrong.
"""

import json
import sys

from standardwebhooks.webhooks import Webhook, WebhookVerificationError


def verdict(webhook):
    try:
        Webhook(webhook["secret"]).verify(webhook["body"], webhook["headers"])
    except WebhookVerificationError:
        return "wrong"
    return "right"


with open(sys.argv[1], encoding="utf-8") as file:
    for webhook in json.load(file):
        print(verdict(webhook))
