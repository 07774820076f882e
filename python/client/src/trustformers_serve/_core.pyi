"""The Rust extension: converts, releases the GIL, calls."""

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar, final

_T = TypeVar("_T")
_R = TypeVar("_R")

__version__: str

def run_cli(args: list[str]) -> int:
    """Runs the command line with `args` (the program's name first) and returns its exit code."""

def validate_toml(text: str, origin: str, folder: str) -> None:
    """Checks a configuration as the server would at start; raises `ConfigError`."""

def parse_toml(text: str, origin: str) -> dict[str, Any]:
    """The tables of a TOML text, unchecked but for the syntax."""

def to_toml(tables: Mapping[str, Any]) -> str:
    """The TOML text of nested dicts; keys whose value is `None` are left out."""

def known_keys() -> list[str]:
    """Every key that a configuration may have, dotted."""

def error_codes() -> list[tuple[str, int]]:
    """Every code that an error of the server can have, with its HTTP status."""

def set_main_thread(ident: int) -> None:
    """Says which of Python's threads runs signal handlers: at the start, and anew in a forked process."""

def compare_versions(a: str, b: str) -> int:
    """The natural order of two versions: negative where `a` is the older one."""

@final
class Server:
    """A server that runs on threads of its own in this process."""

    @staticmethod
    def start(text: str, origin: str, folder: str, hosted: list[HostedModel], builtins: bool) -> Server: ...
    def address(self) -> tuple[str, int]: ...
    def wait_ready(self, timeout_seconds: float) -> None: ...
    def stop(self) -> None: ...
    def is_here(self) -> bool: ...
    def is_running(self) -> bool: ...
    def wait(self, timeout_seconds: float | None) -> bool: ...

@final
class Worker:
    """What one thread takes a model's calls with."""

    def next(self) -> tuple[Any] | None: ...
    def whole(self) -> tuple[Any] | None: ...
    def complete(self, result: object) -> None: ...
    def fail(self, raised: BaseException) -> None: ...
    def put(self, piece: object) -> bool: ...
    def finish(self) -> None: ...

@final
class AsyncCall:
    """A call that an event loop runs."""

    def priority(self) -> Literal["low", "normal", "high", "critical"]: ...
    def whole(self) -> tuple[Any] | None: ...
    def complete(self, result: object) -> None: ...
    def fail(self, raised: BaseException) -> None: ...
    def put(self, piece: object = None) -> Literal["sent", "full", "left"]: ...
    def finish(self) -> None: ...

@final
class Port:
    """Where the calls of one model land, for the event loop that runs them."""

    def fileno(self) -> int: ...
    def take(
        self,
    ) -> list[tuple[Literal["call", "over", "room", "closed"], int, AsyncCall | None, Any]]: ...

@final
class HostedModel:
    """A Python function as a model that a server may have."""

    def __new__(
        cls,
        name: str,
        version: str,
        inputs: list[tuple[str, str]],
        output: str,
        streaming: bool,
        reads_body: bool,
        most: int,
        on_loop: bool,
        start: Callable[[Worker], None] | Callable[[Port], None],
    ) -> HostedModel: ...

@final
class LoopPort:
    """Where the answers for one event loop land."""

    def __new__(cls, event_loop: asyncio.AbstractEventLoop) -> LoopPort: ...
    def __call__(self) -> None: ...

@final
class Pending:
    """An item that is on its way."""

    def cancel(self) -> None: ...

@final
class Batcher:
    """What runs in batches what many callers bring one by one."""

    def __new__(
        cls,
        max_batch: int,
        max_wait_seconds: float,
        backpressure: str,
        max_queue: int,
        start: Callable[[Batcher], threading.Thread],
        terms: Mapping[str, Any] | None = None,
    ) -> Batcher: ...
    def run(self, item: _T, executor: Callable[[list[_T]], Sequence[_R | Exception]]) -> _R: ...
    def submit(
        self,
        item: _T,
        executor: Callable[[list[_T]], Sequence[_R | Exception]],
        future: concurrent.futures.Future[_R],
    ) -> Pending | None: ...
    def send(
        self,
        item: _T,
        executor: Callable[[list[_T]], Sequence[_R | Exception]],
        future: asyncio.Future[_R],
        port: LoopPort,
        priority: str | None = None,
    ) -> Pending | None: ...
    def alone(self, item: _T, executor: Callable[[list[_T]], Sequence[_R | Exception]]) -> _R: ...
    def map(
        self,
        items: Iterable[_T],
        executor: Callable[[list[_T]], Sequence[_R | Exception]],
        return_exceptions: bool,
        progress: Callable[[int], None] | None,
    ) -> list[_R]: ...
    def flush(self) -> None: ...
    def metrics(self) -> tuple[int, int, float, float, int, int]: ...
    def close(self) -> None: ...
    def abort(self) -> None: ...
    def thread(self) -> threading.Thread | None: ...
    def next(self) -> tuple[Callable[[list[Any]], Any], list[Any]] | None: ...
    def try_next(self) -> list[Any] | None: ...
    def complete(self, results: object, here: LoopPort | None = None) -> None: ...
    def fail(self, error: BaseException) -> None: ...

@final
class Place:
    """Where a record waits whose caller found the queue full."""

    @property
    def gate(self) -> asyncio.Future[asyncio.Future[Any]]:
        """Ends with the future of the record once that has its place."""

@final
class RecordStream:
    """The records of one event loop on their way through one function."""

    def __new__(
        cls,
        event_loop: asyncio.AbstractEventLoop,
        function: Callable[[list[Any]], Any],
        begin: Callable[[RecordStream, list[Any]], None],
        *,
        estimator: Callable[[Any], float] | None,
        default_cost: int,
        target_cost: int,
        max_batch_size: int,
        min_batch_size: int,
        max_wait_seconds: float,
        max_queue_size: int,
        prefetch_batches: int,
    ) -> RecordStream: ...
    def submit(self, record: Any, cost: float | None = None) -> asyncio.Future[Any] | Place: ...
    def __call__(self, later: bool = False) -> None: ...
    def complete(self, results: object) -> None: ...
    def fail(self, make: Callable[[], BaseException]) -> None: ...
    def drain(self) -> asyncio.Future[None]: ...
    def abandon(self) -> None: ...
    def is_open(self) -> bool: ...
    def is_drained(self) -> bool: ...
    def stats(self) -> tuple[int, int, int, int, float, float]: ...
