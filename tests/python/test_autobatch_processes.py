"""`autobatch` in processes that end, fork and are spawned."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import trustformers_serve as ts
from executors import PATIENCE, own_threads, until

HEAD = """
import os, sys, threading, time
import trustformers_serve as ts

@ts.autobatch(max_batch=1, max_wait_ms=0)
def slow(items):
    time.sleep(0.05)
    return [item * 2 for item in items]

@ts.autobatch(max_batch=1, max_wait_ms=0)
def hang(items):
    threading.Event().wait()

@ts.autobatch(max_batch=9, max_wait_ms=3_600_000)
def windowed(items):
    return [item * 2 for item in items]

def call(function, item):
    # No `print`: an interpreter that ends a daemon thread within one cannot flush the stream, and aborts.
    os.write(1, f"{function(item)}\\n".encode())
"""


def run(code: str) -> str:
    """What a process with these functions prints that must end by itself."""
    command = [sys.executable, "-c", HEAD + code]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_threads_that_wait_are_answered_before_the_interpreter_ends() -> None:
    code = "for item in range(4): threading.Thread(target=call, args=(slow, item)).start()"
    assert sorted(run(code).split()) == ["0", "2", "4", "6"]


@pytest.mark.parametrize("function", ["hang", "windowed"])
def test_calls_that_wait_on_daemon_threads_do_not_keep_the_interpreter(function: str) -> None:
    code = f"""
for item in range(3):
    threading.Thread(target=call, args=({function}, item), daemon=True).start()
time.sleep(0.1)
os.write(1, b"left")
for output in (1, 2):
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
"""
    assert run(code) == "left"


@ts.autobatch(max_wait_ms=1)
def double(items: list[int]) -> list[int]:
    return [item * 2 for item in items]


class Model:
    @ts.autobatch(max_wait_ms=1)
    def triple(self, items: list[int]) -> list[int]:
        return [item * 3 for item in items]


def call_both(item: int) -> tuple[int, int]:
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.submit(double, item), threads.submit(Model().triple, item)
        return first.result(PATIENCE), second.result(PATIENCE)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_works_in_a_process_made_while_it_was_in_use(method: str) -> None:
    assert call_both(1) == (2, 3)
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map_async(call_both, range(20)).get(60)
        doubled = pool.map_async(double, range(20)).get(60)
    assert found == [(item * 2, item * 3) for item in range(20)]
    assert doubled == [item * 2 for item in range(20)]
    assert call_both(2) == (4, 6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_empty_and_the_parent_keeps_its_work() -> None:
    @ts.autobatch(max_batch=2, max_wait_ms=3_600_000)
    def paired(items: list[int]) -> list[int]:
        return [sum(items)] * len(items)

    def pair(first: int, second: int) -> list[int]:
        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(paired, (first, second), timeout=PATIENCE))

    before = own_threads()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(paired, 1)
        until(lambda: bool(own_threads() - before))
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if pair(10, 20) == [30, 30] else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert paired(2) == waiting.result(PATIENCE) == 3
