import json
import os
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pika

ended = threading.Event()


class Webhooks(BaseHTTPRequestHandler):
    def take(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        known = self.headers["Authorization"] == f"Bearer {os.environ['INTERNAL_API_TOKEN']}"
        self.send_response(204 if known else 401)
        self.end_headers()
        if known:
            event, kind = json.loads(body), self.path.rsplit("/", 1)[1]  # progress, complete or failed
            print(kind, event.get("progress") or event.get("result_url") or event["error_message"], flush=True)
            if kind == "complete":
                urllib.request.urlretrieve(event["result_url"], f"gen_{event['generation_id']}.jpg")
            if kind != "progress":
                ended.set()

    do_PATCH = do_POST = take

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Webhooks)
threading.Thread(target=server.serve_forever, daemon=True).start()
task = {
    "generation_id": 501,
    "style_id": 12,
    "lora_model_url": os.environ["LORA_URL"],
    "prompt_tags": ["mountains", "snow", "lake"],
    "artist_name": "Ada Kowalska",
    "webhook_url": f"http://127.0.0.1:{server.server_port}",
    "num_inference_steps": 20,
}
channel = pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"])).channel()
channel.confirm_delivery()  # publishing raises an error if RabbitMQ does not take it
lasting = pika.BasicProperties(message_id="generation-501", content_type="application/json", delivery_mode=2)
channel.basic_publish("", "image_generation", json.dumps(task), lasting, mandatory=True)
ended.wait()
