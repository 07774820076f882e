"""TrustformeRS Serve: configure, launch and call the inference server from Python.

- `ServerConfig`, `Server`: a server in this process, on Rust threads.
- `Client`, `AsyncClient`: callers of a server anywhere.
- `autobatch`, `Batcher`: batching in this process, of any Python function.
- `TrustformersError` and its subclasses: one class for each error code of the server.

Importing this package loads LibTorch's libraries but never imports torch; the HTTP libraries and
numpy are imported when a client is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from trustformers_serve import _libtorch

# The extension is linked against these libraries and does not know where they are.
_libtorch.load()

from trustformers_serve._core import __version__  # noqa: E402
from trustformers_serve.config import ServerConfig  # noqa: E402
from trustformers_serve.errors import (  # noqa: E402
    ApiError,
    BatcherClosedError,
    BodyTooLargeError,
    BreakerOpenError,
    ConfigError,
    ConfigurationError,
    ConnectionBrokenError,
    ConnectionFailedError,
    DeadlineExceededError,
    ExecutorError,
    HeadersTooLargeError,
    InferenceError,
    InvalidInputError,
    MalformedRequestError,
    MethodNotAllowedError,
    ModelFailedError,
    ModelNotFoundError,
    ModelNotReadyError,
    OverloadedError,
    PriorityNotAllowedError,
    QueueFullError,
    ReplyTimeoutError,
    RequestTimeoutError,
    RouteNotFoundError,
    SerializationError,
    ServerNotReadyError,
    ServerStartError,
    ShuttingDownError,
    TransportError,
    TrustformersError,
    UnexpectedReplyError,
    UnsupportedMediaTypeError,
    UriTooLongError,
    ValidationError,
    VersionNotFoundError,
)
from trustformers_serve.registry import register  # noqa: E402
from trustformers_serve.server import Server  # noqa: E402
from trustformers_serve.serving import serve  # noqa: E402

if TYPE_CHECKING:
    from trustformers_serve.async_client import AsyncClient
    from trustformers_serve.batcher import Batcher, BatcherMetrics
    from trustformers_serve.client import Client
    from trustformers_serve.decorators import autobatch

_LAZY = {
    "AsyncClient": "trustformers_serve.async_client",
    "Batcher": "trustformers_serve.batcher",
    "BatcherMetrics": "trustformers_serve.batcher",
    "Client": "trustformers_serve.client",
    "autobatch": "trustformers_serve.decorators",
}

__all__ = [
    "ApiError",
    "AsyncClient",
    "Batcher",
    "BatcherClosedError",
    "BatcherMetrics",
    "BodyTooLargeError",
    "BreakerOpenError",
    "Client",
    "ConfigError",
    "ConfigurationError",
    "ConnectionBrokenError",
    "ConnectionFailedError",
    "DeadlineExceededError",
    "ExecutorError",
    "HeadersTooLargeError",
    "InferenceError",
    "InvalidInputError",
    "MalformedRequestError",
    "MethodNotAllowedError",
    "ModelFailedError",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "OverloadedError",
    "PriorityNotAllowedError",
    "QueueFullError",
    "ReplyTimeoutError",
    "RequestTimeoutError",
    "RouteNotFoundError",
    "SerializationError",
    "Server",
    "ServerConfig",
    "ServerNotReadyError",
    "ServerStartError",
    "ShuttingDownError",
    "TransportError",
    "TrustformersError",
    "UnexpectedReplyError",
    "UnsupportedMediaTypeError",
    "UriTooLongError",
    "ValidationError",
    "VersionNotFoundError",
    "__version__",
    "autobatch",
    "register",
    "serve",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    # Kept, so that this function is asked only once for each name.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
