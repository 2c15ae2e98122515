"""What stand-ins for the Hugging Face hub share: how they answer huggingface_hub."""

from http.server import BaseHTTPRequestHandler

COMMIT = "c" * 40


class HubHandler(BaseHTTPRequestHandler):
    """A subclass defines `answer`."""

    def do_HEAD(self):
        self.answer(head=True)

    def do_GET(self):
        self.answer()

    def send(self, body, head, kind="application/octet-stream", error=""):
        """Send a body, or its headers alone; with an `error`, status 404."""
        self.send_response(404 if error else 200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{abs(hash(body))}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if not head:
            self.wfile.write(body)

    def log_message(self, *_):
        pass
