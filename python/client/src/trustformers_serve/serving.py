"""Models of this process behind the server's HTTP routes.

The server reads requests, queues, counts and words their replies; here are the functions that it calls, the
threads that call plain ones, and the event loop that runs coroutine functions.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import inspect
import itertools
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from trustformers_serve import _codec, _core, _functions
from trustformers_serve import registry as process_registry
from trustformers_serve._models import is_blameless
from trustformers_serve.annotations import schema
from trustformers_serve.batching import FunctionBatcher
from trustformers_serve.config import ServerConfig
from trustformers_serve.errors import ConfigurationError, ValidationError
from trustformers_serve.registry import ModelInfo
from trustformers_serve.server import Server

THREADS = 32
"""Most calls of one plain function that run at once, unless `serve` is told otherwise."""

COROUTINES = 1024
"""Most calls of one coroutine function that run at once; more wait in the model's queue."""

logger = logging.getLogger(__name__)
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

    Plain functions run on threads, coroutine functions on an event loop of the server's own. Their requests
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
    batchers = [getattr(info.function, "batcher", None) for info in models]
    loop = _EventLoop([batcher for batcher in batchers if isinstance(batcher, FunctionBatcher)])
    hosted = [_hosted(info, threads, loop) for info in models]
    if block:
        return _until_signalled(lambda: Server(config, wait_ready=False, hosted=hosted, on_stop=loop.close))
    return Server(config, hosted=hosted, on_stop=loop.close)


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
        self._unchecked = list(info.input_types.values()) == [Any]
        self.reads_body = info.has_schema

    def __call__(self, item: Any, call: _Call) -> Any:
        """What the function returns for the item."""
        if self.reads_body:
            (item,) = call.whole() or (item,)
            item = _codec.lists(item)
        elif self._unchecked:
            return self._function(item)
        try:
            args, kwargs = self._arguments(item)
        except ValidationError:
            # An array stands for the lists of its numbers where lists are what is asked for.
            args, kwargs = self._arguments(_codec.lists(item))
        return self._function(*args, **kwargs)


def _hosted(info: ModelInfo, threads: int, loop: _EventLoop) -> _core.HostedModel:
    """A model as the server takes it."""
    bound = _Bound(info)
    on_loop = _functions.is_coroutine(info.function) or _functions.is_async_generator(info.function)

    def start_thread(worker: _core.Worker) -> None:
        run = _stream if info.streaming else _run
        name = f"serve-{info.name}-{next(_names)}"
        threading.Thread(target=run, args=(worker, bound, info.name), name=name, daemon=True).start()

    def start_on_loop(port: _core.Port) -> None:
        run = _astream if info.streaming else _arun
        loop.add(port, lambda call, item, room: run(call, bound, item, info.name, room))

    return _core.HostedModel(
        name=info.name,
        version=info.version,
        inputs=[(name, json.dumps(schema(kind))) for name, kind in info.input_types.items()],
        output=json.dumps(schema(info.output_type)),
        streaming=info.streaming,
        reads_body=bound.reads_body,
        most=COROUTINES if on_loop else threads,
        on_loop=on_loop,
        start=start_on_loop if on_loop else start_thread,
    )


def _report(name: str, error: BaseException) -> None:
    """Says in the log what a client is told only in one line."""
    if not is_blameless(error):
        logger.error("model %r failed", name, exc_info=error)


def _run(worker: _core.Worker, bound: _Bound, name: str) -> None:
    """Answers calls of a plain function, until there are no more."""
    while (item := worker.next()) is not None:
        try:
            result = bound(item[0], worker)
        except BaseException as error:  # noqa: BLE001 - it is the call's
            _report(name, error)
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
            _report(name, error)
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


_Room = Callable[[], "asyncio.Future[None]"]
"""Makes a future that is done once the client has taken a piece."""


async def _arun(call: _core.AsyncCall, bound: _Bound, item: Any, name: str, _: _Room) -> None:
    try:
        result = await bound(item, call)
    except BaseException as error:  # noqa: BLE001 - it is the call's
        if not isinstance(error, asyncio.CancelledError):
            _report(name, error)
        call.fail(error)
    else:
        call.complete(result)


async def _astream(call: _core.AsyncCall, bound: _Bound, item: Any, name: str, room: _Room) -> None:
    try:
        pieces = bound(item, call)
        try:
            async for piece in pieces:
                taken = room()
                sent = call.put(piece)
                while sent == "full":
                    await taken
                    taken = room()
                    sent = call.put()
                if sent == "left":
                    break
        finally:
            if inspect.isasyncgen(pieces):
                await pieces.aclose()
    except BaseException as error:  # noqa: BLE001 - it is the call's
        if not isinstance(error, asyncio.CancelledError):
            _report(name, error)
        call.fail(error)
    else:
        call.finish()


class _Landed:
    """A call that the event loop runs."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.room: asyncio.Future[None] | None = None


_Runner = Callable[[_core.AsyncCall, Any, _Room], "Any"]


class _EventLoop:
    """The event loop of a server's coroutine functions, on a thread that starts with the first of them."""

    def __init__(self, batchers: list[FunctionBatcher]) -> None:
        self._batchers = batchers
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def add(self, port: _core.Port, runner: _Runner) -> None:
        """Runs the calls that land at `port`."""
        loop = self._running()
        landed: dict[int, _Landed] = {}

        def take() -> None:
            for kind, number, call, item in port.take():
                if kind == "call" and call is not None:
                    begin(number, call, item)
                elif kind == "closed":
                    loop.remove_reader(port.fileno())
                elif number in landed:
                    _happened(kind, landed[number])

        def begin(number: int, call: _core.AsyncCall, item: Any) -> None:
            state = landed[number] = _Landed()

            def room() -> asyncio.Future[None]:
                state.room = loop.create_future()
                return state.room

            state.task = loop.create_task(runner(call, item, room))
            state.task.add_done_callback(lambda task: ended(number, call, task))

        def ended(number: int, call: _core.AsyncCall, task: asyncio.Task[None]) -> None:
            landed.pop(number, None)
            if task.cancelled():
                # Also one that never began; one that ended by itself has told so.
                call.fail(asyncio.CancelledError())

        loop.call_soon_threadsafe(loop.add_reader, port.fileno(), take)

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                run = self._loop.run_forever
                self._thread = threading.Thread(target=run, name="serve-event-loop", daemon=True)
                self._thread.start()
            return self._loop

    def close(self) -> None:
        """Ends the thread, and those of batched functions; calls that still run are cancelled."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is None or thread is None:
            return

        async def finish() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1) if tasks else None
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.gather(*(batcher.stop() for batcher in self._batchers)), 1)
            await loop.shutdown_asyncgens()
            loop.stop()

        asyncio.run_coroutine_threadsafe(finish(), loop)
        thread.join(timeout=5)
        if not thread.is_alive():
            loop.close()


def _happened(kind: str, state: _Landed) -> None:
    """What the server says of a call that runs: nobody waits any more, or its client has taken a piece."""
    if kind == "over" and state.task is not None:
        state.task.cancel()
    elif kind == "room" and state.room is not None and not state.room.done():
        state.room.set_result(None)
