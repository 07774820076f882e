"""Replies of server-sent events, read out of bytes as they come; nothing here does I/O."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from trustformers_serve import _calls
from trustformers_serve._calls import Call
from trustformers_serve._codec import EVENTS, Reply
from trustformers_serve.errors import ConnectionBrokenError, TrustformersError, UnexpectedReplyError

_DONE = "[DONE]"

P = TypeVar("P")


def refusal(call: Call[Any], reply: Reply) -> TrustformersError:
    """The exception of a reply that should have been a stream."""
    try:
        call.read(reply)
    except TrustformersError as error:
        return error
    return UnexpectedReplyError(f"HTTP {reply.status} instead of a stream", status=reply.status)


class EventData:
    """The data of server-sent events, out of bytes that come in any portions (WHATWG HTML, 9.2)."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> list[str]:
        """The data of each event that has ended with `chunk`."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        events: list[str] = []
        for ended in lines:
            line = ended.removesuffix(b"\r")
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data).decode())
                self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
        return events


class EventReader(ABC, Generic[P]):
    """A streamed reply: bytes to pieces."""

    def __init__(self, reply: Reply) -> None:
        """Of a reply whose body is yet to come."""
        media_type = reply.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != EVENTS:
            raise UnexpectedReplyError(
                f"HTTP {reply.status} with a body of type {media_type or 'unknown'} instead of {EVENTS}",
                status=reply.status,
            )
        self.reply = reply
        self.done = False
        """Whether the reply has ended as it should; what comes after that means nothing."""
        self._data = EventData()
        self._failure: TrustformersError | None = None

    def feed(self, chunk: bytes | None) -> list[P]:
        """The pieces that come with `chunk`; None is the end of the body. What follows them is in `check`."""
        pieces: list[P] = []
        if chunk is None and not self.done:
            self._failure = ConnectionBrokenError("the stream ended before its last word")
        for data in self._data.feed(chunk or b""):
            if self.done or self._failure:
                break
            if data == _DONE:
                self.done = True
            else:
                try:
                    pieces += self._event(json.loads(data))
                except TrustformersError as error:
                    self._failure = error
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    self._failure = UnexpectedReplyError(f"an event that is none ({error!r}): {data[:200]}")
        return pieces

    def check(self) -> None:
        """Raises what ended the stream before its time, once the pieces before that were had."""
        if self._failure is not None:
            raise self._failure

    def _event(self, event: dict[str, Any]) -> list[P]:
        if "error" in event:
            raise _calls.api_error(self.reply, event["error"])
        return self._read(event)

    @abstractmethod
    def _read(self, event: dict[str, Any]) -> list[P]:
        """The pieces of an event that is no error."""


class ResultReader(EventReader[Any]):
    """What a generator yields, each in an event of its own."""

    def __init__(self, reply: Reply, convert: Callable[[Any], Any]) -> None:
        """`convert` makes arrays of what comes, or leaves it as it is."""
        super().__init__(reply)
        self._convert = convert

    def _read(self, event: dict[str, Any]) -> list[Any]:
        return [self._convert(event["data"])]
