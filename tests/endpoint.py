"""An endpoint on loopback, a judge's or a vLLM server's, which replies what a test tells it to."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from evals import judge_client

KEY = "sk-very-secret-1234567890"


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # many threads ask at once


class Endpoint:
    """An endpoint on loopback that replies what a test tells it to."""

    def __init__(self, reply):
        self.asked, self.keys, self.paths = [], [], []
        self._lock = threading.Lock()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint._lock:
                    endpoint.asked.append(asked)
                    endpoint.keys.append(self.headers["Authorization"])
                    endpoint.paths.append(self.path)
                    said = reply(asked, len(endpoint.asked))
                status, body, headers = said if isinstance(said, tuple) else (200, completion(said), {})
                data = body.encode()
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(data))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = _Server(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}/v1"


def completion(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


@pytest.fixture
def serve(monkeypatch):
    """`with serve(reply, role) as endpoint`: a server that is stopped at the end; the environment names it and a key."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)

    @contextmanager
    def start(reply, role=judge_client.ROLE):
        endpoint = Endpoint(reply)
        thread = threading.Thread(target=endpoint.server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv(role.url, endpoint.url)
        monkeypatch.setenv(role.key, KEY)
        try:
            yield endpoint
        finally:
            endpoint.server.shutdown()
            endpoint.server.server_close()
            thread.join()

    return start
