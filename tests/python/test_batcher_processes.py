"""`Batcher` at the interpreter's exit, after forks, in spawned processes, and under Ctrl-C."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
import trustformers_serve as ts

HEAD = """
import asyncio, atexit, os, sys, threading, time
import trustformers_serve as ts
def double(items): return [item * 2 for item in items]
def slow(items): time.sleep(0.3); return double(items)
def endless(items):
    while True: time.sleep(3600)
batcher = ts.Batcher(max_batch=1, max_wait_ms=3_600_000)
"""


def run(code: str) -> tuple[str, float]:
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", HEAD + code], capture_output=True, text=True, check=False, timeout=30
    )
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    return result.stdout, time.monotonic() - began


def test_work_that_is_queued_at_exit_is_run() -> None:
    code = """
for item in range(3):
    batcher.submit(item, slow).add_done_callback(lambda future: print(future.result(), flush=True))
"""
    assert run(code)[0] == "0\n2\n4\n"


def test_a_window_does_not_delay_the_exit() -> None:
    code = """
waiting = ts.Batcher(max_batch=9, max_wait_ms=3_600_000)
waiting.submit(1, double).add_done_callback(lambda future: print(future.result(), flush=True))
"""
    assert run(code)[0] == "2\n"


def test_an_executor_that_never_returns_does_not_keep_the_interpreter() -> None:
    code = """
futures = [batcher.submit(item, endless) for item in range(3)]
atexit.register(lambda: None)
for future in futures:
    future.add_done_callback(lambda future: print(type(future.exception()).__name__, flush=True))
"""
    output, seconds = run(code)
    assert output == "BatcherClosedError\n" * 3
    assert seconds < 15


def test_items_that_run_alone_and_never_end_keep_neither_the_loop_nor_the_interpreter() -> None:
    code = """
full = ts.Batcher(max_batch=1, max_wait_ms=0, max_queue=1, backpressure="passthrough")
entered = threading.Semaphore(0)
def hang(items):
    entered.release()
    threading.Event().wait()
async def main():
    calls = [asyncio.create_task(full.arun(item, hang)) for item in range(8)]
    while not (entered.acquire(blocking=False) and entered.acquire(blocking=False)):
        await asyncio.sleep(0.001)
asyncio.run(main())
print("left", flush=True)
"""
    assert run(code)[0] == "left\n"


def test_threads_that_wait_are_answered_before_the_interpreter_ends() -> None:
    code = """
for item in range(3):
    threading.Thread(target=lambda item=item: print(batcher.run(item, slow), flush=True)).start()
"""
    assert sorted(run(code)[0].split()) == ["0", "2", "4"]


def test_daemon_threads_that_wait_do_not_keep_the_interpreter() -> None:
    code = """
for item in range(3):
    threading.Thread(target=batcher.run, args=(item, endless), daemon=True).start()
    threading.Thread(target=batcher.flush, daemon=True).start()
time.sleep(0.2)
sys.stderr.close()  # what the threads say of their being refused, if they still get to it
"""
    run(code)


def test_a_loop_that_is_left_at_exit_does_not_keep_the_interpreter() -> None:
    code = """
loop = asyncio.new_event_loop()
async def main():
    for item in range(3): loop.create_task(batcher.arun(item, endless))
    await asyncio.sleep(0.1)
loop.run_until_complete(main())
os.close(2)
"""
    run(code)


def double(items: list[int]) -> list[int]:
    return [item * 2 for item in items]


@ts.autobatch(max_wait_ms=1)
def twice(items: list[int]) -> list[int]:
    return [item * 2 for item in items]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_works_in_a_process_made_while_it_was_in_use(method: str) -> None:
    assert twice(1) == 2
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map_async(twice, range(50)).get(60) == [item * 2 for item in range(50)]
    assert twice(2) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_empty_and_the_parent_keeps_its_work() -> None:
    with ts.Batcher(max_batch=2, max_wait_ms=3_600_000) as batcher:
        future = batcher.submit(1, double)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                items = [batcher.submit(item, double) for item in (5, 6)]
                code = 0 if [item.result(10) for item in items] == [10, 12] else 2
                batcher.close()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        batcher.flush()
        assert future.result(10) == 2


def interrupt_soon() -> None:
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("method", ["run", "map", "flush", "submit"])
def test_ctrl_c_ends_a_wait_and_its_item_does_not_run(method: str) -> None:
    go = threading.Event()
    ran: list[int] = []

    def held(items: list[int]) -> list[int]:
        go.wait(20)
        ran.extend(items)
        return items

    with ts.Batcher(max_batch=1, max_queue=1) as batcher:
        first = batcher.submit(1, held)
        if method == "submit":
            time.sleep(0.05)
            batcher.submit(2, held)
        threading.Thread(target=interrupt_soon).start()
        calls: dict[str, Callable[[], object]] = {
            "run": lambda: batcher.run(9, held),
            "map": lambda: batcher.map([5], held),
            "flush": batcher.flush,
            "submit": lambda: batcher.submit(9, held),
        }
        with pytest.raises(KeyboardInterrupt):
            calls[method]()
        go.set()
        assert first.result(10) == 1
    assert 9 not in ran
