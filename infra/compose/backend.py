"""A backend that accepts every webhook and prints it."""

import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Webhooks(BaseHTTPRequestHandler):
    def take(self):
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(204)
        self.end_headers()
        print(self.path.rsplit("/", 1)[1], json.dumps(event))

    do_PATCH = do_POST = take

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("", int(sys.argv[1])), Webhooks)
print("listening on port", server.server_port)
server.serve_forever()
