"""What stands between a client and a real server, and counts connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType
from urllib.parse import urlsplit


class CountingProxy:
    """Hands every connection on to the server at `url`, byte by byte."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._ending = False
        self.connections = 0
        """Those that were made so far."""
        self.open = 0
        """Those that the client has not ended."""
        self._lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> CountingProxy:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        # Wakes the accept.
        socket.create_connection(self._listener.getsockname()).close()
        self._threads[0].join()
        self._listener.close()
        for side in self._sockets:
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for side in self._sockets:
            side.close()

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            if self._ending:
                client.close()
                return
            server = socket.create_connection(self._server)
            self.connections += 1
            self.open += 1
            self._sockets += [client, server]
            for source, target, counts in ((client, server, True), (server, client, False)):
                thread = threading.Thread(target=self._copy, args=(source, target, counts))
                self._threads.append(thread)
                thread.start()

    def _copy(self, source: socket.socket, target: socket.socket, counts: bool) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        if counts:
            with self._lock:
                self.open -= 1
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)
