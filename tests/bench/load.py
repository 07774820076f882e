"""A load generator: `load.py PLAN.json` sends what the plan says and prints one JSON object.

In an open loop requests leave when they are due, however many are still unanswered: a closed loop slows
down with the server and hides overload, this does not. Each request takes a connection that is idle, or
a new one, and its latency counts from the moment it was due. In a closed loop each user sends the next
request when the last is answered.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Kind:
    """Requests that are alike: what is sent, and how they are called in the results."""

    name: str
    headers: dict[str, str]
    bodies: list[str]  # files, taken in turns


@dataclass(frozen=True)
class Plan:
    """Which request leaves when."""

    url: str
    kinds: list[Kind]
    due: list[tuple[float, int]]  # open loop: seconds from the start, index of the kind
    users: int  # closed loop: how many send requests of the first kind
    seconds: float  # closed loop: for how long
    timeout: float  # seconds after which a request is given up


@dataclass
class Answers:
    """What became of the requests of a kind, in the order they were due."""

    status: list[int]  # 0: given up, or the connection broke
    seconds: list[float]
    due: list[float]


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection with one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._received = b""
        self._missing = -1
        self._status = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.transport = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(0)

    def send(self, head: bytes, body: bytes) -> asyncio.Future[int]:
        assert self.transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._received, self._missing = b"", -1
        self.transport.writelines([head, body])
        return self._answer

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._received += data
            head, end, rest = self._received.partition(b"\r\n\r\n")
            if not end:
                return
            self._status = int(head[9:12])
            self._missing = _content_length(head) - len(rest)
        else:
            self._missing -= len(data)
        if self._missing <= 0 and self._answer is not None and not self._answer.done():
            self._answer.set_result(self._status)


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


class Generator:
    """Sends a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        parts = urlsplit(plan.url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._bodies = [[Path(body).read_bytes() for body in kind.bodies] for kind in plan.kinds]
        self._heads = [
            [_head(parts.path, f"{self._host}:{self._port}", kind.headers, len(body)) for body in bodies]
            for kind, bodies in zip(plan.kinds, self._bodies, strict=True)
        ]
        self._idle: list[Connection] = []
        self.answers = [Answers([], [], []) for _ in plan.kinds]

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time() + 0.2
        tasks = [
            asyncio.create_task(self._user(number, start + self._plan.seconds))
            for number in range(self._plan.users)
        ]
        for number, (at, kind) in enumerate(self._plan.due):
            if (wait := start + at - loop.time()) > 0:
                await asyncio.sleep(wait)
            tasks.append(asyncio.create_task(self._request(number, kind, start + at)))
        await asyncio.gather(*tasks)
        for connection in self._idle:
            if connection.transport is not None:
                connection.transport.close()

    async def _user(self, number: int, end: float) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < end:
            await self._request(number, 0, loop.time())
            number += self._plan.users

    async def _request(self, number: int, kind: int, due: float) -> None:
        loop = asyncio.get_running_loop()
        bodies = self._bodies[kind]
        which = number % len(bodies)
        exchange = self._exchange(self._heads[kind][which], bodies[which])
        try:
            status = await asyncio.wait_for(exchange, due + self._plan.timeout - loop.time())
        except (asyncio.TimeoutError, OSError):
            status = 0
        answers = self.answers[kind]
        answers.status.append(status)
        answers.seconds.append(loop.time() - due)
        answers.due.append(due)

    async def _exchange(self, head: bytes, body: bytes) -> int:
        connection = await self._connection()
        try:
            status = await connection.send(head, body)
        except asyncio.CancelledError:
            if connection.transport is not None:
                connection.transport.abort()
            raise
        if connection.transport is not None:
            self._idle.append(connection)
        return status

    async def _connection(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.transport is not None and not connection.transport.is_closing():
                return connection
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Connection, self._host, self._port))[1]


def _head(path: str, host: str, headers: dict[str, str], length: int) -> bytes:
    lines = [f"POST {path} HTTP/1.1", f"Host: {host}", f"Content-Length: {length}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _read(plan: dict[str, Any]) -> Plan:
    due: Sequence[Sequence[float]] = plan["due"]
    return Plan(
        url=plan["url"],
        kinds=[Kind(**kind) for kind in plan["kinds"]],
        due=[(float(at), int(kind)) for at, kind in due],
        users=plan["users"],
        seconds=plan["seconds"],
        timeout=plan["timeout"],
    )


def main() -> None:
    plan = _read(json.loads(Path(sys.argv[1]).read_text()))
    generator = Generator(plan)
    asyncio.run(generator.run())
    usage = resource.getrusage(resource.RUSAGE_SELF)
    json.dump(
        {
            "answers": {
                kind.name: asdict(answers)
                for kind, answers in zip(plan.kinds, generator.answers, strict=True)
            },
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
        },
        sys.stdout,
    )


if __name__ == "__main__":
    main()
