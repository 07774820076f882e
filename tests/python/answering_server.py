"""A service of the Responses API that answers each request as a test says, to many clients at once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Answer = tuple[int, dict[str, str], Any]
"""Status, headers and what becomes the JSON body."""


def response(text: str, **more: Any) -> Answer:
    """A whole response with this text."""
    content = [{"type": "output_text", "text": text, "annotations": []}]
    message = {
        "type": "message",
        "id": "msg_1",
        "role": "assistant",
        "status": "completed",
        "content": content,
    }
    body = {"id": "resp_1", "object": "response", "status": "completed", "output": [message], **more}
    return 200, {}, body


def echoed(fields: dict[str, Any]) -> Answer:
    """The input in capitals."""
    return response(str(fields["input"]).upper())


class AnsweringServer:
    """Asks `answer` with the fields of each request, and notes what came."""

    def __init__(self, answer: Callable[[dict[str, Any]], Answer] = echoed) -> None:
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        self.connections = 0
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                with outer._lock:
                    outer.connections += 1
                super().setup()

            def do_POST(self) -> None:
                fields = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with outer._lock:
                    outer.requests.append(fields)
                    outer.paths.append(self.path)
                    outer.keys.append(self.headers["authorization"])
                    outer._at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer._at_once)
                status, headers, body = answer(fields)
                data = json.dumps(body).encode()
                with outer._lock:
                    outer._at_once -= 1
                self.send_response(status)
                for name, value in {
                    "content-type": "application/json",
                    "content-length": str(len(data)),
                    **headers,
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_request(self, code: Any = "-", size: Any = "-") -> None:
                """Prints nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                """A client that leaves is none of the test's concern."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> AnsweringServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
