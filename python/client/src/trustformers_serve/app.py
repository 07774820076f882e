"""`App`: the models of a program, batched as their annotations say."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from trustformers_serve import _functions, _models, _threads
from trustformers_serve._in_flight import InFlight
from trustformers_serve._limits import MOST, check_count, check_time
from trustformers_serve.annotations import require
from trustformers_serve.batching import Breaker, FunctionBatcher, Settings
from trustformers_serve.errors import ConfigurationError
from trustformers_serve.registry import ModelInfo, Registry

if TYPE_CHECKING:
    from trustformers_serve.config import ServerConfig
    from trustformers_serve.server import Server

F = TypeVar("F", bound=Callable[..., Any])

_QUEUED_BATCHES = 16
"""How many batches may wait for a model; further callers wait for a place."""


class App:
    """Functions that are models, under names and versions.

        app = App(name="texts")

        @app.model("length")
        def length(texts: list[str]) -> list[int]:
            return [len(text) for text in texts]

        await app.predict("length", "four")  # 4

    Attributes:
        name: The app's name.
        enable_batching: Whether callers share batches; otherwise each item runs alone.
        max_batch_size: Most items in a batch.
        batch_timeout_ms: Longest wait of an item for others to join it, in milliseconds.
        registry: The models.
    """

    def __init__(
        self,
        name: str = "app",
        enable_batching: bool = True,
        max_batch_size: int = 32,
        batch_timeout_ms: float = 10.0,
    ) -> None:
        """Starts nothing yet.

        Raises:
            TypeError: A limit is no number.
            ValueError: It is out of range.
        """
        check_time("batch_timeout_ms", batch_timeout_ms, may_be_zero=True)
        check_count("max_batch_size", max_batch_size, 1, MOST // _QUEUED_BATCHES)
        self.name = name
        self.enable_batching = enable_batching
        self.max_batch_size = max_batch_size
        self.batch_timeout_ms = batch_timeout_ms
        self.registry = Registry()
        self._in_flight = InFlight()
        # Held here, so that one that the caller forgets goes on.
        self._servers: list[Server] = []

    def model(
        self, name: str, version: str = "1", streaming: bool = False, *, batched: bool | None = None
    ) -> Callable[[F], F]:
        """Makes a function a model of this app, and returns it unchanged.

        Its annotations say what an item is. A function of one `list[T]` that returns `list[U]` takes a
        whole batch in a call, and returns one result an item; where both are lists of the same type,
        `batched` says whether that is a batch. Any other function takes one item a call; with several
        parameters, an item is a mapping of them. A generator function streams. A plain function runs off
        the event loop.

        Args:
            name: The model's name.
            version: Its version.
            streaming: Whether the function, which is no generator function, returns an iterator of pieces,
                or a coroutine function an asynchronous one.
            batched: Whether the function takes a whole batch in a call.

        Raises:
            DecorationError: The function cannot be a model, or it is left open whether it takes batches.
            ConfigurationError: The name cannot be one, or is another function's already.
        """
        if callable(name):
            raise _functions.without_parentheses("app.model", name)

        def decorate(function: F) -> F:
            self.registry.add(
                self._info(function, name, version, streaming, batched, _functions.names_of_caller())
            )
            return function

        return decorate

    async def predict(self, name: str, item: Any, version: str | None = None) -> Any:
        """The result of `item`; of a model that streams, an asynchronous iterator of its pieces.

        Args:
            name: The model's name.
            item: The value of the model's parameter, or a mapping of several.
            version: By default the newest.

        Raises:
            ModelNotFoundError: There is no such model.
            ValidationError: The item does not fit the annotations.
            InferenceError: The model's function raised (`__cause__`).
            ExecutorError: It returned no list of the right length.
        """
        info = self.registry.get(name, version)
        args, kwargs = info.arguments(item)
        if info.streaming:
            return self._pieces(info.function(*args, **kwargs))
        with self._in_flight.one():
            if inspect.iscoroutinefunction(info.function):
                return await info.function(*args, **kwargs)
            return await _threads.run(info.function, *args, **kwargs)

    async def stop(self) -> None:
        """Returns when all that was called before with `predict` has been answered, streams to their ends.

        The next call starts the app again. What the calling task itself is in the midst of is not waited for.
        """
        functions = [info.function for info in self.registry.all()]
        batchers = [getattr(function, "batcher", None) for function in functions]
        await asyncio.gather(
            *(batcher.stop() for batcher in batchers if isinstance(batcher, FunctionBatcher)),
            self._in_flight.ended(),
        )

    def serve(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        block: bool = True,
        *,
        config: ServerConfig | None = None,
        threads: int | None = None,
    ) -> Server:
        """Serves the models over HTTP, as `trustformers_serve.serve` does those of `register`.

        Where it does not block, the server runs until it is stopped, or the app is no more.

        Raises:
            ConfigurationError: The app has no models.
            ServerStartError: The address cannot be bound.
        """
        from trustformers_serve import serving

        if not self.registry.all():
            raise ConfigurationError(f"{self!r}: put `@app.model(name)` above a function")
        most = serving.THREADS if threads is None else threads
        server = serving.serve(host, port, block, config=config, registry=self.registry, threads=most)
        self._servers = [*(known for known in self._servers if known.running), server]
        return server

    def __repr__(self) -> str:
        """Its name and its models'."""
        models = ", ".join(f"{info.name}@{info.version}" for info in self.registry.all())
        return f"<App {self.name!r} of {models or 'no models'}>"

    async def _pieces(self, stream: Any) -> AsyncIterator[Any]:
        with self._in_flight.one() as resumed:
            async with contextlib.aclosing(_models.pieces(stream)) as pieces:
                async for piece in pieces:
                    yield piece
                    resumed()

    def _info(
        self,
        function: Callable[..., Any],
        name: str,
        version: str,
        streaming: bool,
        batched: bool | None,
        names: dict[str, Any],
    ) -> ModelInfo:
        shape = _functions.shape_of_model(function, names, streaming)
        whole_batches = _models.takes_batches(function, shape, batched)
        if whole_batches:
            shape = _functions.shape_of_one(shape)
        for parameter, kind in shape.inputs.items():
            require(kind, f"{parameter} of {_functions.name(function)}")
        if shape.streaming:
            made = _models.per_stream(function, name)
        elif not whole_batches:
            made = _models.per_item(function, name)
        elif self.enable_batching:
            made = _models.per_batch(function, name, self._settings())
        else:
            made = _models.alone(function, name)
        return ModelInfo(name, version, made, shape.streaming, shape.inputs, shape.output)

    def _settings(self) -> Settings:
        return Settings(
            max_batch_size=self.max_batch_size,
            max_wait_time=self.batch_timeout_ms / 1000,
            max_queue_size=_QUEUED_BATCHES * self.max_batch_size,
            isolation="none",
            enable_priority_scheduling=False,
            breaker=Breaker(failures=0),
            backpressure="block",
        )


def load_app(path: str) -> App:
    """The app that `path` leads to: `module:attribute`, as in `package.module:app`.

    Raises:
        ConfigurationError: It is of another form, the module cannot be imported, or the attribute is not
            there or no `App`.
    """
    module_name, separator, attribute = path.partition(":")
    if not (module_name and separator and attribute) or ":" in attribute:
        raise ConfigurationError(f"Expected format 'module:attribute', as in 'main:app', not {path!r}")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigurationError(
            f"Could not import {module_name!r}: {type(error).__name__}: {error}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigurationError(f"{module_name!r} has no attribute {attribute!r}")
        found = getattr(found, part)
    if not isinstance(found, App):
        raise ConfigurationError(f"{path!r} is not an App, but a {type(found).__name__}")
    return found
