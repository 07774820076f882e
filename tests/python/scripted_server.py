"""A peer that misbehaves as told: what no real server would do on request."""

from __future__ import annotations

import contextlib
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


@dataclass(frozen=True)
class Streamed:
    """A reply of server-sent events: the data of each, sent on its own, and what happens then."""

    events: list[str]
    then: str = "end of the body"
    headers: dict[str, str] = field(default_factory=dict[str, str])


CLOSE = "close after reading the request"
SILENCE = "read the request and say nothing"
Step = Answer | Streamed | str


class ScriptedServer:
    """Plays one step for each request, over one connection each, and notes when they came."""

    def __init__(self, *steps: Step) -> None:
        self._steps = steps
        self._done = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self.requests: list[bytes] = []
        self.times: list[float] = []
        self.left = False  # whether the client closed a stream that had gone silent
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
                elif isinstance(step, Streamed):
                    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                        self._stream(connection, step)
                elif step == SILENCE:
                    self._done.wait(30)

    def _stream(self, connection: socket.socket, step: Streamed) -> None:
        headers = {"content-type": "text/event-stream", "transfer-encoding": "chunked", **step.headers}
        lines = ["HTTP/1.1 200 OK", *(f"{name}: {value}" for name, value in headers.items())]
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
        for event in step.events:
            data = f"data: {event}\n\n".encode()
            connection.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        if step.then == SILENCE:
            # The other side's end of the connection ends it too.
            connection.settimeout(30)
            self.left = connection.recv(1) == b""
        elif step.then != CLOSE:
            connection.sendall(b"0\r\n\r\n")


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
