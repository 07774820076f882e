"""The client for threads: the server's routes as methods, over requests."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import MaxRetryError, NewConnectionError, ReadTimeoutError

from trustformers_serve import _calls, _generate
from trustformers_serve._calls import Call, Options
from trustformers_serve._codec import Reply
from trustformers_serve._endpoint import MOST_CONNECTIONS, checked_headers, checked_url, shown
from trustformers_serve._events import EventReader, ResultReader, refusal
from trustformers_serve._generate import TextReader
from trustformers_serve._limits import check_count
from trustformers_serve._retry import RetryPolicy
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
from trustformers_serve.streams import ResultStream, TextStream

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from typing_extensions import Unpack

    from trustformers_serve.generation import ChatOptions, GenerateOptions, StreamOptions

T = TypeVar("T")
R = TypeVar("R", bound=EventReader[Any])


class Client:
    """Calls a server; usable from several threads, and as a context manager that closes it.

    Arrays of numpy and tensors of torch may stand anywhere in the data of a request; they are sent as bytes,
    and whatever else has `tolist` as lists.
    A failed call raises a `TrustformersError`: one class for each error code of the server, and a
    `TransportError` where there was no reply.

    What cannot have run is tried again: a refused connection, and the answers 429 and 503, whose
    `Retry-After` is honoured. A request that may have run is never repeated, unless it is a GET or
    `repeat_unsafe` is set.

    Connections stay open from call to call.
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
        """Opens no connection yet.

        Args:
            base_url: Where the server is, `http://` or `https://`, with its path prefix if a proxy has one.
            api_key: Sent as `Authorization: Bearer`.
            timeout: Seconds for a connection, and for each silence while waiting for a reply; None for any
                time. A server that asks for a longer wait before a retry is not waited for.
            max_retries: How often a request is repeated; 0 never.
            retry_delay: Seconds before the first retry, doubled for each further one.
            verify_ssl: Whether a certificate must be valid.
            headers: Sent with every request.
            repeat_unsafe: Repeat also what may have run, and so may run twice: after a broken connection and
                every status from 500 on. Silence until the timeout is never repeated.
            max_connections: Most calls under way at once, each on a connection of its own. More wait for
                their turn, without a limit of time. Streams are not counted.

        Raises:
            ValueError: A number is out of range, or the URL, the key or a header cannot be sent.
        """
        self.base_url = checked_url(base_url)
        self._policy = RetryPolicy(max_retries, retry_delay, timeout, repeat_unsafe)
        check_count("max_connections", max_connections, 1, MOST_CONNECTIONS)
        self._max_connections = max_connections
        self._places = threading.BoundedSemaphore(max_connections)
        self._session = requests.Session()
        self._session.verify = verify_ssl
        self._session.headers.update(checked_headers(headers, api_key))
        if api_key is not None:
            self._session.auth = _BearerAuth(api_key)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_maxsize=max_connections, max_retries=0))

    def predict(
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
        """Runs a model on one item.

        Args:
            model: Its name.
            data: Of one input: nested lists or an array of the declared shape, without a batch
                dimension. Of several: a dict of them by name. Of a text model: a string.
                An array is checked and converted to the declared dtype, which costs least where it has
                that already. Its elements as `bytes`, in the declared dtype, row-major and in the
                server's byte order, will do too: only their number is checked then, and at most one
                declared dimension may be -1.
            version: One version instead of the default one.
            priority: How urgent it is.
            timeout_ms: Milliseconds in which it must be answered; then it is dropped.
            parameters: Of the model.
            as_numpy: Whether the result is arrays; by default it is when `data` has any.

        Returns:
            The output: nested lists or an array, or a dict of them by name where there are several.
            An array of floating point has float64, which holds what any model computes. What a Python
            function answers is an array only where it is numbers.

        Raises:
            SerializationError: The data cannot be sent; the message says what of it, and where that is.
            InvalidInputError: The data does not fit; the message names input, expected and got.
            ModelNotFoundError: There is no such model.
            QueueFullError: The server is overloaded, and still was after the retries.
            DeadlineExceededError: It was not answered in time.
        """
        return self._send(
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
    ) -> ResultStream:
        """Runs a model that is a generator, and gives what it yields as it comes.

            with client.predict_stream("count", 3) as results:
                for result in results: ...

        The model is a Python function that is served with `register`, or with an `App`. Data and results are
        sent as JSON, arrays as lists. Leaving the block, or `close`, ends the generator early. Only what was
        refused before it began is tried again.

        Args:
            model: Its name.
            data: As for `predict`, like the other options.
            version: One version instead of the default one.
            priority: How urgent it is.
            timeout_ms: Milliseconds in which its last result must have come.
            as_numpy: Whether results are arrays; by default they are when `data` has any.

        Raises:
            InvalidInputError: The data does not fit, or the model answers all at once.
            ModelFailedError: It raised; before its first result here, later in the iteration.
        """
        call, convert = _calls.predict_stream(
            model, data, Options(version, priority, timeout_ms, None, as_numpy)
        )
        return ResultStream(*self._begin(call, lambda reply: ResultReader(reply, convert)))

    def predict_batch(
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
        """Runs a model on many items, which the server may batch together and with other requests.

        Args:
            model: Its name.
            instances: The items, each as `data` of `predict`; the rows of an array.
            version: As for `predict`, like the other options.
            priority: How urgent they are.
            timeout_ms: Milliseconds in which each must be answered.
            parameters: Of the model.
            as_numpy: Whether the results are arrays.
            raise_on_error: Whether the first item that failed raises its error, with its place as
                `index`. Otherwise errors stand in the list in place of their results, and only a
                failure of the request as a whole is raised.

        Returns:
            The results in the order of the instances.
        """
        options = Options(version, priority, timeout_ms, parameters, as_numpy)
        return self._send(_calls.predict_batch(model, instances, options, raise_on_error))

    def embed(self, texts: str | Sequence[str], model: str | None = None) -> npt.NDArray[np.float32]:
        """Vectors of texts, as an array [texts, dimensions]; one text gives one row.

        The model may be left out where the server has only one for texts.
        """
        return self._send(_calls.embed(texts, model))

    def generate(
        self, prompt: str | Sequence[int], *, model: str | None = None, **options: Unpack[GenerateOptions]
    ) -> Generation:
        """Goes on from a prompt, and answers when the text has ended.

        Args:
            prompt: A text, or token ids.
            model: Its name; may be left out where the server has only one for texts.
            options: See `GenerateOptions`.

        Raises:
            InvalidInputError: The prompt or an option does not fit; the message says what would.
            QueueFullError: The server is overloaded, and still was after the retries.
        """
        return self._send(_generate.completion(prompt, model, options))

    def stream(
        self, prompt: str | Sequence[int], *, model: str | None = None, **options: Unpack[StreamOptions]
    ) -> TextStream:
        """Goes on from a prompt, piece by piece; see `generate` and `TextStream`.

        Only what was refused before it began is tried again.
        """
        call = _generate.completion(prompt, model, options, stream=True)
        return TextStream(*self._begin(call, TextReader))

    @overload
    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        stream: Literal[False] = False,
        **options: Unpack[ChatOptions],
    ) -> Generation: ...

    @overload
    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        stream: Literal[True],
        **options: Unpack[ChatOptions],
    ) -> TextStream: ...

    def chat(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        stream: bool = False,
        **options: Unpack[ChatOptions],
    ) -> Generation | TextStream:
        """Answers messages, each a dict with `role` and `content`; a text is one message of a user.

        Args:
            messages: The conversation so far.
            model: Its name; may be left out where the server has only one for texts.
            stream: Whether the answer comes piece by piece, as of `stream`.
            options: See `ChatOptions`.
        """
        call = _generate.chat(messages, model, options, stream=stream)
        return TextStream(*self._begin(call, TextReader)) if stream else self._send(call)

    def models(self) -> list[ModelInfo]:
        """Every model of the server."""
        return self._send(_calls.models())

    def model(self, name: str) -> ModelInfo:
        """One model: its versions and their state, its inputs and outputs."""
        return self._send(_calls.model(name))

    def load_model(self, name: str, version: str | None = None) -> ModelInfo:
        """Loads a model and returns when it serves; `ModelFailedError` has the reason if it cannot."""
        return self._send(_calls.load_model(name, version))

    def unload_model(self, name: str, version: str | None = None) -> ModelInfo:
        """Unloads a model once it has answered the requests that it holds."""
        return self._send(_calls.unload_model(name, version))

    def reset_breaker(self, name: str, version: str | None = None) -> BreakerReset:
        """Lets requests in again to a model that was left alone because it kept failing."""
        return self._send(_calls.reset_breaker(name, version))

    def health(self) -> Health:
        """Whether the server answers, and its version."""
        return self._send(_calls.health())

    def ready(self) -> Readiness:
        """Whether every model serves, and the state of each; true in a condition when they do."""
        return self._send(_calls.ready())

    def metrics(self) -> str:
        """The metrics, in Prometheus' text format."""
        return self._send(_calls.metrics())

    def stats(self) -> Stats:
        """What the server does and did, for each model version.

        `batching` holds throughput, percentiles of latency and waiting, batch sizes, padding, utilisation
        and the fitted cost model; `suggestions`, changes of its settings with what they would gain.
        """
        return self._send(_calls.stats())

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()

    def __repr__(self) -> str:
        """Where it calls, and how patiently; never its key."""
        return f"<Client {shown(self.base_url)} {self._policy}>"

    def __getstate__(self) -> dict[str, Any]:
        """All but what waits here for its turn, so that a client can go to another process."""
        return {name: value for name, value in vars(self).items() if name != "_places"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The client of that state."""
        vars(self).update(state)
        self._places = threading.BoundedSemaphore(self._max_connections)

    def __enter__(self) -> Client:
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes the connections."""
        self.close()

    def _send(self, call: Call[T]) -> T:
        return call.read(self._settled(call))

    def _begin(
        self, call: Call[Any], reader: Callable[[Reply], R]
    ) -> tuple[R, Iterator[bytes], Callable[[], None]]:
        reply = self._settled(call, stream=True)
        if not isinstance(reply, _Begun):
            raise refusal(call, reply)
        try:
            return reader(reply), _chunks(reply.response), reply.response.close
        except UnexpectedReplyError:
            reply.response.close()
            raise

    def _settled(self, call: Call[Any], *, stream: bool = False) -> Reply:
        """The reply that stands after as many retries as the policy allows, or raises."""
        for retries in count():
            # Those who hold streams keep nobody waiting.
            with nullcontext() if stream else self._places:
                outcome = self._exchange(call, stream)
            wait = self._policy.wait_seconds(call, outcome, retries, random.random())  # noqa: S311
            if wait is None:
                if isinstance(outcome, TransportError):
                    raise outcome
                return outcome
            time.sleep(wait)
        raise AssertionError("count() does not end")

    def _exchange(self, call: Call[Any], stream: bool) -> Reply | TransportError:
        """Where `stream` is set, a reply that is no error is left open."""
        url = self.base_url + call.target
        try:
            response = self._session.request(
                call.method,
                url,
                data=call.content,
                headers=dict(call.headers),
                timeout=self._policy.timeout,
                allow_redirects=False,
                stream=stream,
            )
            headers = {name.lower(): value for name, value in response.headers.items()}
            if stream and response.status_code == 200:
                return _Begun(response.status_code, headers, b"", response)
            return Reply(response.status_code, headers, response.content)
        except requests.RequestException as error:
            failure = _failure(error)
            failure.__cause__ = error
            return failure


@dataclass(frozen=True)
class _Begun(Reply):
    """A reply whose body is yet to come."""

    response: requests.Response


def _chunks(response: requests.Response) -> Iterator[bytes]:
    try:
        # As they come, when no size is asked for.
        yield from response.iter_content(None)
    except requests.RequestException as error:
        raise _failure(error) from error


def _failure(error: requests.RequestException) -> TransportError:
    reason = error.args[0] if error.args else None
    if isinstance(reason, MaxRetryError) and isinstance(reason.reason, NewConnectionError):
        return ConnectionFailedError(f"cannot connect: {reason.reason}")
    if isinstance(error, requests.ConnectTimeout):
        return ConnectionFailedError(f"cannot connect: {error}")
    if isinstance(error, requests.Timeout) or isinstance(reason, ReadTimeoutError):
        return ReplyTimeoutError(f"no reply in time: {error}")
    return ConnectionBrokenError(f"no reply: {error}")


class _BearerAuth(AuthBase):
    """A header set as authentication, because requests lets a netrc file replace a plain header."""

    def __init__(self, api_key: str) -> None:
        self._value = f"Bearer {api_key}"

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self._value
        return request
