"""Every exception that this package raises, and the one table from the server's error codes to them.

TrustformersError
    ConfigError                 a configuration that the server refuses
        ConfigurationError      an app or a registry that is put together wrongly
            DecorationError     a decorator on a function that it cannot be for
    ServerStartError            a server that could not start
        ServerNotReadyError     it started, but a model failed or still loads
    TransportError              no reply came
        ConnectionFailedError   nothing was sent; safe to repeat
        ConnectionBrokenError   the request may have run
        ReplyTimeoutError       the request may have run, and may still
    UnexpectedReplyError        a reply that this server does not give
    MissingExtraError           a package that only a part of this one needs
    ExecutorError               an executor that failed a whole batch
        InferenceError          a model's function that raised
        BatchResultsError       what a DynamicBatcher's function returned is no result for each record
    ItemTooLargeError           an item above a batcher's `max_item_bytes`
    SerializationError          a value that cannot be sent
    BatcherClosedError          a batcher that takes nothing more
    ApiError                    an error reply of the server, by its code:
        MalformedRequestError, ModelNotFoundError, ... (see ERROR_BY_CODE)
        InvalidInputError
            ValidationError     the same, found in this process
"""

from __future__ import annotations


class TrustformersError(Exception):
    """Base of every exception of this package; `str()` is the server's own message.

    Attributes:
        message: What happened, in the words of whoever noticed it.
        code: The server's error code ("queue_full"), or None where there was no error reply.
        status: The HTTP status of the reply, or None where there was none.
        request_id: The id under which the server's log has the request, or None.
        retry_after: Seconds after which the server asks to try again, or None.
        index: Which instance of `predict_batch` failed, or None.
    """

    code: str | None = None
    status: int | None = None

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        index: int | None = None,
    ) -> None:
        """Keeps what is known of the failure; see the attributes of the class."""
        super().__init__(message)
        self.message = message
        if status is not None:
            self.status = status
        self.request_id = request_id
        self.retry_after = retry_after
        self.index = index

    def __repr__(self) -> str:
        """Its message and whatever else is known of the failure."""
        names = ("code", "status", "request_id", "retry_after", "index")
        known = {name: value for name in names if (value := getattr(self, name, None)) is not None}
        details = "".join(f", {name}={value!r}" for name, value in known.items())
        return f"{type(self).__name__}({str(self)!r}{details})"


class ConfigError(TrustformersError, ValueError):
    """A configuration that the server refuses; the message names the place, the key and the remedy."""


class ConfigurationError(ConfigError):
    """An app that cannot be loaded, or a model that cannot be registered; the message names it."""


class DecorationError(ConfigurationError, TypeError):
    """A decorator on a function that it cannot be for; the message names the function."""


class ServerStartError(TrustformersError):
    """A server that could not start: its address is taken, say, or the device asked for is absent."""


class ServerNotReadyError(ServerStartError):
    """A server that started, with models that failed to load or still load; the message names them."""


class TransportError(TrustformersError):
    """No reply came."""


class ConnectionFailedError(TransportError):
    """No connection was made and nothing was sent, so the request did not run."""


class ConnectionBrokenError(TransportError):
    """The connection ended before the reply did; the request may have run."""


class ReplyTimeoutError(TransportError):
    """No reply within the client's `timeout`; the request may have run, or may still run."""


class UnexpectedReplyError(TrustformersError):
    """A reply that this server does not give: something else listens there, or a proxy answered."""


class ExecutorError(TrustformersError, RuntimeError):
    """An executor raised (`__cause__`) or returned no list of the right length; the message names it."""


class ItemTooLargeError(TrustformersError, ValueError):
    """An item has more bytes than `max_item_bytes`; the message names its executor or its function.

    Over HTTP it is refused as any other item that is wrong.
    """

    code = "invalid_input"


class MissingExtraError(TrustformersError, ImportError):
    """A package is not installed that only a part of this one needs; the message says which extra has it."""

    def __init__(self, part: str, extra: str, package: str | None) -> None:
        """Says that `part` needs `package`, and that `extra` brings it."""
        message = f"{part} needs {package}: pip install 'trustformers-serve[{extra}]'"
        super().__init__(message)
        self.name = package


class InferenceError(ExecutorError):
    """A model's function raised (`__cause__`); the message names the model."""


class SerializationError(TrustformersError, TypeError):
    """A value that neither JSON nor MessagePack can carry; the message names its type."""


class BatchResultsError(ExecutorError, ValueError):
    """The function of a `DynamicBatcher` returned no list of as many results as it was given records."""


class BatcherClosedError(TrustformersError, RuntimeError):
    """The batcher is closed or not running, or was closed before the item was done."""


class ApiError(TrustformersError):
    """An error reply of the server; a code unknown to this version of the client has this class itself."""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        status: int | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
        index: int | None = None,
    ) -> None:
        """Keeps what the reply said; `code` and `status` default to those of the class."""
        super().__init__(message, status=status, request_id=request_id, retry_after=retry_after, index=index)
        if code is not None:
            self.code = code


class MalformedRequestError(ApiError):
    """The body is not JSON or MessagePack, or lacks a field; or what was sent is not HTTP."""

    code = "malformed_request"
    status = 400


class PriorityNotAllowedError(ApiError):
    """The request asks for a higher priority than `batching.max_priority`."""

    code = "priority_not_allowed"
    status = 403


class ModelNotFoundError(ApiError):
    """The server has no model of that name."""

    code = "model_not_found"
    status = 404


class VersionNotFoundError(ModelNotFoundError):
    """The model has no such version."""

    code = "version_not_found"
    status = 404


class RouteNotFoundError(ApiError):
    """The server has no such route: another version of it, or another base URL."""

    code = "route_not_found"
    status = 404


class MethodNotAllowedError(ApiError):
    """The route has no such method."""

    code = "method_not_allowed"
    status = 405


class RequestTimeoutError(ApiError):
    """The request's head or body arrived too slowly."""

    code = "request_timeout"
    status = 408


class BodyTooLargeError(ApiError):
    """The body is larger than `server.max_body_size`."""

    code = "body_too_large"
    status = 413


class UriTooLongError(ApiError):
    """The request's URI is longer than the server reads."""

    code = "uri_too_long"
    status = 414


class UnsupportedMediaTypeError(ApiError):
    """The body's media type is neither JSON nor MessagePack."""

    code = "unsupported_media_type"
    status = 415


class InvalidInputError(ApiError):
    """The data does not fit the model's inputs, or can never fit its limits."""

    code = "invalid_input"
    status = 422


class ValidationError(InvalidInputError, ValueError):
    """A value that does not fit a function's schema or annotation; the message names the place."""


class InputTypeError(ValidationError, TypeError):
    """A value that is neither a mapping nor an instance of a function's schema."""


class HeadersTooLargeError(ApiError):
    """The request's headers are more, or longer, than the server reads."""

    code = "headers_too_large"
    status = 431


class OverloadedError(ApiError):
    """The request would wait far longer than `latency_slo`; `retry_after` says when to try again."""

    code = "overloaded"
    status = 429


class AuthenticationError(ApiError):
    """The API key is missing or wrong."""

    code = "invalid_api_key"
    status = 401


class QueueFullError(OverloadedError):
    """The queue is full; `retry_after` says when to try a server's again."""

    code = "queue_full"
    status = 429


class ModelFailedError(ApiError):
    """The model failed to run or to load; the message has its reason."""

    code = "model_failed"
    status = 500


class BreakerOpenError(ApiError):
    """The model keeps failing and is left alone; `retry_after` says until when."""

    code = "breaker_open"
    status = 503


class ModelNotReadyError(ApiError):
    """The model is loading, unloaded or failed."""

    code = "model_not_ready"
    status = 503


class ShuttingDownError(ApiError):
    """The server finishes what is in flight and takes no more."""

    code = "shutting_down"
    status = 503


class DeadlineExceededError(ApiError):
    """The request waited or ran longer than its `timeout_ms` or the server's `request_timeout`."""

    code = "deadline_exceeded"
    status = 504


ERROR_BY_CODE: dict[str, type[ApiError]] = {
    str(error.code): error
    for error in (
        MalformedRequestError,
        PriorityNotAllowedError,
        ModelNotFoundError,
        VersionNotFoundError,
        RouteNotFoundError,
        MethodNotAllowedError,
        RequestTimeoutError,
        BodyTooLargeError,
        UriTooLongError,
        UnsupportedMediaTypeError,
        InvalidInputError,
        QueueFullError,
        HeadersTooLargeError,
        OverloadedError,
        ModelFailedError,
        BreakerOpenError,
        ModelNotReadyError,
        ShuttingDownError,
        DeadlineExceededError,
    )
}
"""The exception of each error code of the server."""

ERROR_BY_OPENAI_CODE: dict[str, type[ApiError]] = {
    "context_length_exceeded": InvalidInputError,
    "invalid_api_key": AuthenticationError,
    "insufficient_quota": OverloadedError,
    "rate_limit_exceeded": OverloadedError,
    "server_error": ModelFailedError,
}
"""The exception of each code that is OpenAI's own, which the server's routes for OpenAI's API have."""
