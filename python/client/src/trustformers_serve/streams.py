"""Texts and results that are read while they are made."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from trustformers_serve._events import EventReader, ResultReader
from trustformers_serve._generate import TextReader
from trustformers_serve.errors import TransportError
from trustformers_serve.replies import Generation, Piece

if TYPE_CHECKING:
    # In `typing` itself only from Python 3.11 on.
    from typing_extensions import Self

P = TypeVar("P")
R = TypeVar("R", bound=EventReader[Any])


class _Stream(Generic[R, P]):
    """Pieces of a reply as they come; a context manager that closes it.

    Closing it before its end tells the server to stop. An error in the middle is raised by the iteration, as
    the exception that the same error of a whole reply is; nothing is repeated then.
    """

    def __init__(self, reader: R, chunks: Iterator[bytes], close: Callable[[], None]) -> None:
        """Of a reply that has begun; made by a `Client`."""
        self._reader = reader
        self._chunks = chunks
        self._close = close
        self._ready: deque[P] = deque()
        self._closed = False

    @property
    def request_id(self) -> str | None:
        """The id under which the server's log has the request."""
        return self._reader.reply.headers.get("x-request-id")

    def close(self) -> None:
        """Ends the request; what came can still be read."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> Self:
        """The stream itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    def _next(self) -> P:
        while not self._ready:
            if self._closed:
                raise StopIteration
            self._read()
        return self._ready.popleft()

    def _read(self) -> None:
        try:
            self._reader.check()
            chunk = self._chunk()
            self._ready.extend(self._reader.feed(chunk))
        except BaseException:
            self.close()
            raise
        if chunk is None and self._reader.done:
            self.close()

    def _chunk(self) -> bytes | None:
        try:
            return next(self._chunks, None)
        except TransportError:
            # The reply is whole; what broke after it matters to nobody.
            if not self._reader.done:
                raise
            return None


class TextStream(_Stream[TextReader, Piece]):
    """A text, piece by piece: an iterator of strings, and a context manager that closes it.

    Closing it before its end tells the server to stop. An error in the middle is raised by the iteration, as
    the exception that the same error of a whole reply is; nothing is repeated then.
    """

    def __iter__(self) -> Iterator[str]:
        """The stream itself."""
        return self

    def __next__(self) -> str:
        """The next characters, at least one."""
        while not (text := self._next().text):
            pass
        return text

    def pieces(self) -> Iterator[Piece]:
        """What is yet to come with all that is known of it; for several texts, mixed as they come."""
        with suppress(StopIteration):
            while True:
                yield self._next()

    def result(self) -> Generation:
        """Everything, when the text has ended; what was read before is part of it."""
        deque(self.pieces(), maxlen=0)
        return self._reader.generation()

    def __repr__(self) -> str:
        """Whether it is open, and how much came."""
        return f"<TextStream {_text_state(self._closed, self._reader)}>"


class ResultStream(_Stream[ResultReader, Any]):
    """What a served generator yields: an iterator of results, and a context manager that closes it.

    Closing it before its end tells the server to stop. An error in the middle is raised by the iteration, as
    the exception that the same error of a whole reply is; nothing is repeated then.
    """

    def __iter__(self) -> Iterator[Any]:
        """The stream itself."""
        return self

    def __next__(self) -> Any:
        """The next result."""
        return self._next()

    def __repr__(self) -> str:
        """Whether it is open."""
        return f"<ResultStream {_state(self._closed, self._reader)}>"


class Begun(Protocol):
    """A reply that has begun: its body, and how to end it."""

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        ...

    async def close(self) -> None:
        """Ends the reply; called once."""
        ...


class _AsyncStream(Generic[R, P]):
    """Pieces of a reply as they come; an asynchronous context manager that closes it.

    The request is sent when the stream is first read, entered or awaited. Otherwise it is as a `_Stream`.
    """

    def __init__(self, begin: Callable[[], Awaitable[tuple[R, Begun]]]) -> None:
        """Of a request that `begin` sends; made by an `AsyncClient`."""
        self._begin = begin
        self._reader: R | None = None
        self._begun: Begun | None = None
        self._chunks: AsyncIterator[bytes] | None = None
        self._ready: deque[P] = deque()
        self._closed = False

    @property
    def request_id(self) -> str | None:
        """The id under which the server's log has the request; None before it is sent."""
        return None if self._reader is None else self._reader.reply.headers.get("x-request-id")

    async def close(self) -> None:
        """Ends the request; what came can still be read."""
        if not self._closed:
            self._closed = True
            if self._begun is not None:
                await self._begun.close()

    def __await__(self) -> Generator[object, None, Self]:
        """Sends the request, and raises if it is refused."""
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Self:
        """Sends the request, and raises if it is refused."""
        await self._opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        await self.close()

    async def _next(self) -> P:
        while not self._ready:
            if self._closed:
                raise StopAsyncIteration
            await self._read()
        return self._ready.popleft()

    async def _opened(self) -> R:
        if self._reader is None:
            self._reader, self._begun = await self._begin()
            self._chunks = self._begun.chunks()
        return self._reader

    async def _read(self) -> None:
        reader = await self._opened()
        try:
            reader.check()
            chunk = await self._chunk(reader)
            self._ready.extend(reader.feed(chunk))
        except BaseException:
            await self.close()
            raise
        if chunk is None and reader.done:
            await self.close()

    async def _chunk(self, reader: R) -> bytes | None:
        try:
            return None if self._chunks is None else await anext(self._chunks, None)
        except TransportError:
            # As in `_Stream`.
            if not reader.done:
                raise
            return None


class AsyncTextStream(_AsyncStream[TextReader, Piece]):
    """A text, piece by piece: an asynchronous iterator of strings, and a context manager that closes it.

    The request is sent when it is first read, entered or awaited. Otherwise it is as a `TextStream`.
    """

    def __aiter__(self) -> AsyncIterator[str]:
        """The stream itself."""
        return self

    async def __anext__(self) -> str:
        """The next characters, at least one."""
        while not (text := (await self._next()).text):
            pass
        return text

    async def pieces(self) -> AsyncIterator[Piece]:
        """What is yet to come with all that is known of it; for several texts, mixed as they come."""
        with suppress(StopAsyncIteration):
            while True:
                yield await self._next()

    async def result(self) -> Generation:
        """Everything, when the text has ended; what was read before is part of it."""
        async for _ in self.pieces():
            pass
        return (await self._opened()).generation()

    def __repr__(self) -> str:
        """Whether it is open, and how much came."""
        state = "not begun" if self._reader is None else _text_state(self._closed, self._reader)
        return f"<AsyncTextStream {state}>"


class AsyncResultStream(_AsyncStream[ResultReader, Any]):
    """What a served generator yields: an asynchronous iterator, and a context manager that closes it.

    The request is sent when it is first read, entered or awaited. Otherwise it is as a `ResultStream`.
    """

    def __aiter__(self) -> AsyncIterator[Any]:
        """The stream itself."""
        return self

    async def __anext__(self) -> Any:
        """The next result."""
        return await self._next()

    def __repr__(self) -> str:
        """Whether it is open."""
        state = "not begun" if self._reader is None else _state(self._closed, self._reader)
        return f"<AsyncResultStream {state}>"


def _state(closed: bool, reader: EventReader[Any]) -> str:
    return "done" if reader.done else "closed" if closed else "open"


def _text_state(closed: bool, reader: TextReader) -> str:
    made = reader.generation()
    return f"{_state(closed, reader)}, {sum(len(choice.text) for choice in made.choices)} characters so far"
