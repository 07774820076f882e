"""Registered functions under load and at the end: own results, threads, clients who leave, shutdown."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trustformers_serve as ts
from executors import own_threads
from served import Serve, ask_at_once, get, leave_early, metric, predict, refuses

CALLERS = 1000


def plain(item: int) -> int:
    return item * 2


async def coroutine(item: int) -> int:
    await asyncio.sleep(0)
    return item * 2


def per_batch(items: list[int]) -> list[int]:
    return [item * 2 for item in items]


async def per_batch_later(items: list[int]) -> list[int]:
    return [item * 2 for item in items]


@pytest.mark.parametrize("kind", ["plain", "coroutine", "autobatch", "batch"])
def test_a_thousand_concurrent_requests_get_their_own_results(serve: Serve, kind: str) -> None:
    made: dict[str, Any] = {
        "plain": plain,
        "coroutine": coroutine,
        "autobatch": ts.autobatch(max_wait_ms=1)(per_batch),
        "batch": ts.batch(max_wait_time=0.001, max_queue_size=CALLERS)(per_batch_later),
    }
    ts.register("double")(made[kind])
    server = serve(batching={"max_queue_size": CALLERS})

    answers = asyncio.run(ask_at_once(server, "/models/double/predict", range(CALLERS)))
    assert [answer["data"] for answer in answers] == [item * 2 for item in range(CALLERS)]
    metrics = get(server, "/metrics").body.decode()
    assert f'requests_total{{model="double",outcome="ok",version="1"}} {CALLERS}' in metrics


def test_calls_that_wait_for_something_run_side_by_side(serve: Serve) -> None:
    together = threading.Barrier(8, timeout=60)

    @ts.register()
    def meet(item: int) -> int:
        together.wait()
        return item

    predictions = predict(serve(), "meet", {"instances": list(range(8))}).value["predictions"]
    assert [prediction["data"] for prediction in predictions] == list(range(8))


def test_no_more_calls_run_at_once_than_there_are_threads(serve: Serve) -> None:
    running = most = 0
    lock = threading.Lock()

    @ts.register()
    def work(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.005)
        with lock:
            running -= 1
        return item

    predict(serve(threads=3), "work", {"instances": list(range(60))})
    assert 1 < most <= 3


def test_a_client_who_leaves_takes_its_waiting_request_along(serve: Serve) -> None:
    entered, leave = threading.Event(), threading.Event()
    ran: list[int] = []

    @ts.register()
    def hold(item: int) -> int:
        ran.append(item)
        entered.set()
        leave.wait(60)
        return item

    server = serve(threads=1)
    connections = [leave_early(server, "/models/hold/predict", 1)]
    assert entered.wait(60)
    connections.append(leave_early(server, "/models/hold/predict", 2))
    wait_for(lambda: metric(server, "queue_depth", "hold") == 1)
    connections[1].close()
    wait_for(lambda: metric(server, "queue_depth", "hold") == 0)
    leave.set()
    assert predict(server, "hold", 3).value["data"] == 3
    assert ran == [1, 3]
    connections[0].close()


def test_clients_that_leave_are_no_failures_of_the_model(serve: Serve) -> None:
    begun, ended = threading.Semaphore(0), threading.Semaphore(0)

    @ts.register()
    async def hold(item: int) -> int:
        begun.release()
        try:
            if not item:
                await asyncio.Event().wait()
        finally:
            ended.release()
        return item

    server = serve()
    connections = [leave_early(server, "/models/hold/predict", 0) for _ in range(30)]
    for _ in connections:
        assert begun.acquire(timeout=60)
    for connection in connections:
        connection.close()
    for _ in connections:
        assert ended.acquire(timeout=60)
    # As many failures would have had the model left alone for a while.
    for item in range(1, 31):
        assert predict(server, "hold", item).value["data"] == item


def test_a_client_who_leaves_before_its_call_has_begun_gives_its_place_back(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trustformers_serve.serving.COROUTINES", 1)
    entered, leave = threading.Event(), threading.Event()

    @ts.register()
    async def hold(item: int) -> int:
        # The event loop itself: what comes meanwhile lands, and has not begun.
        entered.set()
        leave.wait(60)
        return item

    @ts.register("double")
    async def _(item: int) -> int:
        return item * 2

    server = serve()
    with ThreadPoolExecutor() as pool:
        held = pool.submit(predict, server, "hold", 1)
        assert entered.wait(60)
        leaving = [leave_early(server, "/models/double/predict", item) for item in range(2)]
        # One waits in the queue, so the other has the only place.
        wait_for(lambda: metric(server, "queue_depth", "double") == 1)
        for connection in leaving:
            connection.close()
        wait_for(lambda: metric(server, "requests_total", "double", "cancelled") == 2)
        leave.set()
        assert held.result(60).value["data"] == 1
    assert predict(server, "double", 4).value["data"] == 8


def wait_for(happened: Any) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_stopping_finishes_what_is_in_flight(serve: Serve, kind: str) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold(item: int) -> int:
        entered.set()
        leave.wait(60)
        return item

    async def hold_later(item: int) -> int:
        return await asyncio.to_thread(hold, item)

    ts.register("hold")(hold if kind == "plain" else hold_later)
    before = own_threads()
    server = serve()
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(predict, server, "hold", 7)
        assert entered.wait(60)
        stopped = pool.submit(server.stop)
        wait_for(lambda: refuses(server))
        assert not stopped.done()
        leave.set()
        assert answer.result(60).value["data"] == 7
        stopped.result(60)
    wait_for(lambda: own_threads() <= before)


@pytest.mark.parametrize("made", [plain, coroutine, ts.batch()(per_batch), ts.batch()(per_batch_later)])
def test_no_thread_is_left_when_the_server_has_ended_and_it_may_serve_again(serve: Serve, made: Any) -> None:
    ts.register("double")(made)
    before = own_threads()
    for item in range(2):
        server = serve()
        assert predict(server, "double", item).value["data"] == item * 2
        assert own_threads() - before
        server.stop()
        wait_for(lambda: own_threads() <= before)


def test_only_the_batchers_own_thread_is_left_of_a_served_autobatch_until_that_is_closed(
    serve: Serve,
) -> None:
    double = ts.register("double")(ts.autobatch(max_wait_ms=0)(per_batch))
    before = own_threads()
    server = serve()
    assert predict(server, "double", 2).value["data"] == 4
    server.stop()
    wait_for(lambda: {thread.name for thread in own_threads() - before} == {"trustformers-batcher"})
    double.batcher.close()
    assert own_threads() <= before


def test_the_end_of_a_server_does_not_wait_for_a_batch_that_hangs(serve: Serve) -> None:
    entered, leave = threading.Event(), threading.Event()

    @ts.register()
    @ts.batch()
    def hang(items: list[int]) -> list[int]:
        entered.set()
        leave.wait(60)
        return items

    server = serve({"shutdown_timeout": "100ms"})
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(predict, server, "hang", 7)
        assert entered.wait(60)
        began = time.monotonic()
        server.stop()
        assert time.monotonic() - began < 30
        assert answer.result(60).error[:2] == (500, "model_failed")
    leave.set()


@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_stopping_does_not_wait_for_a_function_that_hangs(serve: Serve, kind: str) -> None:
    entered, leave = threading.Event(), threading.Event()

    def hang(item: int) -> int:
        entered.set()
        leave.wait(60)
        return item

    async def hang_later(item: int) -> int:
        entered.set()
        await asyncio.Event().wait()
        return item

    ts.register("hang")(hang if kind == "plain" else hang_later)
    server = serve({"shutdown_timeout": "100ms"})
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(predict, server, "hang", 7)
        assert entered.wait(60)
        server.stop()
        assert answer.result(60).error[:2] == (500, "model_failed")
    leave.set()


SCRIPT = """
import sys, threading, time
import trustformers_serve as ts

@ts.register()
def slow(item):
    print("entered", flush=True)
    time.sleep(0.5)
    return item

def ask():
    print("answer", ts.Client(url).predict("slow", 3), flush=True)

if sys.argv[1] == "block":
    import socket
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    def ask_when_ready():
        client = ts.Client(url)
        while True:
            try:
                client.health()
                break
            except ts.TransportError:
                time.sleep(0.01)
        print("answer", client.predict("slow", 3), flush=True)
    thread = threading.Thread(target=ask_when_ready)
    thread.start()
    ts.serve(port=port)
    thread.join()
    print("ended", flush=True)
else:
    server = ts.serve(port=0, block=False)
    url = server.url
    threading.Thread(target=ask).start()
    print("left running", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_blocking_server_after_what_is_in_flight(number: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, "block"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "entered\n"
    os.kill(process.pid, number)
    assert process.stdout.read().split("\n") == ["answer 3", "ended", ""]
    assert process.wait(60) == 0


def test_the_interpreter_ends_with_a_server_running_and_requests_in_flight() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, "exit"], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    assert sorted(run.stdout.split("\n")) == ["", "answer 3", "entered", "left running"]


def test_two_servers_of_one_process_serve_the_same_functions(serve: Serve) -> None:
    ts.register("double")(plain)
    first, second = serve(), serve()
    assert predict(first, "double", 1).value["data"] == 2
    first.stop()
    assert predict(second, "double", 2).value["data"] == 4
