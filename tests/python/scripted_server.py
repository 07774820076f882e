"""A peer that misbehaves as told: what no real server would do on request."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType


@dataclass(frozen=True)
class Answer:
    """A whole reply."""

    status: int
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b"{}"


CLOSE = "close after reading the request"
SILENCE = "read the request and say nothing"
Step = Answer | str


class ScriptedServer:
    """Plays one step for each request, over one connection each, and notes when they came."""

    def __init__(self, *steps: Step) -> None:
        self._steps = steps
        self._done = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self.requests: list[bytes] = []
        self.times: list[float] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        # Wakes the accept that may still wait for a request that never came.
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        for step in self._steps:
            connection, _ = self._listener.accept()
            with connection:
                if self._done.is_set():
                    return
                self.requests.append(_read_request(connection))
                self.times.append(time.monotonic())
                if isinstance(step, Answer):
                    connection.sendall(_encode(step))
                elif step == SILENCE:
                    self._done.wait(30)


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def _encode(answer: Answer) -> bytes:
    headers = {
        "content-type": "application/json",
        "content-length": str(len(answer.body)),
        "connection": "close",
        **answer.headers,
    }
    lines = [f"HTTP/1.1 {answer.status} x", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + answer.body
