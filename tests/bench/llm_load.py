"""A load generator for streamed completions: `llm_load.py PLAN.json` sends what the plan says.

In a closed loop each user sends the next request when the last has ended; in an open one requests leave when
they are due, and their times count from that moment. Prints one JSON object: the status of each request, and
when each of its events came.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_CHUNK_END = b"\r\n"


@dataclass(frozen=True)
class Plan:
    """Which request leaves when."""

    url: str
    bodies: list[dict[str, Any]]
    due: list[float]  # open loop: seconds from the start, one a body; empty for a closed loop
    users: int  # closed loop: how many take the bodies in turns
    timeout: float  # seconds after which a request is given up


@dataclass
class Answer:
    """What became of one request; times are seconds from the start of the load."""

    due: float
    status: int = 0  # of the reply; 0: given up, broken off, or ended by an error event
    tokens: int = 0  # as the server counts them
    cached: int = 0  # tokens of the prompt that it had already
    events: list[float] = field(default_factory=list[float])  # when those with text came
    end: float = 0.0
    failure: str = ""


class AnswerError(Exception):
    """The server answered with an error, or not to the end."""


class Generator:
    """Sends a plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        parts = urlsplit(plan.url)
        self._host, self._port, self._path = parts.hostname or "", parts.port or 80, parts.path
        self._requests = [self._request(body) for body in plan.bodies]
        self._start = 0.0
        self.answers: list[Answer] = []

    def _request(self, body: dict[str, Any]) -> bytes:
        content = json.dumps({**body, "stream": True, "stream_options": {"include_usage": True}}).encode()
        head = [f"POST {self._path} HTTP/1.1", f"Host: {self._host}:{self._port}", "Connection: close"]
        head += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        return "\r\n".join(head).encode() + b"\r\n\r\n" + content

    def _now(self) -> float:
        return asyncio.get_running_loop().time() - self._start

    async def run(self) -> None:
        self._start = asyncio.get_running_loop().time() + 0.2
        await asyncio.sleep(0.2)
        if self._plan.due:
            tasks: list[asyncio.Task[None]] = []
            for request, due in zip(self._requests, self._plan.due, strict=True):
                if (wait := due - self._now()) > 0:
                    await asyncio.sleep(wait)
                tasks.append(asyncio.create_task(self._send(request, due)))
            await asyncio.gather(*tasks)
        else:
            left = iter(self._requests)
            await asyncio.gather(*(self._user(left) for _ in range(self._plan.users)))

    async def _user(self, left: Any) -> None:
        for request in left:
            await self._send(request, self._now())

    async def _send(self, request: bytes, due: float) -> None:
        answer = Answer(due)
        self.answers.append(answer)
        try:
            await asyncio.wait_for(self._exchange(request, answer), self._plan.timeout)
        except (AnswerError, OSError, ValueError, EOFError, asyncio.TimeoutError) as error:
            answer.status = 0 if answer.status == 200 else answer.status
            answer.failure = f"{type(error).__name__}: {error}"[:300]
        answer.end = self._now()

    async def _exchange(self, request: bytes, answer: Answer) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            answer.status = int(head[9:12])
            if answer.status != 200:
                raise AnswerError((await reader.read(4096)).decode(errors="replace"))
            chunked = b"transfer-encoding: chunked" in head
            async for data in _events(_chunks(reader) if chunked else _rest(reader)):
                if data == b"[DONE]":
                    return
                self._note(json.loads(data), answer)
            raise AnswerError("the stream ended before the text did")
        finally:
            writer.close()

    def _note(self, event: dict[str, Any], answer: Answer) -> None:
        if "error" in event:
            raise AnswerError(json.dumps(event["error"]))
        if event.get("choices"):
            answer.events.append(self._now())
        if usage := event.get("usage"):
            answer.tokens = usage["completion_tokens"]
            details: dict[str, int] = usage.get("prompt_tokens_details") or {}
            answer.cached = details.get("cached_tokens") or 0


async def _rest(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while data := await reader.read(65536):
        yield data


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """The body of a reply in chunks (RFC 9112, 7.1)."""
    while size := int((await reader.readuntil(_CHUNK_END)).partition(b";")[0], 16):
        yield (await reader.readexactly(size + len(_CHUNK_END)))[:size]


async def _events(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event; all of them are one line here."""
    rest = b""
    async for data in body:
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()


def main() -> None:
    generator = Generator(Plan(**json.loads(Path(sys.argv[1]).read_text())))
    asyncio.run(generator.run())
    usage = resource.getrusage(resource.RUSAGE_SELF)
    answers = [asdict(answer) for answer in generator.answers]
    json.dump({"answers": answers, "cpu_seconds": usage.ru_utime + usage.ru_stime}, sys.stdout)


if __name__ == "__main__":
    main()
