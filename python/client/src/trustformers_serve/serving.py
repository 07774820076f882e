"""Models of this process behind the server's HTTP routes.

The server reads requests, queues, counts and words their replies; here are the functions that it calls, the
threads that call plain ones, and the event loop that runs coroutine functions.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import itertools
import json
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from trustformers_serve import _codec, _core, _functions
from trustformers_serve import registry as process_registry
from trustformers_serve._event_loop import EventLoop, handing, report, running
from trustformers_serve.annotations import schema
from trustformers_serve.batching import FunctionBatcher
from trustformers_serve.config import ServerConfig
from trustformers_serve.decorators import Autobatched
from trustformers_serve.errors import ConfigurationError, ValidationError
from trustformers_serve.registry import ModelInfo
from trustformers_serve.server import Server

THREADS = 32
"""Most calls of one plain function that run at once, unless `serve` is told otherwise."""

COROUTINES = 1024
"""Most calls of one coroutine or batched function that run at once; more wait in the model's queue."""

_names = itertools.count(1)


class Models(Protocol):
    """What has models: a registry, or the module of the process-wide one."""

    def all(self) -> list[ModelInfo]:
        """Every version of every model."""
        ...


def serve(
    host: str = "127.0.0.1",
    port: int = 8000,
    block: bool = True,
    *,
    config: ServerConfig | None = None,
    registry: Models | None = None,
    threads: int = THREADS,
) -> Server:
    """Serves the registered models over HTTP, each at `/models/{name}/predict`.

        @register(name="double")
        def double(item: float) -> float:
            return item * 2

        serve(port=8000)

    Plain functions run on threads, coroutine functions on an event loop of the server's own; calls of batched
    functions go to their batchers. Requests
    wait in a queue of the model's, within the limits of `config.batching`. With the server end the threads of
    functions that `batch` made; a later call starts them again.

    Args:
        host: The interface to listen on.
        port: The port; 0 takes a free one.
        block: Return only when the server has ended: by Ctrl-C, SIGTERM, or `Server.stop` on another thread.
            Requests in flight are finished first. Otherwise the running server is returned, to be held: one
            that is forgotten stops.
        config: Further settings, and models of the server's own to serve beside the registered ones.
        registry: Whose models are served; by default those of `register`.
        threads: Most calls of one plain function that run at once.

    Raises:
        ConfigurationError: No model is registered.
        ServerStartError: The address cannot be bound.
    """
    if threads < 1:
        raise ValueError(f"threads must be at least 1, not {threads}")
    config = copy.deepcopy(ServerConfig() if config is None else config)
    config.set("server.host", host)
    config.set("server.port", port)
    models = (process_registry if registry is None else registry).all()
    if not models:
        raise ConfigurationError("no model is registered: put `@register()` above a function")
    loops = _Loops()
    hosted = [_hosted(info, threads, loops) for info in models]
    if block:
        return _until_signalled(lambda: Server(config, wait_ready=False, hosted=hosted, on_stop=loops.close))
    return Server(config, hosted=hosted, on_stop=loops.close)


def _until_signalled(start: Callable[[], Server]) -> Server:
    """Starts a server and waits for its end, or for a signal that ends it."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    on_main = threading.current_thread() is threading.main_thread()
    takes_over = on_main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if takes_over:
        signal.signal(signal.SIGTERM, interrupt)
    try:
        server = start()
        # It answers before it is ready: a signal ends it from its first request on.
        with server, contextlib.suppress(KeyboardInterrupt):
            server.wait_ready()
            server.wait()
    finally:
        if takes_over:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return server


class _Call(Protocol):
    """What a worker and a call of an event loop have in common."""

    def whole(self) -> tuple[Any] | None: ...
    def complete(self, result: object) -> None: ...
    def fail(self, raised: BaseException) -> None: ...
    def finish(self) -> None: ...


class _Bound:
    """A model's function, to be called with an item as a request has it."""

    def __init__(self, info: ModelInfo) -> None:
        self._function = info.function
        self._arguments = info.arguments
        self._unchecked = info.takes_anything
        self.reads_body = info.has_schema

    def __call__(self, item: Any, call: _Call) -> Any:
        """What the function returns for the item."""
        if self._unchecked:
            return self._function(item)
        args, kwargs = self._checked(item, call)
        return self._function(*args, **kwargs)

    def argument(self, item: Any, call: _Call) -> Any:
        """The one argument of a function that is batched."""
        if self._unchecked:
            return item
        ((argument,), _) = self._checked(item, call)
        return argument

    def _checked(self, item: Any, call: _Call) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.reads_body:
            (item,) = call.whole() or (item,)
            return self._arguments(_codec.lists(item))
        try:
            return self._arguments(item)
        except ValidationError:
            # An array stands for the lists of its numbers where lists are what is asked for.
            return self._arguments(_codec.lists(item))


class _Loops:
    """The event loops of a server."""

    def __init__(self) -> None:
        self.coroutines = EventLoop("serve-event-loop")
        # So that a coroutine function that blocks its loop keeps no batch of a plain one waiting.
        self.batches = EventLoop("serve-batches")

    def close(self) -> None:
        """Ends both."""
        self.coroutines.close()
        self.batches.close()

    def of(self, info: ModelInfo, bound: _Bound) -> Callable[[_core.Port], None] | None:
        """What begins a model's calls on one of them; `None` for one that is called on threads."""
        function = info.function
        batcher = getattr(function, "batcher", None)
        batcher = batcher if isinstance(batcher, FunctionBatcher) else None
        loop = self.coroutines
        if isinstance(function, Autobatched):
            hand = function._hand  # pyright: ignore[reportPrivateUsage] # noqa: SLF001
            loop, begin = self.batches, handing(hand, bound.argument, info.name)
        elif batcher is not None and batcher.is_of(function):
            hand = functools.partial(batcher.hand, instance=getattr(function, "__self__", None))
            loop = self.coroutines if batcher.is_coroutine else self.batches
            begin = handing(hand, bound.argument, info.name)
        elif _functions.is_coroutine(function) or _functions.is_async_generator(function):
            begin = running(bound, info.name, streaming=info.streaming)
        else:
            return None
        if batcher is not None:
            loop.stops(batcher)
        return functools.partial(loop.add, begin=begin)


def _hosted(info: ModelInfo, threads: int, loops: _Loops) -> _core.HostedModel:
    """A model as the server takes it."""
    bound = _Bound(info)
    start_on_loop = loops.of(info, bound)

    def start_thread(worker: _core.Worker) -> None:
        run = _stream if info.streaming else _run
        name = f"serve-{info.name}-{next(_names)}"
        threading.Thread(target=run, args=(worker, bound, info.name), name=name, daemon=True).start()

    return _core.HostedModel(
        name=info.name,
        version=info.version,
        inputs=[(name, json.dumps(schema(kind))) for name, kind in info.input_types.items()],
        output=json.dumps(schema(info.output_type)),
        streaming=info.streaming,
        reads_body=bound.reads_body,
        most=threads if start_on_loop is None else COROUTINES,
        on_loop=start_on_loop is not None,
        start=start_on_loop or start_thread,
    )


def _run(worker: _core.Worker, bound: _Bound, name: str) -> None:
    """Answers calls of a plain function, until there are no more."""
    while (item := worker.next()) is not None:
        try:
            result = bound(item[0], worker)
        except BaseException as error:  # noqa: BLE001 - it is the call's
            report(name, error)
            worker.fail(error)
        else:
            worker.complete(result)
        # Not kept alive until the next call.
        item = result = None


def _stream(worker: _core.Worker, bound: _Bound, name: str) -> None:
    """Answers calls of a generator function, until there are no more."""
    while (item := worker.next()) is not None:
        try:
            _put_all(worker, bound(item[0], worker))
        except BaseException as error:  # noqa: BLE001 - it is the call's
            report(name, error)
            worker.fail(error)
        else:
            worker.finish()
        item = None


def _put_all(worker: _core.Worker, pieces: Iterator[Any]) -> None:
    """Sends pieces until there are no more, or nobody wants them."""
    try:
        for piece in pieces:
            if not worker.put(piece):
                break
    finally:
        if inspect.isgenerator(pieces):
            pieces.close()
