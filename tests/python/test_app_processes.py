"""An `App` in processes that end, fork and are spawned, and on event loops that close."""

from __future__ import annotations

import asyncio
import multiprocessing
import subprocess
import sys
from typing import Any

import pytest
import trustformers_serve as ts
from executors import PATIENCE

HEAD = """
import asyncio, atexit, os, signal, sys, threading, time
from typing import Iterator
import trustformers_serve as ts

app = ts.App(enable_batching=sys.argv[1] != "alone", max_batch_size=1, batch_timeout_ms=1)
name = {"alone": "batch"}.get(sys.argv[1], sys.argv[1])
entered = threading.Event()

def hang():
    entered.set()
    threading.Event().wait()

@app.model("item")
def item(text: str) -> int:
    hang()

@app.model("batch")
def batch(texts: list[str]) -> list[int]:
    hang()

@app.model("stream")
def stream(text: str) -> Iterator[str]:
    yield text
    hang()

@app.model("slow")
def slow(texts: list[str]) -> list[int]:
    time.sleep(0.05)
    return [len(text) for text in texts]

@app.model("slow-item")
def slow_item(text: str) -> int:
    time.sleep(0.05)
    return len(text)

async def call(name):
    result = await app.predict(name, "text")
    return [piece async for piece in result] if name == "stream" else result

async def begin():
    calls = [asyncio.create_task(call(name)) for _ in range(3)]
    while not entered.is_set():
        await asyncio.sleep(0.001)
    return calls
"""

KINDS = ["item", "batch", "alone", "stream"]


def run(code: str, kind: str) -> str:
    """What a process with these models prints that must end by itself."""
    command = [sys.executable, "-c", HEAD + code, kind]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_calls_that_hang_keep_neither_the_loop_nor_the_interpreter(kind: str) -> None:
    code = """
async def main():
    calls = await begin()
    print(len(calls), flush=True)
asyncio.run(main())
print("left", flush=True)
"""
    assert run(code, kind) == "3\nleft\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_loop_that_is_left_at_exit_does_not_keep_the_interpreter(kind: str) -> None:
    code = """
loop = asyncio.new_event_loop()
calls = loop.run_until_complete(begin())
print("left", flush=True)
os.close(2)
"""
    assert run(code, kind) == "left\n"


@pytest.mark.parametrize("kind", ["item", "alone", "stream"])
def test_a_stop_that_is_given_up_keeps_nobody(kind: str) -> None:
    code = """
async def main():
    await begin()
    try:
        await asyncio.wait_for(app.stop(), 0.1)
    except asyncio.TimeoutError:
        print("given up", flush=True)
asyncio.run(main())
"""
    assert run(code, kind) == "given up\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_ends_a_server_and_its_process_although_calls_hang(kind: str) -> None:
    code = """
import http.client, json, socket
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]

def ask():
    # A server answers before its models are ready.
    while not entered.is_set():
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port)
            body = json.dumps({"model": name, "data": "text"})
            path = "/v1/inference/stream" if name == "stream" else "/v1/inference"
            connection.request("POST", path, body, {"content-type": "application/json"})
            connection.getresponse().read()
        except ConnectionRefusedError:
            time.sleep(0.01)

def interrupt():
    entered.wait()
    os.kill(os.getpid(), signal.SIGINT)

threading.Thread(target=ask).start()
threading.Thread(target=interrupt).start()
app.serve(port=port, config=ts.ServerConfig(server={"shutdown_timeout": "100ms"}))
print("ended", flush=True)
"""
    assert run(code, kind) == "ended\n"


@pytest.mark.parametrize("kind", ["slow", "slow-item", "alone"])
def test_work_that_is_queued_on_a_thread_is_answered_before_the_interpreter_ends(kind: str) -> None:
    code = """
def wait():
    async def main():
        model = "slow" if name == "batch" else name
        print(*await asyncio.gather(*(app.predict(model, "x" * size) for size in range(4))), flush=True)
    asyncio.run(main())
threading.Thread(target=wait).start()
"""
    assert run(code, kind) == "0 1 2 3\n"


batching, single = ts.App(batch_timeout_ms=1), ts.App(enable_batching=False)
for each in (batching, single):

    @each.model("text")
    def text(items: list[int]) -> list[str]:
        return [str(item) for item in items]

    @each.model("item")
    def one(item: int) -> str:
        return str(item)


def ask_all(item: int) -> list[str]:
    async def main() -> list[str]:
        calls = [app.predict(name, item) for app in (batching, single) for name in ("text", "item")]
        return await asyncio.wait_for(asyncio.gather(*calls), PATIENCE)

    return asyncio.run(main())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_works_in_a_process_made_while_it_was_in_use(method: str) -> None:
    assert ask_all(1) == ["1"] * 4
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map_async(ask_all, range(20)).get(60) == [[str(item)] * 4 for item in range(20)]
    assert ask_all(2) == ["2"] * 4


@pytest.mark.parametrize("app", [batching, single])
@pytest.mark.parametrize("name", ["text", "item"])
def test_calls_of_a_loop_that_closed_leave_the_app_to_the_next(app: ts.App, name: str) -> None:
    async def leave() -> None:
        for item in range(10):
            asyncio.get_running_loop().create_task(app.predict(name, item))
        await asyncio.sleep(0)

    loop: Any = asyncio.new_event_loop()
    loop.run_until_complete(leave())
    loop.close()
    asyncio.run(leave())
    assert ask_all(3) == ["3"] * 4
    asyncio.run(asyncio.wait_for(app.stop(), PATIENCE))
