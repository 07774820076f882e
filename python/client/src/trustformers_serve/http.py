"""Batches of prompts for a language model behind HTTP: an executor for `Batcher`.

    with OpenAIResponsesExecutor(api_key, "gpt-5", max_concurrency=16) as ask, Batcher() as batcher:
        texts = batcher.map(prompts, ask, progress=True)

Needs httpx, which the extra `[http]` brings.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import random
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from itertools import count
from typing import Any, Generic, NoReturn, TypeVar, cast, overload

from trustformers_serve import _calls, _codec
from trustformers_serve._calls import Call
from trustformers_serve._codec import JSON, Reply
from trustformers_serve._endpoint import checked_headers, checked_url, shown
from trustformers_serve._limits import check_count
from trustformers_serve._retry import RetryPolicy
from trustformers_serve.errors import (
    ExecutorError,
    MissingExtraError,
    SerializationError,
    TrustformersError,
    UnexpectedReplyError,
)

try:
    from trustformers_serve._connections import Connections
except ModuleNotFoundError as error:
    raise MissingExtraError("trustformers_serve.http", "http", error.name) from error

R = TypeVar("R")
T = TypeVar("T")

Prompt = str | Sequence[Mapping[str, Any]] | Mapping[str, Any]
"""A text, a list of messages, or the fields of a request, `input` among them."""

_MOST = 4096


def output_text(response: Mapping[str, Any]) -> str:
    """The text of a response: of its messages, one after another.

    Raises:
        UnexpectedReplyError: It has no output, or an output that is none.
    """
    try:
        messages = [item for item in response["output"] if item["type"] == "message"]
        parts = [part for message in messages for part in message["content"]]
        return "".join(part["text"] for part in parts if part["type"] == "output_text")
    except (KeyError, TypeError) as error:
        raise UnexpectedReplyError(f"a response without output: {str(response)[:200]}") from error


class OpenAIResponsesExecutor(Generic[R]):
    """Runs a batch of prompts against an OpenAI-style Responses API, many at once.

    Each prompt is a request of its own, so that one that fails fails alone: its caller gets the `ApiError`
    that the service answered (`AuthenticationError`, `OverloadedError`, ...), or the `TransportError` that
    kept it from answering. What the service refused (429) or failed at (500 and above) is asked for again,
    after as long as it says with `Retry-After`, and so is what met no connection or a broken one. A request
    may therefore be made twice; a timeout is not repeated.

    Its connections stay open from batch to batch, on an event loop of its own, until `close`. It may be
    called from several threads, which share `max_concurrency`.
    """

    @overload
    def __init__(
        self: OpenAIResponsesExecutor[str],
        api_key: str | None,
        model: str,
        base_url: str = ...,
        max_concurrency: int = ...,
        timeout: float | None = ...,
        max_retries: int = ...,
        *,
        retry_delay: float = ...,
        **options: Any,
    ) -> None: ...
    @overload
    def __init__(
        self,
        api_key: str | None,
        model: str,
        base_url: str = ...,
        max_concurrency: int = ...,
        timeout: float | None = ...,
        max_retries: int = ...,
        *,
        retry_delay: float = ...,
        read: Callable[[Mapping[str, Any]], R],
        **options: Any,
    ) -> None: ...
    def __init__(
        self,
        api_key: str | None,
        model: str,
        base_url: str = "https://api.openai.com/v1",
        max_concurrency: int = 16,
        timeout: float | None = 60.0,
        max_retries: int = 3,
        *,
        retry_delay: float = 0.5,
        read: Callable[[Mapping[str, Any]], Any] = output_text,
        **options: Any,
    ) -> None:
        """Opens no connection yet.

        Args:
            api_key: Sent as `Authorization: Bearer`; None where the service wants none.
            model: Which model is asked.
            base_url: Where the service is; `/responses` is appended.
            max_concurrency: Most requests under way at once, over all batches.
            timeout: Seconds for a connection, and for each silence while waiting for a reply; None for any
                time. A service that asks for a longer wait before a retry is not waited for.
            max_retries: How often a request is repeated; 0 never.
            retry_delay: Seconds before the first retry, doubled for each further one and lengthened by up to
                a quarter at random.
            read: What becomes of a response; its text by default.
            options: Fields of every request: `instructions`, `temperature`, `max_output_tokens`, ...

        Raises:
            ValueError: A limit is out of range, or the key or the URL cannot be sent.
        """
        if not model:
            raise ValueError("model must not be empty")
        check_count("max_concurrency", max_concurrency, 1, _MOST)
        self.model = model
        self._base_url = checked_url(base_url)
        self._max_concurrency = max_concurrency
        self._policy = RetryPolicy(max_retries, retry_delay, timeout, repeat_unsafe=True)
        self._read = read
        self._options = {"model": model, **options}
        self._begin = _factory(api_key, max_concurrency, timeout)
        self._lock = threading.Lock()
        self._connections: _OwnLoop | None = None
        self._closed = False

    def __call__(self, prompts: Sequence[Prompt]) -> list[R | Exception]:
        """The results of `prompts` in order, with an exception in the place of each that failed.

        Raises:
            ExecutorError: The executor is closed, or was before they were done.
        """
        calls = [self._call(prompt) for prompt in prompts]
        with self._lock:
            if self._closed:
                raise ExecutorError("the OpenAIResponsesExecutor is closed")
            connections = self._connected()
            pending = connections.start(self._all(connections, calls))
        try:
            outcomes = pending.result()
        except concurrent.futures.CancelledError:
            raise ExecutorError("the OpenAIResponsesExecutor was closed before the batch was done") from None
        except BaseException:
            # Interrupted: nobody waits for the replies any more.
            pending.cancel()
            raise
        return [self._result(outcome) for outcome in outcomes]

    def close(self) -> None:
        """Closes the connections; requests that are under way end with an error. May be repeated."""
        with self._lock:
            self._closed = True
            connections, self._connections = self._connections, None
        if connections is not None:
            connections.close()

    def __enter__(self) -> OpenAIResponsesExecutor[R]:
        """The executor itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Closes it."""
        self.close()

    def __reduce__(self) -> NoReturn:
        """Refuses: its connections belong to its process, and its key to nobody else."""
        raise TypeError(
            "an OpenAIResponsesExecutor cannot be copied or sent to another process; make one there"
        )

    def __repr__(self) -> str:
        """Its service and limits; never its key."""
        return (
            f"<OpenAIResponsesExecutor {shown(self._base_url)} model={self.model!r} "
            f"max_concurrency={self._max_concurrency} {self._policy}>"
        )

    def _connected(self) -> _OwnLoop:
        # After a fork the thread stayed in the parent.
        if self._connections is None or self._connections.process != os.getpid():
            self._connections = self._begin()
            weakref.finalize(self, self._connections.close).atexit = False
        return self._connections

    def _call(self, prompt: Any) -> Call[Any] | Exception:
        fields: dict[str, Any] = {**self._options}
        if isinstance(prompt, Mapping):
            fields |= cast("Mapping[str, Any]", prompt)
        elif isinstance(prompt, (str, list, tuple)):
            fields["input"] = prompt
        else:
            return TypeError(f"a prompt must be a text, messages or fields, not {type(prompt).__qualname__}")
        try:
            content, _ = _codec.to_json(fields)
        except SerializationError as error:
            return error
        headers = {"content-type": JSON, "accept": JSON}
        return Call("POST", "/responses", _calls.checked, content, headers)

    def _result(self, outcome: Reply | Exception) -> R | Exception:
        if isinstance(outcome, Exception):
            return outcome
        try:
            response = _calls.checked(outcome)
            if isinstance(response, dict) and cast("dict[str, Any]", response).get("error") is not None:
                return _calls.api_error(outcome, response["error"])
            return self._read(cast("Mapping[str, Any]", response))
        except Exception as error:  # noqa: BLE001 - it is the caller's of this prompt to raise
            return error

    async def _all(
        self, connections: _OwnLoop, calls: Sequence[Call[Any] | Exception]
    ) -> list[Reply | Exception]:
        async def one(call: Call[Any] | Exception) -> Reply | Exception:
            if isinstance(call, Exception):
                return call
            return await self._settled(connections, call)

        return await asyncio.gather(*map(one, calls))

    async def _settled(self, connections: _OwnLoop, call: Call[Any]) -> Reply | TrustformersError:
        """What stands after as many retries as the policy allows."""
        for retries in count():
            outcome = await connections.http.exchange(call, self._base_url)
            wait = self._policy.wait_seconds(call, outcome, retries, random.random())  # noqa: S311
            if wait is None:
                return outcome
            # Others have the place meanwhile.
            await asyncio.sleep(wait)
        raise AssertionError("count() does not end")


class _OwnLoop:
    """An event loop on a thread of its own, and the connections that it uses."""

    def __init__(self, http: Connections) -> None:
        self.process = os.getpid()
        self.http = http
        self._loop = asyncio.new_event_loop()
        # A daemon, because a service that is silent must not keep the interpreter from its exit.
        self._thread = threading.Thread(target=self._serve, name="trustformers-responses", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def start(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Does `work` on the event loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Cancels what is under way, closes the connections, and ends the thread."""
        if self.process != os.getpid() or self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        # Collected on its own thread, it cannot wait for itself.
        if threading.current_thread() is not self._thread:
            self._thread.join()

    async def _end(self) -> None:
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        for task in under_way:
            task.cancel()
        try:
            await asyncio.gather(*under_way, return_exceptions=True)
            await self.http.close()
        finally:
            self._loop.stop()


def _factory(api_key: str | None, max_concurrency: int, timeout: float | None) -> Callable[[], _OwnLoop]:
    """Makes connections that carry the key, which nothing else holds."""
    headers = checked_headers(None, api_key)
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    return lambda: _OwnLoop(Connections(max_concurrency, timeout, headers=headers))
