"""TrustformeRS Serve: configure, launch and call the inference server from Python.

- `ServerConfig`, `Server`: a server in this process, on Rust threads.
- `Client`, `AsyncClient`: callers of a server anywhere.
- `autobatch`, `Batcher`: batching in this process, of any Python function.
- `DynamicBatcher`, `TokenBatcher`: batching of record streams on an event loop.
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
    BatchResultsError,
    BodyTooLargeError,
    BreakerOpenError,
    ConfigError,
    ConnectionBrokenError,
    ConnectionFailedError,
    DeadlineExceededError,
    ExecutorError,
    HeadersTooLargeError,
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
    ServerNotReadyError,
    ServerStartError,
    ShuttingDownError,
    TransportError,
    TrustformersError,
    UnexpectedReplyError,
    UnsupportedMediaTypeError,
    UriTooLongError,
    VersionNotFoundError,
)
from trustformers_serve.server import Server  # noqa: E402

if TYPE_CHECKING:
    from trustformers_serve.async_client import AsyncClient
    from trustformers_serve.batcher import Batcher, BatcherMetrics
    from trustformers_serve.client import Client
    from trustformers_serve.decorators import autobatch
    from trustformers_serve.dynamic_batcher import BatchStats, CostEstimator, DynamicBatcher
    from trustformers_serve.token_batcher import Prompt, TokenBatcher, TokenEstimator

_LAZY = {
    "AsyncClient": "trustformers_serve.async_client",
    "BatchStats": "trustformers_serve.dynamic_batcher",
    "Batcher": "trustformers_serve.batcher",
    "BatcherMetrics": "trustformers_serve.batcher",
    "Client": "trustformers_serve.client",
    "CostEstimator": "trustformers_serve.dynamic_batcher",
    "DynamicBatcher": "trustformers_serve.dynamic_batcher",
    "Prompt": "trustformers_serve.token_batcher",
    "TokenBatcher": "trustformers_serve.token_batcher",
    "TokenEstimator": "trustformers_serve.token_batcher",
    "autobatch": "trustformers_serve.decorators",
}

__all__ = [
    "ApiError",
    "AsyncClient",
    "BatchResultsError",
    "BatchStats",
    "Batcher",
    "BatcherClosedError",
    "BatcherMetrics",
    "BodyTooLargeError",
    "BreakerOpenError",
    "Client",
    "ConfigError",
    "ConnectionBrokenError",
    "ConnectionFailedError",
    "CostEstimator",
    "DeadlineExceededError",
    "DynamicBatcher",
    "ExecutorError",
    "HeadersTooLargeError",
    "InvalidInputError",
    "MalformedRequestError",
    "MethodNotAllowedError",
    "ModelFailedError",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "OverloadedError",
    "PriorityNotAllowedError",
    "Prompt",
    "QueueFullError",
    "ReplyTimeoutError",
    "RequestTimeoutError",
    "RouteNotFoundError",
    "Server",
    "ServerConfig",
    "ServerNotReadyError",
    "ServerStartError",
    "ShuttingDownError",
    "TokenBatcher",
    "TokenEstimator",
    "TransportError",
    "TrustformersError",
    "UnexpectedReplyError",
    "UnsupportedMediaTypeError",
    "UriTooLongError",
    "VersionNotFoundError",
    "__version__",
    "autobatch",
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
