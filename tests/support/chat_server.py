"""A server of chat completions on this machine, which answers as a test wants it to: late, wrongly or not at all."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]
"""A status and a document, or bytes as they are."""


def completion(text: str, finish: str = "stop", **message: Any) -> Reply:
    """Return what a server says when all is well."""
    said = {"role": "assistant", "content": text, **message}
    return 200, {"choices": [{"index": 0, "message": said, "finish_reason": finish}]}


def echo(body: dict[str, Any], number: int) -> Reply:
    """Answer with the last question."""
    return completion(f"You said: {body['messages'][-1]['content']}")


@dataclass
class Served:
    """A running server.

    Attributes:
        url: where it is.
        reply: what it says to the n-th request, the n-th from 1 on with these messages.
        models: what it lists; a `Reply` of its own where it is one.
        bodies: what it was asked.
        headers: of the requests.
        most: requests that were on the way at once.
    """

    url: str = ""
    reply: Callable[[dict[str, Any], int], Reply | None] = echo
    models: list[dict[str, Any]] | Reply = field(default_factory=lambda: [{"id": "tiny"}])
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most: int = 0
    _busy: int = 0
    _tried: dict[str, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, body: dict[str, Any]) -> Reply | None:
        """Note a request and answer it."""
        key = json.dumps(body["messages"])
        with self._lock:
            self.bodies.append(body)
            self._busy += 1
            self.most = max(self.most, self._busy)
            self._tried[key] = number = self._tried.get(key, 0) + 1
        try:
            return self.reply(body, number)
        finally:
            with self._lock:
                self._busy -= 1

    def listed(self) -> Reply:
        """Return the list of models."""
        return self.models if isinstance(self.models, tuple) else (200, {"object": "list", "data": self.models})


@contextmanager
def chat_server(**how: Any) -> Iterator[Served]:
    """Serve until the block ends, or `stop` is called on what it yields."""
    served = Served(**how)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            served.headers.append(dict(self.headers))
            self.send(served.listed())

        def do_POST(self) -> None:
            assert self.path == "/v1/chat/completions"
            served.headers.append(dict(self.headers))
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.send(served.answer(body))

        def send(self, reply: Reply | None) -> None:
            if reply is None:  # the line goes dead
                self.close_connection = True
                return
            status, said = reply
            data = said if isinstance(said, bytes) else json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            if status == 429:
                self.send_header("Retry-After", "0.05")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *request: Any) -> None:
            pass  # clients go away

    server = Server(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def slowly(seconds: float, reply: Callable[[dict[str, Any], int], Reply | None] = echo) -> Callable[..., Reply | None]:
    """Return the reply that takes some time."""

    def late(body: dict[str, Any], number: int) -> Reply | None:
        time.sleep(seconds)
        return reply(body, number)

    return late
