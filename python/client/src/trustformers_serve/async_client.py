"""The client for asyncio: the methods of `Client`, over httpx."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from trustformers_serve import _calls, _generate
from trustformers_serve._calls import Call, Options
from trustformers_serve._codec import Reply
from trustformers_serve._connections import Begun, Connections
from trustformers_serve._endpoint import MOST_CONNECTIONS, checked_headers, checked_url, shown
from trustformers_serve._events import EventReader, ResultReader, refusal
from trustformers_serve._generate import TextReader
from trustformers_serve._limits import check_count
from trustformers_serve._retry import RetryPolicy
from trustformers_serve.errors import TransportError, UnexpectedReplyError
from trustformers_serve.replies import (
    BreakerReset,
    Generation,
    Health,
    ModelInfo,
    Priority,
    Readiness,
    Stats,
)
from trustformers_serve.streams import AsyncResultStream, AsyncTextStream

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Unpack

    from trustformers_serve.generation import ChatOptions, GenerateOptions, StreamOptions

T = TypeVar("T")
R = TypeVar("R", bound=EventReader[Any])


class AsyncClient:
    """Calls a server from one event loop; an asynchronous context manager that closes it.

    It may be used on another loop once the first is closed.
    Arguments, results, exceptions and retries of each method are those of `Client`.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout: float | None = 30.0,
        max_retries: int = 3,
        retry_delay: float = 0.1,
        verify_ssl: bool = True,
        headers: Mapping[str, str] | None = None,
        *,
        repeat_unsafe: bool = False,
        max_connections: int = 256,
    ) -> None:
        """Opens no connection yet; the arguments are those of `Client`."""
        self.base_url = checked_url(base_url)
        self._policy = RetryPolicy(max_retries, retry_delay, timeout, repeat_unsafe)
        all_headers = checked_headers(headers, api_key)
        if api_key is not None:
            all_headers["Authorization"] = f"Bearer {api_key}"
        check_count("max_connections", max_connections, 1, MOST_CONNECTIONS)
        self._connections = Connections(max_connections, timeout, verify=verify_ssl, headers=all_headers)

    async def predict(
        self,
        model: str,
        data: Any,
        *,
        version: str | None = None,
        priority: Priority | None = None,
        timeout_ms: int | None = None,
        parameters: Mapping[str, Any] | None = None,
        as_numpy: bool | None = None,
    ) -> Any:
        """Runs a model on one item; see `Client.predict`."""
        return await self._send(
            _calls.predict(model, data, Options(version, priority, timeout_ms, parameters, as_numpy))
        )

    def predict_stream(
        self,
        model: str,
        data: Any,
        *,
        version: str | None = None,
        priority: Priority | None = None,
        timeout_ms: int | None = None,
        as_numpy: bool | None = None,
    ) -> AsyncResultStream:
        """Runs a model that is a generator: `async for` over what it yields; see `Client.predict_stream`."""
        call, convert = _calls.predict_stream(
            model, data, Options(version, priority, timeout_ms, None, as_numpy)
        )
        return AsyncResultStream(self._begin(call, lambda reply: ResultReader(reply, convert)))

    async def predict_batch(
        self,
        model: str,
        instances: Iterable[Any],
        *,
        version: str | None = None,
        priority: Priority | None = None,
        timeout_ms: int | None = None,
        parameters: Mapping[str, Any] | None = None,
        as_numpy: bool | None = None,
        raise_on_error: bool = True,
    ) -> list[Any]:
        """Runs a model on many items; see `Client.predict_batch`."""
        options = Options(version, priority, timeout_ms, parameters, as_numpy)
        return await self._send(_calls.predict_batch(model, instances, options, raise_on_error))

    async def embed(self, texts: str | Sequence[str], model: str | None = None) -> npt.NDArray[np.float32]:
        """Vectors of texts, as an array [texts, dimensions]; see `Client.embed`."""
        return await self._send(_calls.embed(texts, model))

    async def generate(
        self, prompt: str | Sequence[int], *, model: str | None = None, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Goes on from a prompt, and answers when the text has ended; see `Client.generate`."""
        return await self._send(_generate.completion(prompt, model, options))

    def stream(
        self, prompt: str | Sequence[int], *, model: str | None = None, **options: Unpack[StreamOptions]
    ) -> AsyncTextStream:
        """Goes on from a prompt, piece by piece: `async for` over it; see `Client.stream`."""
        call = _generate.completion(prompt, model, options, stream=True)
        return AsyncTextStream(self._begin(call, TextReader))

    @overload
    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> Awaitable[Generation]: ...

    @overload
    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> AsyncTextStream: ...

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        stream: bool = False,
        **options: Unpack[ChatOptions],
    ) -> Awaitable[Generation] | AsyncTextStream:
        """Answers messages: to be awaited, or with `stream` to be iterated over; see `Client.chat`."""
        call = _generate.chat(messages, model, options, stream=stream)
        return AsyncTextStream(self._begin(call, TextReader)) if stream else self._send(call)

    async def models(self) -> list[ModelInfo]:
        """Every model of the server."""
        return await self._send(_calls.models())

    async def model(self, name: str) -> ModelInfo:
        """One model: its versions and their state, its inputs and outputs."""
        return await self._send(_calls.model(name))

    async def load_model(self, name: str, version: str | None = None) -> ModelInfo:
        """Loads a model and returns when it serves; `ModelFailedError` has the reason if it cannot."""
        return await self._send(_calls.load_model(name, version))

    async def unload_model(self, name: str, version: str | None = None) -> ModelInfo:
        """Unloads a model once it has answered the requests that it holds."""
        return await self._send(_calls.unload_model(name, version))

    async def reset_breaker(self, name: str, version: str | None = None) -> BreakerReset:
        """Lets requests in again to a model that was left alone because it kept failing."""
        return await self._send(_calls.reset_breaker(name, version))

    async def health(self) -> Health:
        """Whether the server answers, and its version."""
        return await self._send(_calls.health())

    async def ready(self) -> Readiness:
        """Whether every model serves, and the state of each; true in a condition when they do."""
        return await self._send(_calls.ready())

    async def metrics(self) -> str:
        """The metrics, in Prometheus' text format."""
        return await self._send(_calls.metrics())

    async def stats(self) -> Stats:
        """What the server does and did, for each model version.

        `batching` holds throughput, percentiles of latency and waiting, batch sizes, padding, utilisation
        and the fitted cost model; `suggestions`, changes of its settings with what they would gain.
        """
        return await self._send(_calls.stats())

    async def close(self) -> None:
        """Closes the connections; those of a loop that has been closed are gone with it.

        Raises:
            RuntimeError: They belong to another event loop.
        """
        await self._connections.close()

    def __repr__(self) -> str:
        """Where it calls, and how patiently; never its key."""
        return f"<AsyncClient {shown(self.base_url)} {self._policy}>"

    async def __aenter__(self) -> AsyncClient:
        """The client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the connections."""
        await self.close()

    async def _send(self, call: Call[T]) -> T:
        return call.read(await self._settled(call))

    def _begin(
        self, call: Call[Any], reader: Callable[[Reply], R]
    ) -> Callable[[], Awaitable[tuple[R, Begun]]]:
        async def begin() -> tuple[R, Begun]:
            reply = await self._settled(call, stream=True)
            if not isinstance(reply, Begun):
                raise refusal(call, reply)
            try:
                return reader(reply), reply
            except UnexpectedReplyError:
                await reply.close()
                raise

        return begin

    async def _settled(self, call: Call[Any], *, stream: bool = False) -> Reply:
        """The reply that stands after as many retries as the policy allows, or raises."""
        for retries in count():
            send = self._connections.begin if stream else self._connections.exchange
            outcome = await send(call, self.base_url)
            wait = self._policy.wait_seconds(call, outcome, retries, random.random())  # noqa: S311
            if wait is None:
                if isinstance(outcome, TransportError):
                    raise outcome
                return outcome
            await asyncio.sleep(wait)
        raise AssertionError("count() does not end")
