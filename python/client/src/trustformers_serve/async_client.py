"""The client for asyncio: the methods of `Client`, over httpx."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import httpx

from trustformers_serve import _calls, _generate
from trustformers_serve._calls import Call, Options
from trustformers_serve._codec import Reply
from trustformers_serve._generate import StreamReader
from trustformers_serve._retry import RetryPolicy, shown
from trustformers_serve.errors import (
    ConnectionBrokenError,
    ConnectionFailedError,
    ReplyTimeoutError,
    TransportError,
    UnexpectedReplyError,
)
from trustformers_serve.replies import (
    BreakerReset,
    Generation,
    Health,
    ModelInfo,
    Priority,
    Readiness,
    Stats,
)
from trustformers_serve.streams import AsyncTextStream, Begun

if TYPE_CHECKING:
    from collections.abc import Awaitable

    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Unpack

    from trustformers_serve.generation import ChatOptions, GenerateOptions, StreamOptions

T = TypeVar("T")

# More tasks than this wait for one another's connections.
_MAX_CONNECTIONS = 256


class AsyncClient:
    """Calls a server from one event loop; an asynchronous context manager that closes it.

    Arguments, results, exceptions and retries of each method are those of `Client`.
    """

    def __init__(
        self,
        base_url: str = "http://127.0.0.1:8000",
        api_key: str | None = None,
        timeout: float = 30.0,
        max_retries: int = 3,
        retry_delay: float = 0.1,
        verify_ssl: bool = True,
        headers: Mapping[str, str] | None = None,
        *,
        repeat_unsafe: bool = False,
    ) -> None:
        """Opens no connection yet; the arguments are those of `Client`."""
        self.base_url = base_url.rstrip("/")
        self._policy = RetryPolicy(max_retries, retry_delay, timeout, repeat_unsafe)
        all_headers = dict(headers or {})
        if api_key is not None:
            all_headers["Authorization"] = f"Bearer {api_key}"
        self._http = httpx.AsyncClient(
            headers=all_headers,
            verify=verify_ssl,
            # Waiting for a free connection is the caller's own queue, which has no limit of time.
            timeout=httpx.Timeout(timeout, pool=None),
            limits=httpx.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=_MAX_CONNECTIONS),
        )

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
        return self._open(_generate.completion(prompt, model, options, stream=True))

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
        return self._open(call) if stream else self._send(call)

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
        """Closes the connections."""
        await self._http.aclose()

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

    def _open(self, call: Call[Any]) -> AsyncTextStream:
        async def begin() -> Begun:
            reply = await self._settled(call, stream=True)
            if not isinstance(reply, _Begun):
                raise _generate.refusal(call, reply)
            try:
                return Begun(StreamReader(reply), _chunks(reply.response), reply.response.aclose)
            except UnexpectedReplyError:
                await reply.response.aclose()
                raise

        return AsyncTextStream(begin)

    async def _settled(self, call: Call[Any], *, stream: bool = False) -> Reply:
        """The reply that stands after as many retries as the policy allows, or raises."""
        for retries in count():
            outcome = await self._exchange(call, stream)
            wait = self._policy.wait_seconds(call, outcome, retries, random.random())  # noqa: S311
            if wait is None:
                if isinstance(outcome, TransportError):
                    raise outcome
                return outcome
            await asyncio.sleep(wait)
        raise AssertionError("count() does not end")

    async def _exchange(self, call: Call[Any], stream: bool) -> Reply | TransportError:
        """Where `stream` is set, a reply that is no error is left open."""
        request = self._http.build_request(
            call.method, self.base_url + call.target, content=call.content, headers=dict(call.headers)
        )
        try:
            response = await self._http.send(request, stream=stream, follow_redirects=False)
            headers = {name.lower(): value for name, value in response.headers.items()}
            if stream and response.status_code == 200:
                return _Begun(response.status_code, headers, b"", response)
            return Reply(response.status_code, headers, await response.aread())
        except httpx.RequestError as error:
            return failure_of(error)


@dataclass(frozen=True)
class _Begun(Reply):
    """A reply whose body is yet to come."""

    response: httpx.Response


async def _chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in response.aiter_bytes():
            yield chunk
    except httpx.RequestError as error:
        raise failure_of(error) from error


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
