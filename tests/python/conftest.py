"""Real servers for the tests, and both clients behind one blocking face."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import pytest
import torch
import trustformers_serve as ts
from served import Serve
from trustformers_serve.config import ModelSettings

ROOT = Path(__file__).resolve().parents[2]
# Why a test may be skipped; any other reason fails the run.
EXPECTED_SKIPS = ("needs a GPU",)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints and counts the skipped tests."""
    skipped = terminalreporter.getreports("skipped")
    terminalreporter.write_line(f"{len(skipped)} skipped, of which {len(_unexpected(skipped))} unexpected")
    for report in skipped:
        terminalreporter.write_line(f"  {report.nodeid}: {_reason(report)}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails the run when a test was skipped for a reason that is not expected."""
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    if _unexpected(reporter.getreports("skipped")):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _reason(report: Any) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)


def _unexpected(skipped: list[Any]) -> list[Any]:
    return [report for report in skipped if not any(reason in _reason(report) for reason in EXPECTED_SKIPS)]


class Pair(torch.nn.Module):
    """Two inputs and two outputs of one item: [3] and [3] to [3] and []."""

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return left + right, (left * right).sum(dim=1)


class Fussy(torch.nn.Module):
    """Raises for a negative number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x < 0).any()):
            raise RuntimeError("a negative number")
        return x.sqrt()


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSettings]:
    """TorchScript files made here, with the settings that serve them."""
    folder = tmp_path_factory.mktemp("models")
    for name, module in {"pair": Pair(), "fussy": Fussy()}.items():
        cast("Any", torch.jit.script(module)).save(str(folder / f"{name}.pt"))  # pyright: ignore[reportUnknownMemberType]
    vector: list[int] = [3]
    return {
        "pair": {
            "path": folder / "pair.pt",
            "inputs": [
                {"name": "left", "dtype": "f32", "shape": vector},
                {"name": "right", "dtype": "f32", "shape": vector},
            ],
            "outputs": [
                {"name": "sum", "dtype": "f32", "shape": vector},
                {"name": "dot", "dtype": "f32", "shape": []},
            ],
        },
        "fussy": {
            "path": folder / "fussy.pt",
            "inputs": [{"name": "x", "dtype": "f32", "shape": vector}],
            "outputs": [{"name": "root", "dtype": "f32", "shape": vector}],
        },
    }


@pytest.fixture(scope="session")
def server(model_files: dict[str, ModelSettings]) -> Iterator[ts.Server]:
    """A server of the built-in models and of those made here."""
    models: dict[str, ModelSettings] = {
        "delay": {"delay": {"batch_time": "1ms"}},
        "mlp": {},
        "minilm": {},
        **model_files,
    }
    config = ts.ServerConfig(
        server={"port": 0, "max_body_size": "64KB", "request_timeout": "5s"},
        device={"default": "cpu"},
        models=models,
    )
    with ts.Server(config) as server:
        yield server


@pytest.fixture
def slow_server() -> Iterator[ts.Server]:
    """One item at a time, 300 ms each, and room for one more to wait."""
    config = ts.ServerConfig(
        server={"port": 0},
        device={"default": "cpu"},
        models={
            "delay": {
                "delay": {"batch_time": "300ms"},
                "batching": {"max_batch_size": 1, "max_queue_size": 1},
                "warmup": 0,
            }
        },
    )
    with ts.Server(config) as server:
        yield server


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers of what the test has registered, and stops them; forgets the models before and after."""
    started: list[ts.Server] = []

    def start(settings: Mapping[str, Any] | None = None, *, threads: int = 32, **config: Any) -> ts.Server:
        with_settings = ts.ServerConfig(server=cast("Any", dict(settings or {})), **config)
        started.append(ts.serve(port=0, block=False, config=with_settings, threads=threads))
        return started[-1]

    ts.registry.clear()
    yield start
    for server in started:
        server.stop()
    ts.registry.clear()


class Blocking:
    """An `AsyncClient` whose methods block, so that one test covers both clients."""

    def __init__(self, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self.inner = ts.AsyncClient(**options)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.inner, name)
        return lambda *args, **kwargs: self._loop.run_until_complete(method(*args, **kwargs))

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._loop.run_until_complete(self.inner.close())
        self._loop.close()


MakeClient = Callable[..., ts.Client]


@pytest.fixture(params=["sync", "async"])
def make_client(request: pytest.FixtureRequest) -> Iterator[MakeClient]:
    """Makes clients of the kind under test, and closes them."""
    kind: Literal["sync", "async"] = request.param
    made: list[ts.Client] = []

    def make(**options: Any) -> ts.Client:
        client = ts.Client(**options) if kind == "sync" else cast("ts.Client", Blocking(**options))
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(server: ts.Server, make_client: MakeClient) -> ts.Client:
    """A client of the session's server."""
    return make_client(base_url=server.url)


def one_item(client: ts.Client, model: str) -> Any:
    """Zeros that fit a model's only input; a dimension that may vary is 1."""
    (declared,) = client.model(model).get("inputs", [])
    return torch.zeros([max(size, 1) for size in declared.get("shape", [])])
