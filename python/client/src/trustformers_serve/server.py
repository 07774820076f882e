"""A server in this process."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NoReturn

from trustformers_serve import _core
from trustformers_serve.config import ServerConfig


def _stop(server: _core.Server, then: Callable[[], None] | None) -> None:
    if not server.is_here():
        return
    server.stop()
    if then is not None:
        then()


class Server:
    """A server that runs in this process, on Rust threads that never hold the GIL.

        with Server(ServerConfig(server={"port": 0})) as server:
            print(server.url)

    It serves from construction until `stop`, the end of the `with` block, or the end of the process,
    whichever is first, and only as long as somebody holds it. Any thread may make, use and stop it, also
    one that runs an event loop (Jupyter); several servers may run at once.

    Log lines go to standard error, in the level and format of the configuration's `logging`. A process
    has one log: the first server's settings count, also for the servers after it.

    After a fork the server runs in the parent alone. The child knows its address, and does not stop it by
    ending or by leaving the `with` block.
    """

    def __init__(
        self,
        config: ServerConfig | None = None,
        *,
        wait_ready: bool = True,
        ready_timeout: float = 300.0,
        hosted: Sequence[_core.HostedModel] = (),
        on_stop: Callable[[], None] | None = None,
    ) -> None:
        """Binds the address at once and loads the models.

        Args:
            config: What to serve and how; by default the built-in models on 127.0.0.1:8000.
            wait_ready: Return only when every model serves. Otherwise models load in the background
                and `wait_ready()` waits for them.
            ready_timeout: The longest wait for that, in seconds.
            hosted: Models that this process runs, as `serve` makes them; they stand in the place of the
                built-in ones where the configuration names no model.
            on_stop: Called once the server has stopped.

        Raises:
            ConfigError: The server refuses the configuration.
            ServerStartError: The address cannot be bound, or the device is absent.
            ServerNotReadyError: A model failed to load, or loads longer than `ready_timeout`; the
                server has been stopped.
        """
        config = ServerConfig() if config is None else config
        builtins = not hosted or bool(config.models) or config.model_repository is not None
        self._core = _core.Server.start(*config.source(), list(hosted), builtins)
        # Also stops it at the interpreter's exit, while threads may still be ended in order.
        self._stop = weakref.finalize(self, _stop, self._core, on_stop)
        if wait_ready:
            try:
                self.wait_ready(ready_timeout)
            except BaseException:
                self.stop()
                raise

    @property
    def host(self) -> str:
        """The IP address it listens on."""
        return self._core.address()[0]

    @property
    def port(self) -> int:
        """The port it listens on; a free one where the configuration said 0."""
        return self._core.address()[1]

    @property
    def url(self) -> str:
        """The base URL for clients on this machine."""
        # An unspecified address accepts on every interface but is none to connect to.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether it still serves, in this process."""
        return self._core.is_running()

    def wait_ready(self, timeout: float = 300.0) -> None:
        """Waits until every model that is to be loaded at start serves.

        Raises:
            ServerNotReadyError: A model failed to load, or `timeout` seconds were not enough.
            RuntimeError: It runs in a process that this one was forked from.
        """
        self._core.wait_ready(timeout)

    def wait(self, timeout: float | None = None) -> bool:
        """Waits until the server has stopped, at most `timeout` seconds; says whether it has.

        Ctrl-C ends the wait with KeyboardInterrupt and leaves the server running; in a `with` block
        it is then stopped.

        Raises:
            RuntimeError: It runs in a process that this one was forked from.
        """
        return self._core.wait(timeout)

    def stop(self) -> None:
        """Stops accepting, finishes what is in flight within `server.shutdown_timeout`, and returns.

        Stopping a stopped server does nothing.

        Raises:
            RuntimeError: It runs in a process that this one was forked from.
        """
        self._core.stop()
        # What comes after, unless another thread does it.
        self._stop()

    def __enter__(self) -> Server:
        """The server itself; it already runs."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops it, unless this is a process that was forked meanwhile."""
        if self._core.is_here():
            self.stop()

    def __reduce__(self) -> NoReturn:
        """Refuses: a server belongs to its process."""
        raise TypeError("a Server cannot be copied or sent to another process; send its url")

    def __repr__(self) -> str:
        """Its address and whether it runs."""
        state = "running" if self.running else "stopped" if self._core.is_here() else "of another process"
        return f"<Server {self.url} {state}>"
