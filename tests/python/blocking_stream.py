"""Streams of both clients behind one blocking face."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from conftest import Blocking
from trustformers_serve.replies import Generation, Piece
from trustformers_serve.streams import ResultStream, TextStream


class BlockingStream:
    """An asynchronous stream read like a blocking one, so that one test covers both."""

    def __init__(self, loop: asyncio.AbstractEventLoop, inner: Any) -> None:
        self._loop, self._inner = loop, inner
        # The other kind has sent its request by now.
        self._wait(inner.__aenter__())

    def __iter__(self) -> BlockingStream:
        return self

    def __next__(self) -> Any:
        try:
            return self._wait(self._inner.__anext__())
        except StopAsyncIteration:
            raise StopIteration from None

    def pieces(self) -> list[Piece]:
        async def all_of(pieces: AsyncIterator[Piece]) -> list[Piece]:
            return [piece async for piece in pieces]

        return self._wait(all_of(self._inner.pieces()))

    def result(self) -> Generation:
        return self._wait(self._inner.result())

    @property
    def request_id(self) -> str | None:
        return self._inner.request_id

    def close(self) -> None:
        self._wait(self._inner.close())

    def __repr__(self) -> str:
        return repr(self._inner).replace("Async", "")

    def __enter__(self) -> BlockingStream:
        return self

    def __exit__(self, *_: object) -> None:
        self._wait(self._inner.__aexit__(None, None, None))

    def _wait(self, work: Any) -> Any:
        return self._loop.run_until_complete(work)


def stream(client: Any, prompt: str = "The fox", **options: Any) -> TextStream | BlockingStream:
    if isinstance(client, Blocking):
        return BlockingStream(client._loop, client.inner.stream(prompt, **options))
    return client.stream(prompt, **options)


def stream_chat(client: Any, messages: Any, **options: Any) -> TextStream | BlockingStream:
    if isinstance(client, Blocking):
        return BlockingStream(client._loop, client.inner.chat(messages, stream=True, **options))
    return client.chat(messages, stream=True, **options)


def predict_stream(client: Any, model: str, data: Any, **options: Any) -> ResultStream | BlockingStream:
    if isinstance(client, Blocking):
        return BlockingStream(client._loop, client.inner.predict_stream(model, data, **options))
    return client.predict_stream(model, data, **options)
