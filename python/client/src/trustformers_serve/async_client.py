"""The client for asyncio: the methods of `Client`, over httpx."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import httpx

from trustformers_serve import _calls
from trustformers_serve._calls import Call, Options
from trustformers_serve._codec import Reply
from trustformers_serve._retry import RetryPolicy
from trustformers_serve.errors import (
    ConnectionBrokenError,
    ConnectionFailedError,
    ReplyTimeoutError,
    TransportError,
)
from trustformers_serve.replies import BreakerReset, Health, ModelInfo, Priority, Readiness, Stats

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

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
    ) -> None:
        """Opens no connection yet; the arguments are those of `Client`."""
        self.base_url = base_url.rstrip("/")
        self._policy = RetryPolicy(max_retries, retry_delay, timeout)
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

    async def __aenter__(self) -> AsyncClient:
        """The client itself."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the connections."""
        await self.close()

    async def _send(self, call: Call[T]) -> T:
        for retries in count():
            outcome = await self._exchange(call)
            wait = self._policy.wait_seconds(call, outcome, retries, random.random())  # noqa: S311
            if wait is None:
                if isinstance(outcome, TransportError):
                    raise outcome
                return call.read(outcome)
            await asyncio.sleep(wait)
        raise AssertionError("count() does not end")

    async def _exchange(self, call: Call[Any]) -> Reply | TransportError:
        try:
            response = await self._http.request(
                call.method,
                self.base_url + call.target,
                content=call.content,
                headers=dict(call.headers),
                follow_redirects=False,
            )
        except httpx.TransportError as error:
            failure = _failure(error)
            failure.__cause__ = error
            return failure
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status_code, headers, response.content)


def _failure(error: httpx.TransportError) -> TransportError:
    detail = str(error) or type(error).__name__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return ConnectionFailedError(f"cannot connect: {detail}")
    if isinstance(error, httpx.TimeoutException):
        return ReplyTimeoutError(f"no reply in time: {detail}")
    return ConnectionBrokenError(f"no reply: {detail}")
