"""A Hub of one repository on this machine: enough of its interface to read files and to take a commit."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubHandler(BaseHTTPRequestHandler):
    """Answers for `someone/head`, from the server's folder, as the server's `mode` says."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        """Answer without the body."""
        self.do_GET()

    def do_GET(self) -> None:
        """Give a file, or say why not."""
        self.server.asked.append((self.path, self.headers.get("authorization")))
        mode, name = self.server.mode, self.path.split("/")[-1]
        if mode == "401" or (mode == "private" and self.headers.get("authorization") != "Bearer secret"):
            return self._answer(401, b"{}", {"X-Error-Message": "Invalid username or password."})
        if mode == "gated":
            return self._answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if mode == "404" or not self.path.startswith("/someone/head/resolve/"):
            return self._answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if self.path.split("/")[4] not in ("main", "v1"):
            return self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        file = Path(self.server.folder) / name
        if not file.is_file():
            return self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
        body = file.read_bytes()
        more = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}
        self._answer(200, body, more, cut=mode == "truncated" and name.endswith(".safetensors"))

    def do_POST(self) -> None:
        """Make a repository, say how files are sent, take a commit."""
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append((self.path, self.headers.get("authorization")))
        if self.headers.get("authorization") != "Bearer secret":
            return self._answer(401, b'{"error": "who are you"}', {})
        if self.path == "/api/repos/create":
            answer = {"url": f"http://{self.headers['host']}/someone/head", **json.loads(body)}
        elif "/preupload/" in self.path:
            files = [{"path": each["path"], "uploadMode": "regular"} for each in json.loads(body)["files"]]
            answer = {"files": [{**each, "shouldIgnore": False} for each in files]}
        elif "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.pushed[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            answer = {
                "commitOid": COMMIT,
                "commitUrl": f"http://{self.headers['host']}/someone/head/commit/{COMMIT}",
                "success": True,
            }
        else:
            answer = {}
        self._answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str], cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True


@contextmanager
def hub(folder: Path) -> Iterator[ThreadingHTTPServer]:
    """Serve a folder as `someone/head`; set `mode` to have it fail, read `asked` and `pushed`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), HubHandler)
    server.folder, server.mode, server.asked, server.pushed = folder, "", [], {}
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
