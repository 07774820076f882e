"""Connections of an event loop, over httpx.

Each is a pool of one, because httpx's own pool offers a free connection to all who wait, of whom one gets it,
and looks at every connection for each of them: 600 calls at once over 256 connections took it ten seconds.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any
from weakref import WeakSet

import httpx

from trustformers_serve._calls import Call
from trustformers_serve._codec import Reply
from trustformers_serve.errors import (
    ConnectionBrokenError,
    ConnectionFailedError,
    ReplyTimeoutError,
    TransportError,
)

# As long as httpx keeps one by default.
_LONGEST_IDLE_SECONDS = 5.0


class Connections:
    """Connections that are made as they are needed, and kept for the next exchange."""

    def __init__(
        self,
        limit: int,
        timeout: float | None,
        *,
        verify: bool = True,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """At most `limit` whole replies are under way at once; more wait for their turn, however long."""
        self._limit = limit
        self._timeout = timeout
        # Reading certificates takes longer than most calls, so it is done once for all.
        self._verify = httpx.create_ssl_context(verify=verify)
        self._headers = dict(headers or {})
        self._places = asyncio.Semaphore(limit)
        # Weak, so that a stream that nobody holds takes its connection with it.
        self._open: WeakSet[httpx.AsyncClient] = WeakSet()
        self._idle: deque[tuple[float, httpx.AsyncClient]] = deque()
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    async def exchange(self, call: Call[Any], base_url: str) -> Reply | TransportError:
        """What comes of sending a request once.

        Raises:
            RuntimeError: The connections are closed, or belong to another event loop.
        """
        self._enter()
        async with self._places:
            connection, whole = self._take(), False
            try:
                reply = await _whole(await connection.send(_request(connection, call, base_url)))
                whole = True
            except httpx.RequestError as error:
                return failure_of(error)
            else:
                return reply
            finally:
                await self.give_back(connection, whole)

    async def begin(self, call: Call[Any], base_url: str) -> Reply | TransportError:
        """As `exchange`, but a reply that is no error is left open, as a `Begun`.

        It does not count against the limit, so that those who hold streams keep nobody waiting.
        """
        self._enter()
        connection, begun, whole = self._take(), False, False
        try:
            response = await connection.send(_request(connection, call, base_url), stream=True)
            begun = response.status_code == 200
            if begun:
                return Begun(response.status_code, _names(response), b"", response, connection, self)
            reply = await _whole(response)
            whole = True
        except httpx.RequestError as error:
            return failure_of(error)
        else:
            return reply
        finally:
            if not begun:
                await self.give_back(connection, whole)

    async def close(self) -> None:
        """Closes all, also those in use; nothing can be sent any more.

        Raises:
            RuntimeError: Some belong to another event loop, which may go on.
        """
        if self._open:
            self._enter()
        self._closed = True
        for connection in list(self._open):
            await connection.aclose()
            self._open.discard(connection)
        self._idle.clear()

    def _enter(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("this client is used on another event loop: make one for each")
        # What a closed loop has left can do nothing on another.
        self._loop = loop
        self._places = asyncio.Semaphore(self._limit)
        self._idle.clear()
        self._open.clear()

    def _take(self) -> httpx.AsyncClient:
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._idle:
            # The one used last: the others grow old, and are closed.
            return self._idle.pop()[1]
        connection = httpx.AsyncClient(
            headers=self._headers,
            verify=self._verify,
            timeout=self._timeout,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
        )
        self._open.add(connection)
        return connection

    async def give_back(self, connection: httpx.AsyncClient, whole: bool) -> None:
        """Keeps a connection for a while if it brought a whole reply, and closes it otherwise."""
        if self._closed:
            return
        unused = connection
        if whole:
            now = monotonic()
            self._idle.append((now, connection))
            oldest, unused = self._idle[0]
            if len(self._idle) <= self._limit and now - oldest <= _LONGEST_IDLE_SECONDS:
                return
            self._idle.popleft()
        # What httpx makes of an exchange that was cancelled may keep its pool busy for ever.
        self._open.discard(unused)
        await unused.aclose()


@dataclass(frozen=True)
class Begun(Reply):
    """A reply whose body is yet to come."""

    response: httpx.Response
    connection: httpx.AsyncClient
    connections: Connections

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes."""
        try:
            async for chunk in self.response.aiter_bytes():
                yield chunk
        except httpx.RequestError as error:
            raise failure_of(error) from error

    async def close(self) -> None:
        """Ends the reply; to be called once."""
        # As it is when its body has been read to the end.
        whole = self.response.is_closed
        try:
            await self.response.aclose()
        finally:
            await self.connections.give_back(self.connection, whole)


def failure_of(error: httpx.RequestError) -> TransportError:
    """The exception of this package that httpx's own is the cause of."""
    detail = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        failure = ConnectionFailedError(f"cannot connect: {detail}")
    elif isinstance(error, httpx.TimeoutException):
        failure = ReplyTimeoutError(f"no reply in time: {detail}")
    else:
        failure = ConnectionBrokenError(f"no reply: {detail}")
    failure.__cause__ = error
    return failure


def _request(connection: httpx.AsyncClient, call: Call[Any], base_url: str) -> httpx.Request:
    return connection.build_request(
        call.method, base_url + call.target, content=call.content, headers=dict(call.headers)
    )


def _names(response: httpx.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in response.headers.items()}


async def _whole(response: httpx.Response) -> Reply:
    return Reply(response.status_code, _names(response), await response.aread())
