"""The server in this process: start, wait, stop, signals, threads, event loops."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, cast

import pytest
import trustformers_serve as ts


def config(port: int = 0) -> ts.ServerConfig:
    return ts.ServerConfig(server={"port": port}, device={"default": "cpu"}, models={"delay": {}})


def python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def lines_of(process: subprocess.Popen[str]) -> IO[str]:
    return cast("IO[str]", process.stdout)


def test_a_server_serves_until_its_block_ends() -> None:
    with ts.Server(config()) as server:
        assert server.running
        assert server.url == f"http://127.0.0.1:{server.port}"
        with ts.Client(server.url) as client:
            assert client.ready()
    assert not server.running
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_wait_ends_when_another_thread_stops_it() -> None:
    server = ts.Server(config())
    assert not server.wait(0.0)
    stopper = threading.Thread(target=server.stop)
    stopper.start()
    assert server.wait(60.0)
    stopper.join()
    server.stop()


def test_a_taken_port_has_the_servers_own_message() -> None:
    with ts.Server(config()) as server, pytest.raises(ts.ServerStartError, match=str(server.port)):
        ts.Server(config(server.port))


def test_a_configuration_that_is_refused_starts_nothing() -> None:
    with pytest.raises(ts.ConfigError, match="max_batch_size"):
        ts.Server(ts.ServerConfig(batching={"max_batch_size": 0}))


def test_a_broken_model_is_named_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "broken.pt"
    path.write_bytes(b"not a zip")
    broken = config()
    broken.models["broken"] = {
        "path": path,
        "inputs": [{"name": "x", "dtype": "f32", "shape": [1]}],
        "outputs": [{"name": "y", "dtype": "f32", "shape": [1]}],
    }
    with pytest.raises(ts.ServerNotReadyError, match="broken"):
        ts.Server(broken)
    with ts.Server(broken, wait_ready=False) as server, ts.Client(server.url) as client:
        with pytest.raises(ts.ServerNotReadyError, match="broken"):
            server.wait_ready(60.0)
        assert not client.ready()


def test_a_device_that_is_absent_is_named() -> None:
    with pytest.raises(ts.ServerStartError, match="cuda:63"):
        ts.Server(ts.ServerConfig(server={"port": 0}, device={"default": "cuda:63"}, models={"delay": {}}))


def test_several_servers_start_from_several_threads() -> None:
    with ThreadPoolExecutor(4) as pool:
        servers = list(pool.map(lambda _: ts.Server(config()), range(4)))
    assert len({server.port for server in servers}) == 4
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda server: server.stop(), servers))
    assert not any(server.running for server in servers)


def test_a_server_lives_beside_a_running_event_loop() -> None:
    async def cell() -> bool:
        with ts.Server(config()) as server:
            async with ts.AsyncClient(server.url) as client:
                return bool(await client.ready())

    assert asyncio.run(cell())


def test_python_runs_on_while_a_thread_waits() -> None:
    with ts.Server(config()) as server:
        waiter = threading.Thread(target=server.wait)
        waiter.start()
        began = time.perf_counter()
        assert sum(range(100_000)) > 0
        # A wait that held the GIL would let nothing here run before the server's end.
        assert time.perf_counter() - began < 5.0
        assert waiter.is_alive()
        server.stop()
        waiter.join(60.0)
        assert not waiter.is_alive()


def test_ctrl_c_ends_a_wait_and_the_block_stops_the_server() -> None:
    process = python(
        "import trustformers_serve as ts\n"
        "try:\n"
        "    with ts.Server(ts.ServerConfig(server={'port': 0}, models={'delay': {}})) as server:\n"
        "        print('up', flush=True)\n"
        "        server.wait()\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', server.running, flush=True)\n"
    )
    with process:
        assert lines_of(process).readline() == "up\n"
        process.send_signal(signal.SIGINT)
        assert lines_of(process).readline() == "interrupted False\n"
        assert process.wait(60) == 0


def test_a_process_may_end_without_stopping_its_server() -> None:
    process = python(
        "import trustformers_serve as ts\n"
        "server = ts.Server(ts.ServerConfig(server={'port': 0}, models={'delay': {}}))\n"
    )
    with process:
        assert process.wait(60) == 0


def test_twenty_servers_leave_no_thread_and_no_memory() -> None:
    process = python(
        "import json, os, trustformers_serve as ts\n"
        "def cost():\n"
        "    status = open('/proc/self/status').read()\n"
        "    rss = int(status.split('VmRSS:')[1].split()[0])\n"
        "    return len(os.listdir('/proc/self/task')), rss\n"
        "costs = [cost()]\n"
        "for _ in range(20):\n"
        "    with ts.Server(ts.ServerConfig(server={'port': 0}, models={'delay': {}})) as server:\n"
        "        with ts.Client(server.url) as client:\n"
        "            client.ready()\n"
        "    costs.append(cost())\n"
        "print(json.dumps(costs))\n"
    )
    with process:
        costs: list[tuple[int, int]] = json.loads(lines_of(process).read())
        assert process.wait(60) == 0
    threads, resident = zip(*costs, strict=True)
    assert threads[-1] == threads[0]
    # The first servers fill the allocator's arenas.
    assert resident[-1] <= 1.05 * resident[5]


def log_of(*logging: dict[str, str]) -> list[str]:
    """The lines on standard error of a process that serves a broken model once for each of `logging`."""
    code = (
        "import json, sys, trustformers_serve as ts\n"
        "tensor = [{'name': 'x', 'dtype': 'f32', 'shape': [1]}]\n"
        "broken = {'path': '/dev/null', 'format': 'torchscript', 'inputs': tensor, 'outputs': tensor}\n"
        "for logging in json.loads(sys.argv[1]):\n"
        "    config = ts.ServerConfig(\n"
        "        server={'port': 0}, device={'default': 'cpu'}, logging=logging, models={'broken': broken}\n"
        "    )\n"
        "    try:\n"
        "        ts.Server(config)\n"
        "    except ts.ServerNotReadyError:\n"
        "        pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(logging)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.stderr.splitlines()


def test_the_log_has_the_level_of_the_configuration() -> None:
    everything, (failure,) = log_of({"level": "info"}), log_of({"level": "error"})
    assert any(" INFO " in line and "broken" in line for line in everything)
    assert any(" ERROR " in line and "broken" in line for line in everything)
    assert " ERROR " in failure
    assert "broken" in failure
    assert log_of({"level": "off"}) == []


def test_the_log_has_the_format_of_the_configuration() -> None:
    entries = [json.loads(line) for line in log_of({"level": "info", "format": "json"})]
    assert {entry["level"] for entry in entries} == {"INFO", "ERROR"}
    assert {entry["model"] for entry in entries} == {"broken"}
    text = log_of({"level": "info", "format": "text"})
    assert len(text) == len(entries)
    assert not any(line.startswith("{") for line in text)


def test_the_first_servers_logging_counts() -> None:
    lines = log_of({"level": "error"}, {"level": "info", "format": "json"})
    assert len(lines) == 2
    assert all(" ERROR " in line and not line.startswith("{") for line in lines)


def start_script(*arguments: str) -> subprocess.Popen[str]:
    script = shutil.which("trustformers-serve")
    assert script is not None
    return subprocess.Popen([script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_console_script_serves_and_stops_at_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "serve.toml"
    path.write_text(config().to_toml())
    with start_script("--config", str(path)) as process:
        seen = ""
        while (found := re.search(r"http://127\.0\.0\.1:(\d+)", seen)) is None:
            line = lines_of(process).readline()
            assert line, seen
            seen += line
        with ts.Client(found[0]) as client:
            assert client.health()["status"] == "ok"
        process.send_signal(number)
        rest = lines_of(process).read()
        assert process.wait(60) == 0, rest
        assert "KeyboardInterrupt" not in rest


def test_the_console_script_reports_a_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "serve.toml"
    path.write_text("[server]\nprot = 1\n")
    with start_script("--config", str(path), "--validate") as process:
        output = lines_of(process).read()
        assert process.wait(60) != 0
    assert "prot" in output
    assert "Traceback" not in output
