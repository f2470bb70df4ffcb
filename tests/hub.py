"""A hub on loopback: the endpoints that making a repository, one commit with large files, and looking at it need."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

SECRET = "hf_aVerySecretToken0123456789"


class Hub:
    """Repositories by name: private or not, files, messages of the commits."""

    def __init__(self):
        self.repos, self.blobs, self.asked = {}, {}, []
        self.accepts, self.dies_at, self.spoils = SECRET, None, None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                hub.asked.append((self.command, self.path))
                if hub.dies_at and hub.dies_at in self.path:
                    self.connection.close()
                    return
                if self.headers.get("Authorization") != f"Bearer {hub.accepts}" and "/blob/" not in self.path:
                    self.reply(401, {"error": "Invalid username or password."})
                    return
                self.reply(*hub.reply(self.command, self.path.partition("?")[0], body))

            do_GET = do_POST = do_PUT = do_HEAD = answer

            def reply(self, status, value):
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def reply(self, method, path, body):
        if path == "/api/validate-yaml":  # of a card
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.repos:
                return 409, {"error": "You already created this model repo", "url": f"{self.url}/{name}"}
            self.repos[name] = {"private": asked.get("private", asked.get("visibility") == "private"), "files": {}, "commits": []}
            return 200, {"url": f"{self.url}/{name}", "name": name}
        if "/blob/" in path:
            self.blobs[path.rpartition("/")[2]] = body
            return 200, {}
        name = "/".join(path.removeprefix("/api/models/").lstrip("/").removesuffix(".git/info/lfs/objects/batch").split("/")[:2])
        repo = self.repos[name]
        if path.endswith("/objects/batch"):
            return 200, {"objects": [self.place(one) for one in json.loads(body)["objects"]]}
        rest = path.removeprefix(f"/api/models/{name}")
        if rest.startswith("/preupload"):
            return 200, {"files": [self.mode(one) for one in json.loads(body)["files"]]}
        if rest.startswith("/commit"):
            return 200, self.commit(name, repo, body)
        if rest.startswith("/tree"):
            return 200, [self.entry(*item) for item in repo["files"].items()]
        files = [{"rfilename": name} for name in repo["files"]]
        return 200, {
            "id": name,
            "modelId": name,
            "private": repo["private"],
            "sha": self.sha(repo),
            "siblings": files,
            "tags": [],
        }

    def place(self, one):
        return {**one, "actions": {"upload": {"href": f"{self.url}/blob/{one['oid']}"}}}

    def mode(self, one):
        large = one["path"].endswith((".safetensors", ".parquet"))
        return {"path": one["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}

    def sha(self, repo):
        return hashlib.sha1(json.dumps(repo["commits"]).encode()).hexdigest()

    def commit(self, name, repo, body):
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                repo["commits"].append(value["summary"])
            elif entry["key"] == "file":
                repo["files"][value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                repo["files"][value["path"]] = self.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del repo["files"][value["path"]]
        if self.spoils:
            repo["files"][self.spoils] += b"?"
        return {"commitOid": self.sha(repo), "commitUrl": f"{self.url}/{name}/commit/{self.sha(repo)}"}

    def entry(self, path, data):
        digest = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        more = {"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}
        large = self.mode({"path": path})["uploadMode"] == "lfs"
        return {"type": "file", "path": path, "size": len(data), "oid": digest, **(more if large else {})}


@pytest.fixture
def hub(monkeypatch):
    """A hub that the environment names, with a token that it accepts; large files go by the LFS protocol."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # its storage speaks a protocol of its own
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with running() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", SECRET)
        yield hub


@contextmanager
def running():
    hub = Hub()
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()
