"""TrustformeRS Serve: configure, launch and call the inference server from Python.

- `ServerConfig`, `Server`: a server in this process, on Rust threads.
- `Client`, `AsyncClient`: callers of a server anywhere.
- `autobatch`, `Batcher`: batching in this process, of any Python function, over threads.
- `batch`: the same over the callers of an event loop; `register`, `registry`: functions as models.
- `App`, `load_app`: models that are batched as their annotations say.
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
    AuthenticationError,
    BatcherClosedError,
    BatchResultsError,
    BodyTooLargeError,
    BreakerOpenError,
    ConfigError,
    ConfigurationError,
    ConnectionBrokenError,
    ConnectionFailedError,
    DeadlineExceededError,
    DecorationError,
    ExecutorError,
    HeadersTooLargeError,
    InferenceError,
    InputTypeError,
    InvalidInputError,
    ItemTooLargeError,
    MalformedRequestError,
    MethodNotAllowedError,
    MissingExtraError,
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
from trustformers_serve.server import Server  # noqa: E402

if TYPE_CHECKING:
    from trustformers_serve import registry
    from trustformers_serve.annotations import Tensor
    from trustformers_serve.app import App, load_app
    from trustformers_serve.async_client import AsyncClient
    from trustformers_serve.batcher import Batcher, BatcherMetrics
    from trustformers_serve.batching import Breaker, batch
    from trustformers_serve.client import Client
    from trustformers_serve.decorators import autobatch
    from trustformers_serve.dynamic_batcher import BatchStats, CostEstimator, DynamicBatcher
    from trustformers_serve.registry import ModelInfo, Registry, register
    from trustformers_serve.serving import serve
    from trustformers_serve.token_batcher import Prompt, TokenBatcher, TokenEstimator

_LAZY = {
    "App": "trustformers_serve.app",
    "AsyncClient": "trustformers_serve.async_client",
    "BatchStats": "trustformers_serve.dynamic_batcher",
    "Batcher": "trustformers_serve.batcher",
    "BatcherMetrics": "trustformers_serve.batcher",
    "Client": "trustformers_serve.client",
    "Breaker": "trustformers_serve.batching",
    "ModelInfo": "trustformers_serve.registry",
    "Registry": "trustformers_serve.registry",
    "Tensor": "trustformers_serve.annotations",
    "CostEstimator": "trustformers_serve.dynamic_batcher",
    "DynamicBatcher": "trustformers_serve.dynamic_batcher",
    "Prompt": "trustformers_serve.token_batcher",
    "TokenBatcher": "trustformers_serve.token_batcher",
    "TokenEstimator": "trustformers_serve.token_batcher",
    "autobatch": "trustformers_serve.decorators",
    "batch": "trustformers_serve.batching",
    "load_app": "trustformers_serve.app",
    "register": "trustformers_serve.registry",
    "serve": "trustformers_serve.serving",
}

__all__ = [
    "ApiError",
    "App",
    "AsyncClient",
    "AuthenticationError",
    "BatchResultsError",
    "BatchStats",
    "Batcher",
    "BatcherClosedError",
    "BatcherMetrics",
    "BodyTooLargeError",
    "Breaker",
    "BreakerOpenError",
    "Client",
    "ConfigError",
    "ConfigurationError",
    "ConnectionBrokenError",
    "ConnectionFailedError",
    "CostEstimator",
    "DeadlineExceededError",
    "DecorationError",
    "DynamicBatcher",
    "ExecutorError",
    "HeadersTooLargeError",
    "InferenceError",
    "InputTypeError",
    "InvalidInputError",
    "ItemTooLargeError",
    "MalformedRequestError",
    "MethodNotAllowedError",
    "MissingExtraError",
    "ModelFailedError",
    "ModelInfo",
    "ModelNotFoundError",
    "ModelNotReadyError",
    "OverloadedError",
    "PriorityNotAllowedError",
    "Prompt",
    "QueueFullError",
    "Registry",
    "ReplyTimeoutError",
    "RequestTimeoutError",
    "RouteNotFoundError",
    "SerializationError",
    "Server",
    "ServerConfig",
    "ServerNotReadyError",
    "ServerStartError",
    "ShuttingDownError",
    "Tensor",
    "TokenBatcher",
    "TokenEstimator",
    "TransportError",
    "TrustformersError",
    "UnexpectedReplyError",
    "UnsupportedMediaTypeError",
    "UriTooLongError",
    "ValidationError",
    "VersionNotFoundError",
    "__version__",
    "autobatch",
    "batch",
    "load_app",
    "register",
    "registry",
    "serve",
]


def __getattr__(name: str) -> object:
    if name == "registry":
        return importlib.import_module("trustformers_serve.registry")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    # Kept, so that this function is asked only once for each name.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "registry"})
