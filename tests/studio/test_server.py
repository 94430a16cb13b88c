"""Who is let in by the studio page's server, and what every answer says to the browser."""

import http.client
import unittest

from stack import LIMIT, stack
from studio import SKETCH

PNG = SKETCH.read_bytes()


class Server(unittest.TestCase):
    def ask(self, method="GET", path="/", body=None, **headers):
        """The status of an answer, and its headers. Headers of None are not sent."""
        host = stack().address.removeprefix("http://")
        sent = {"Host": host, **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection = http.client.HTTPConnection(host, timeout=LIMIT)
        connection.putrequest(method, path, skip_host=True)
        for name, value in {**sent, "Content-Length": str(len(body or b""))}.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status, answer.headers

    def post(self, path, body, **headers):
        own = {"Origin": stack().address, "Content_Type": "application/json"}
        return self.ask("POST", path, body, **{**own, **headers})[0]

    def send(self, sketch, **headers):
        return self.post("/api/sketches", sketch, **{"Content_Type": "application/octet-stream", **headers})

    def test_other_names_and_other_pages_are_refused(self):
        self.assertEqual(self.ask()[0], 200)
        for headers in ({"Host": "evil.example"}, {"Host": None}, {"Origin": "http://evil.example"}):
            with self.subTest(headers):
                self.assertIn(self.ask(**headers)[0], (400, 403))
        nothing = b'{"orders": []}'
        self.assertEqual(self.post("/api/tasks", nothing), 200)
        for origin in (None, "null", "http://evil.example", "http://localhost"):
            with self.subTest(origin=origin):
                self.assertEqual(self.post("/api/tasks", nothing, Origin=origin), 403)
                self.assertEqual(self.post("/api/faults", b'{"fault": "kill-function"}', Origin=origin), 403)
                self.assertEqual(self.post("/api/cancel", b'{"id": 500}', Origin=origin), 403)
                self.assertEqual(self.send(PNG, Origin=origin), 403)
        self.assertEqual(self.send(PNG), 200)

    def test_what_a_form_of_another_page_could_send_is_no_request(self):
        self.assertEqual(self.post("/api/tasks", b'{"orders": []}', Content_Type="text/plain"), 415)
        for kind in ("text/plain", "multipart/form-data; boundary=x", "image/png", None):
            self.assertEqual(self.send(PNG, Content_Type=kind), 415)

    def test_only_a_task_of_this_run_is_cancelled(self):
        # 499 is of an earlier run.
        for number in (499, 1, -1, 1 << 40):
            self.assertEqual(self.post("/api/cancel", b'{"id": %d}' % number), 404)
        self.assertEqual(self.post("/api/cancel", b'{"id": "500"}'), 422)

    def test_too_much_is_refused(self):
        self.assertEqual(self.post("/api/tasks", b'{"orders": ["' + b"x" * 70_000 + b'"]}'), 413)
        self.assertEqual(self.post("/api/tasks", b'{"orders": [' + b",".join([b"{}"] * 17) + b"]}"), 400)
        self.assertEqual(self.send(b"x" * ((20 << 20) + 1)), 413)

    def test_what_is_no_sketch_is_not_kept(self):
        for content in (b"", b"x" * 100_000, PNG[:-20]):
            self.assertEqual(self.send(content), 422)

    def test_no_path_leads_out_of_the_page_and_the_gallery(self):
        for path in (
            *("/..%2fstudio.py", "/..%2f..%2f..%2fCargo.toml", "/style.css%00.html", "/nothing.html", "/INDEX.html"),
            *("/pictures/..%2fauthority%2fsigner.key", "/pictures/gen_500.json", "/previews/499/0", "/api/pictures/..%2fgen_500.jpg"),
            *("/sketches/..%2fgen_499.jpg", "/sketches/gen_499.jpg", f"/sketches/{'0' * 32}.png", "/sketches/"),
        ):
            with self.subTest(path):
                self.assertEqual(self.ask(path=path)[0], 404)

    def test_every_answer_forbids_what_the_page_does_not_need(self):
        for path in ("/", "/main.js", "/nothing"):
            headers = self.ask(path=path)[1]
            self.assertIn("default-src 'self'", headers["Content-Security-Policy"])
            self.assertNotIn("unsafe", headers["Content-Security-Policy"])
            self.assertEqual(headers["X-Content-Type-Options"], "nosniff")
            self.assertEqual(headers["Cross-Origin-Resource-Policy"], "same-origin")


if __name__ == "__main__":
    unittest.main()
