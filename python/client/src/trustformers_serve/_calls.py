"""The server's routes as data: what each method of a client sends, and how its reply is read.

Nothing here does I/O, so `Client` and `AsyncClient` share all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from math import isfinite
from time import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast
from urllib.parse import quote, urlencode

from trustformers_serve import _codec
from trustformers_serve._codec import EVENTS, JSON, MSGPACK, Reply
from trustformers_serve.errors import ERROR_BY_CODE, ERROR_BY_OPENAI_CODE, ApiError, UnexpectedReplyError
from trustformers_serve.replies import BreakerReset, Health, ModelInfo, Priority, Readiness, Stats

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request, and what its reply means."""

    method: str
    target: str
    """Path and query, to be appended to the base URL."""
    read: Callable[[Reply], T]
    """The result of a reply; raises for an error reply."""
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    final_statuses: frozenset[int] = frozenset()
    """Error statuses that are the answer itself, and so are not retried."""


@dataclass(frozen=True)
class Options:
    """How a prediction is to be made; see `Client.predict`."""

    version: str | None
    priority: Priority | None
    timeout_ms: int | None
    parameters: Mapping[str, Any] | None
    as_numpy: bool | None

    def fields(self) -> dict[str, Any]:
        """The fields of the body that were given."""
        fields = {"priority": self.priority, "timeout_ms": self.timeout_ms, "parameters": self.parameters}
        return {name: value for name, value in fields.items() if value is not None}


def predict(model: str, data: Any, options: Options) -> Call[Any]:
    """One item."""
    content, found_numpy = _codec.pack({"data": data, **options.fields()})
    convert = _converter(options, found_numpy)
    return _predict_call(model, options, content, lambda reply: convert(member(checked(reply), "data")))


def predict_stream(model: str, data: Any, options: Options) -> tuple[Call[Any], Callable[[Any], Any]]:
    """One item of a generator; and what becomes of each of its results."""
    body = {"model": model, "data": data, **options.fields()}
    if options.version is not None:
        body["version"] = _version(options.version)
    content, found_numpy = _codec.to_json(body)
    # The server reads only JSON here.
    call = Call("POST", "/v1/inference/stream", checked, content, {"content-type": JSON, "accept": EVENTS})
    return call, _converter(options, found_numpy)


def predict_batch(
    model: str, instances: Iterable[Any], options: Options, raise_on_error: bool
) -> Call[list[Any]]:
    """Many items."""
    # The rows of an array are the instances.
    content, found_numpy = _codec.pack({"instances": list(instances), **options.fields()})
    found_numpy |= type(instances).__module__ == "numpy"
    convert = _converter(options, found_numpy)

    def read(reply: Reply) -> list[Any]:
        predictions: list[Any] = member(checked(reply), "predictions")
        results: list[Any] = []
        for index, prediction in enumerate(predictions):
            if "error" in prediction:
                error = api_error(reply, prediction["error"], index)
                if raise_on_error:
                    raise error
                results.append(error)
            else:
                results.append(convert(member(prediction, "data")))
        return results

    return _predict_call(model, options, content, read)


def embed(texts: str | Sequence[str], model: str | None) -> Call[npt.NDArray[np.float32]]:
    """Texts to vectors, over the OpenAI route."""
    inputs = [texts] if isinstance(texts, str) else list(texts)
    # Base64 is a third of the size of decimal numbers and keeps every bit.
    body: dict[str, Any] = {"input": inputs, "encoding_format": "base64"}
    if model is not None:
        body["model"] = model

    def read(reply: Reply) -> npt.NDArray[np.float32]:
        rows: list[Any] = member(checked(reply), "data")
        ordered = sorted(rows, key=lambda row: member(row, "index"))
        return _codec.embeddings([member(row, "embedding") for row in ordered])

    content, _ = _codec.to_json(body)
    return Call("POST", "/v1/embeddings", read, content, {"content-type": JSON, "accept": JSON})


def models() -> Call[list[ModelInfo]]:
    """Every model."""
    return _get("/models", lambda reply: member(checked(reply), "models"))


def model(name: str) -> Call[ModelInfo]:
    """One model."""
    return _get(f"/models/{_segment(name)}", checked)


def load_model(name: str, version: str | None) -> Call[ModelInfo]:
    """Loads a model and waits for it."""
    return Call("POST", f"/models/{_segment(name)}/load{_query(version)}", checked)


def unload_model(name: str, version: str | None) -> Call[ModelInfo]:
    """Unloads a model once it has answered what it holds."""
    return Call("POST", f"/models/{_segment(name)}/unload{_query(version)}", checked)


def reset_breaker(name: str, version: str | None) -> Call[BreakerReset]:
    """Lets requests in again to a model that was left alone."""
    return Call("POST", f"/admin/models/{_segment(name)}/reset_breaker{_query(version)}", checked)


def health() -> Call[Health]:
    """Whether the server answers at all."""
    return _get("/health", checked)


def ready() -> Call[Readiness]:
    """Whether every model serves; "not yet" is an answer here, not an error."""

    def read(reply: Reply) -> Readiness:
        body = checked(reply, also=503)
        return Readiness(member(body, "status"), tuple(member(body, "models")))

    return Call("GET", "/health/ready", read, final_statuses=frozenset({503}))


def metrics() -> Call[str]:
    """The metrics as Prometheus reads them."""

    def read(reply: Reply) -> str:
        return reply.body.decode() if reply.status == 200 else checked(reply)

    return _get("/metrics", read)


def stats() -> Call[Stats]:
    """The operator's view."""
    return _get("/admin/stats", checked)


def _get(target: str, read: Callable[[Reply], T]) -> Call[T]:
    return Call("GET", target, read)


def _predict_call(model: str, options: Options, content: bytes, read: Callable[[Reply], T]) -> Call[T]:
    target = f"/models/{_segment(model)}/predict{_query(options.version)}"
    return Call("POST", target, read, content, {"content-type": MSGPACK, "accept": MSGPACK})


def _segment(name: str) -> str:
    return quote(name, safe="")


def _query(version: str | None) -> str:
    return "" if version is None else "?" + urlencode({"version": _version(version)})


def _version(version: Any) -> str:
    if not isinstance(version, str):
        # 1.10 is another version than 1.1, but not another number.
        raise TypeError(f'version must be a text, as "1" is, not {version!r}')
    return version


def _converter(options: Options, found_numpy: bool) -> Callable[[Any], Any]:
    wanted = found_numpy if options.as_numpy is None else options.as_numpy
    return _codec.to_numpy if wanted else lambda value: value


def checked(reply: Reply, also: int = 200) -> Any:
    """The value of a reply that is no error, or whose status is `also`."""
    if reply.status in (200, also):
        return _codec.unpack(reply)
    try:
        value = _codec.unpack(reply)
    except UnexpectedReplyError:
        value = None
    body = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    raise api_error(reply, body.get("error"))


def member(value: Any, name: str) -> Any:
    """`value[name]`, which every reply of this server has."""
    try:
        return value[name]
    except (KeyError, TypeError):
        raise UnexpectedReplyError(f"a reply without {name!r}: {str(value)[:200]}") from None


def api_error(reply: Reply, error: Any, index: int | None = None) -> ApiError:
    """The exception of an error body; without one (a proxy's page), what the status line tells."""
    known = cast("dict[str, Any]", error) if isinstance(error, dict) else {}
    code = known.get("code")
    exceptions = ERROR_BY_CODE | ERROR_BY_OPENAI_CODE
    kind = exceptions.get(code, ApiError) if isinstance(code, str) else ApiError
    message = known.get("message") or f"HTTP {reply.status}: {reply.body[:200].decode(errors='replace')}"
    return kind(
        message,
        code=code,
        # An item's error has the status of its code; the reply's own is that of the whole.
        status=reply.status if index is None else None,
        request_id=known.get("request_id") or reply.headers.get("x-request-id"),
        retry_after=retry_after(reply),
        index=index,
    )


def retry_after(reply: Reply) -> float | None:
    """The seconds of a `Retry-After` header, which has seconds or a date (RFC 9110, 10.2.3)."""
    value = reply.headers.get("retry-after")
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time()
        except (ValueError, TypeError, OverflowError):
            return None
    return max(0.0, seconds) if isfinite(seconds) else None
