"""A stand-in for the Hugging Face hub on loopback: the part that a push needs, and a log of its requests.

Large files use the LFS protocol (HF_HUB_DISABLE_XET=1), because Xet needs a storage server too.
"""

import base64
import contextlib
import hashlib
import json
import logging
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_standInTokenThatMustStaySecret"
LOG = logging.getLogger(__name__)  # pytest shows it with a failed test
LARGE = ".safetensors"  # as in the .gitattributes of the hub


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    @property
    def head(self) -> str:
        return f"{self.commits:040x}"


@dataclass
class Hub:
    """requests: method and path of each request. failures: part of a path to the status that such requests get."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # large files, by their SHA-256
    requests: list[str] = field(default_factory=list)
    uploads: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    address: str = ""

    def respond(self, method: str, path: str, headers, body: bytes) -> tuple[int, object, dict]:
        """Status, content (JSON or bytes) and further headers."""
        self.requests.append(f"{method} {path}")
        for part, status in self.failures.items():
            if part in path:
                return status, {"error": f"failed on purpose at {part}"}, {}
        if headers.get("authorization") != f"Bearer {TOKEN}" and not path.startswith("/lfs/"):
            message = "Invalid credentials in Authorization header"
            return 401, {"error": message}, {"X-Error-Message": message}
        for pattern, handler in self.ROUTES.items():
            if match := re.fullmatch(pattern, path):
                return handler(self, body, *match.groups())
        return 404, {"error": f"the stand-in has no {method} {path}"}, {}

    def create(self, body: bytes) -> tuple:
        request = json.loads(body)
        name = f"{request['organization']}/{request['name']}"
        if request["organization"] != "me":
            return 403, {"error": "You don't have the rights to create a model under this namespace"}, {}
        if name in self.repositories:
            return 409, {"error": "You already created this model repo", "url": f"{self.address}/{name}"}, {}
        self.repositories[name] = Repository(request["visibility"] == "private")
        return 200, {"url": f"{self.address}/{name}"}, {}

    def info(self, body: bytes, name: str) -> tuple:
        if not (repository := self.repositories.get(name)):
            return 404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"}
        return 200, {"id": name, "private": repository.private, "sha": repository.head}, {}

    def tree(self, body: bytes, name: str) -> tuple:
        entries = [{"type": "directory", "path": "checkpoint-0", "oid": "0" * 40}]
        for path, content in self.repositories[name].files.items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
            if path.endswith(LARGE):
                entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        return 200, entries, {}

    def validate(self, body: bytes) -> tuple:
        assert json.loads(body)["content"].startswith("---\nbase_model: ")
        return 200, {"warnings": [], "errors": []}, {}

    def modes(self, body: bytes, name: str) -> tuple:
        rows = [
            {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular", "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        return 200, {"files": rows}, {}

    def lfs(self, body: bytes, name: str) -> tuple:
        objects = json.loads(body)["objects"]
        for row in objects:
            if row["oid"] not in self.stored:
                row["actions"] = {"upload": {"href": f"{self.address}/lfs/{row['oid']}"}}
        return 200, {"objects": objects}, {}

    def store(self, body: bytes, oid: str) -> tuple:
        assert sha256(body) == oid
        self.stored[oid], self.uploads = body, self.uploads + 1
        return 200, {}, {}

    def commit(self, body: bytes, name: str) -> tuple:
        repository = self.repositories[name]
        header, *operations = map(json.loads, body.splitlines())
        if header["value"]["parentCommit"] != repository.head:
            return 412, {"error": "A commit has happened since. Please refresh and try again."}, {}
        for operation in operations:
            value = operation["value"]
            small = operation["key"] == "file"
            repository.files[value["path"]] = base64.b64decode(value["content"]) if small else self.stored[value["oid"]]
        repository.commits += 1
        return 200, {"commitUrl": f"{self.address}/{name}/commit/{repository.head}", "commitOid": repository.head}, {}

    def resolve(self, body: bytes, name: str, path: str) -> tuple:
        if name not in self.repositories:
            return self.info(body, name)
        content = self.repositories[name].files[path]
        return 200, content, {"ETag": f'"{git_hash(content)}"', "X-Repo-Commit": self.repositories[name].head}

    ROUTES = {
        "/api/repos/create": create,
        "/api/models/([^/]+/[^/]+)": info,
        r"/api/models/([^/]+/[^/]+)/tree/main\?.*": tree,
        "/api/validate-yaml": validate,
        "/api/models/([^/]+/[^/]+)/preupload/main": modes,
        r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": lfs,
        "/lfs/(.*)": store,
        "/api/models/([^/]+/[^/]+)/commit/main": commit,
        "/([^/]+/[^/]+)/resolve/[^/]+/(.*)": resolve,
        "/(?:api/)?datasets/([^/]+/[^/]+)(?:/.*)?": info,  # it has no datasets
    }


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def running(hub: Hub) -> Iterator[str]:
    """Serve from threads of this process. Yields the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            status, content, headers = hub.respond(self.command, self.path, self.headers, self.body())
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        do_GET = do_HEAD = do_POST = do_PUT = handle_any

        def body(self) -> bytes:
            if self.headers.get("transfer-encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("content-length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, message: str, *values: object) -> None:
            LOG.debug(message, *values)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.address = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub.address
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
