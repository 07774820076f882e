"""Asking a server of Python functions over the socket, without a client in between."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import msgpack  # pyright: ignore[reportMissingTypeStubs]
import trustformers_serve as ts

JSON = "application/json"
MSGPACK = "application/msgpack"

packb = cast("Callable[[Any], bytes]", msgpack.packb)  # pyright: ignore[reportUnknownMemberType]
unpackb = cast("Callable[[bytes], Any]", msgpack.unpackb)  # pyright: ignore[reportUnknownMemberType]


class Serve(Protocol):
    """Starts a server of what is registered, on a free port; see `trustformers_serve.serve`."""

    def __call__(
        self, settings: Mapping[str, Any] | None = None, *, threads: int = 32, **config: Any
    ) -> ts.Server: ...


@dataclass(frozen=True)
class Answer:
    """A reply; `value` is its body, read as its content type says."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def value(self) -> Any:
        if self.headers["content-type"] == MSGPACK:
            return unpackb(self.body)
        return json.loads(self.body)

    @property
    def error(self) -> tuple[int, str, str]:
        """Status, code and message of an error."""
        error = self.value["error"]
        assert error["request_id"] == self.headers["x-request-id"]
        return self.status, error["code"], error["message"]


def ask(
    server: ts.Server,
    path: str,
    value: Any = None,
    *,
    method: str = "POST",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answer:
    """One request on a connection of its own; `value` is sent as JSON, or as `headers` say."""
    headers = {"content-type": JSON, **(headers or {})}
    if body is None and method == "POST":
        body = packb(value) if headers["content-type"] == MSGPACK else json.dumps(value).encode()
    connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        named = {name.lower(): text for name, text in response.getheaders()}
        return Answer(response.status, named, response.read())
    finally:
        connection.close()


def predict(server: ts.Server, model: str, value: Any, **options: Any) -> Answer:
    """Asks `/models/{model}/predict`."""
    return ask(server, f"/models/{model}/predict", value, **options)


def get(server: ts.Server, path: str) -> Answer:
    """Asks a route without a body."""
    return ask(server, path, method="GET")


def refuses(server: ts.Server) -> bool:
    """Whether it accepts nothing any more: it stops, or has stopped."""
    try:
        get(server, "/health")
    except OSError:
        return True
    return False


def metric(server: ts.Server, name: str, model: str, outcome: str | None = None) -> int:
    """What a metric says of a model, of all its versions."""
    lines = get(server, "/metrics").body.decode().splitlines()
    labels = f'model="{model}"' + (f',outcome="{outcome}"' if outcome else "")
    values = [line for line in lines if line.startswith(f"trustformers_{name}{{{labels}")]
    return sum(int(line.rpartition(" ")[2]) for line in values)


async def ask_at_once(server: ts.Server, path: str, values: Sequence[Any]) -> list[Any]:
    """The bodies of the replies to all values, each on a connection of its own, sent together."""
    begin = asyncio.Event()
    opened = [await asyncio.open_connection(server.host, server.port) for _ in values]

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, value: Any) -> Any:
        await begin.wait()
        writer.write(request(path, value))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        body = await reader.readexactly(length)
        writer.close()
        return json.loads(body)

    tasks = [
        asyncio.create_task(one(*connection, value)) for connection, value in zip(opened, values, strict=True)
    ]
    begin.set()
    return await asyncio.gather(*tasks)


def request(path: str, value: Any) -> bytes:
    """A request with a JSON body."""
    body = json.dumps(value).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: t\r\ncontent-type: {JSON}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def leave_early(server: ts.Server, path: str, value: Any) -> socket.socket:
    """Sends a request and returns its connection, for the caller to close before the reply."""
    connection = socket.create_connection((server.host, server.port), timeout=60)
    connection.sendall(request(path, value))
    return connection


def events(body: bytes) -> list[Any]:
    """The data of server-sent events; the last word as it is."""
    lines = [line for line in body.decode().split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    texts = [line.removeprefix("data: ") for line in lines]
    return [text if text == "[DONE]" else json.loads(text) for text in texts]
