"""Texts that are read while they are made."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator
from types import TracebackType

from trustformers_serve._generate import StreamReader
from trustformers_serve.errors import TransportError
from trustformers_serve.replies import Generation, Piece


class TextStream:
    """A text, piece by piece: an iterator of strings, and a context manager that closes it.

    Closing it before its end tells the server to stop. An error in the middle is raised by the iteration, as
    the exception that the same error of a whole reply is; nothing is repeated then.
    """

    def __init__(self, reader: StreamReader, chunks: Iterator[bytes], close: Callable[[], None]) -> None:
        """Of a reply that has begun; made by `Client.stream` and `Client.chat`."""
        self._reader = reader
        self._chunks = chunks
        self._close = close
        self._ready: deque[Piece] = deque()
        self._closed = False

    def __iter__(self) -> Iterator[str]:
        """The stream itself."""
        return self

    def __next__(self) -> str:
        """The next characters, at least one."""
        for piece in self.pieces():
            if piece.text:
                return piece.text
        raise StopIteration

    def pieces(self) -> Iterator[Piece]:
        """What is yet to come with all that is known of it; for several texts, mixed as they come."""
        while True:
            while self._ready:
                yield self._ready.popleft()
            if self._closed:
                return
            self._read()

    def result(self) -> Generation:
        """Everything, when the text has ended; what was read before is part of it."""
        for _ in self.pieces():
            pass
        return self._reader.generation()

    def close(self) -> None:
        """Ends the request; what came can still be had from `result`."""
        if not self._closed:
            self._closed = True
            self._close()

    def __enter__(self) -> TextStream:
        """The stream itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        self.close()

    def __repr__(self) -> str:
        """Whether it is open, and how much came."""
        return f"<TextStream {_state(self._closed, self._reader)}>"

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
            # The text is whole; what broke after it matters to nobody.
            if not self._reader.done:
                raise
            return None


class AsyncTextStream:
    """A text, piece by piece: an asynchronous iterator of strings, and a context manager that closes it.

    The request is sent when it is first read, entered or awaited; awaiting it gives the stream itself. In all
    else it is as `TextStream`.
    """

    def __init__(self, begin: Callable[[], Awaitable[Begun]]) -> None:
        """Made by `AsyncClient.stream` and `AsyncClient.chat`; `begin` sends the request."""
        self._begin = begin
        self._begun: Begun | None = None
        self._ready: deque[Piece] = deque()
        self._closed = False

    def __await__(self) -> Generator[object, None, AsyncTextStream]:
        """Sends the request, and raises if it is refused."""
        return self.__aenter__().__await__()

    def __aiter__(self) -> AsyncIterator[str]:
        """The stream itself."""
        return self

    async def __anext__(self) -> str:
        """The next characters, at least one."""
        while (piece := await self._next()) is not None:
            if piece.text:
                return piece.text
        raise StopAsyncIteration

    async def pieces(self) -> AsyncIterator[Piece]:
        """What is yet to come with all that is known of it; for several texts, mixed as they come."""
        while (piece := await self._next()) is not None:
            yield piece

    async def result(self) -> Generation:
        """Everything, when the text has ended; what was read before is part of it."""
        while await self._next() is not None:
            pass
        return (await self._opened()).reader.generation()

    async def close(self) -> None:
        """Ends the request; what came can still be had from `result`."""
        if not self._closed:
            self._closed = True
            if self._begun is not None:
                await self._begun.close()

    async def __aenter__(self) -> AsyncTextStream:
        """Sends the request, and raises if it is refused."""
        await self._opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes it."""
        await self.close()

    def __repr__(self) -> str:
        """Whether it is open, and how much came."""
        begun = self._begun
        if begun is None:
            return "<AsyncTextStream not begun>"
        return f"<AsyncTextStream {_state(self._closed, begun.reader)}>"

    async def _opened(self) -> Begun:
        if self._begun is None:
            self._begun = await self._begin()
        return self._begun

    async def _next(self) -> Piece | None:
        while not self._ready:
            if self._closed:
                return None
            await self._read()
        return self._ready.popleft()

    async def _read(self) -> None:
        begun = await self._opened()
        try:
            begun.reader.check()
            chunk = await begun.chunk()
            self._ready.extend(begun.reader.feed(chunk))
        except BaseException:
            await self.close()
            raise
        if chunk is None and begun.reader.done:
            await self.close()


def _state(closed: bool, reader: StreamReader) -> str:
    made = reader.generation()
    state = "done" if reader.done else "closed" if closed else "open"
    return f"{state}, {sum(len(choice.text) for choice in made.choices)} characters so far"


class Begun:
    """A reply that has begun, for `AsyncTextStream`."""

    def __init__(
        self, reader: StreamReader, chunks: AsyncIterator[bytes], close: Callable[[], Awaitable[None]]
    ) -> None:
        """Reads `chunks` with `reader`; `close` ends the request."""
        self.reader = reader
        self.close = close
        self._chunks = chunks

    async def chunk(self) -> bytes | None:
        """The next bytes of the body; None at its end."""
        try:
            return await anext(self._chunks, None)
        except TransportError:
            # As in `TextStream`.
            if not self.reader.done:
                raise
            return None
