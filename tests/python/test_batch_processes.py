"""`batch` in processes that end, fork and are spawned."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import time

import pytest
import trustformers_serve as ts

HEAD = """
import asyncio, atexit, os, sys, threading, time
import trustformers_serve as ts

@ts.batch(max_batch_size=1)
async def endless(items):
    await asyncio.sleep(3600)
    return items

@ts.batch(max_batch_size=1)
def blocked(items):
    threading.Event().wait()

@ts.batch(max_batch_size=1)
async def slow(items):
    await asyncio.sleep(0.05)
    return [item * 2 for item in items]
"""


def run(code: str) -> tuple[str, float]:
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", HEAD + code], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, time.monotonic() - began


@pytest.mark.parametrize("function", ["endless", "blocked"])
def test_calls_that_are_left_do_not_keep_the_interpreter(function: str) -> None:
    code = f"""
async def main():
    calls = [asyncio.create_task({function}(item)) for item in range(3)]
    await asyncio.sleep(0.1)
    print(len(calls), flush=True)
asyncio.run(main())
"""
    output, seconds = run(code)
    assert output == "3\n"
    assert seconds < 30


@pytest.mark.parametrize("function", ["endless", "blocked"])
def test_a_loop_that_is_left_at_exit_does_not_keep_the_interpreter(function: str) -> None:
    code = f"""
loop = asyncio.new_event_loop()
async def main():
    for item in range(3): loop.create_task({function}(item))
    await asyncio.sleep(0.1)
loop.run_until_complete(main())
print("left", flush=True)
os.close(2)
"""
    assert run(code)[0] == "left\n"


def test_a_thread_with_a_loop_is_answered_before_the_interpreter_ends() -> None:
    code = """
def call():
    async def main():
        print(*await asyncio.gather(*map(slow, range(4))), flush=True)
    asyncio.run(main())
threading.Thread(target=call).start()
"""
    assert run(code)[0] == "0 2 4 6\n"


@ts.batch(max_wait_time=0.001)
async def twice(items: list[int]) -> list[int]:
    return [item * 2 for item in items]


@ts.batch(max_wait_time=0.001)
def thrice(items: list[int]) -> list[int]:
    return [item * 3 for item in items]


def call_both(item: int) -> tuple[int, int]:
    async def main() -> tuple[int, int]:
        return await twice(item), await thrice(item)

    return asyncio.run(main())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_works_in_a_process_made_while_it_was_in_use(method: str) -> None:
    assert call_both(1) == (2, 3)
    with multiprocessing.get_context(method).Pool(2) as pool:
        assert pool.map_async(call_both, range(20)).get(60) == [(item * 2, item * 3) for item in range(20)]
    assert call_both(2) == (4, 6)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_starts_empty_and_the_parent_keeps_its_work() -> None:
    @ts.batch(max_batch_size=2, max_wait_time=3600)
    async def paired(items: list[int]) -> list[int]:
        return [sum(items)] * len(items)

    async def pair(first: int, second: int) -> list[int]:
        return [*await asyncio.wait_for(asyncio.gather(paired(first), paired(second)), 10)]

    def child_of(parent: asyncio.AbstractEventLoop) -> int:
        child = os.fork()
        if child == 0:
            code = 1
            try:
                # What a child of a running loop must do before it runs one of its own.
                asyncio.events._set_running_loop(None)
                code = 0 if asyncio.run(pair(10, 20)) == [30, 30] else 2
            finally:
                os._exit(code)
        return child

    async def main() -> None:
        waiting = asyncio.create_task(paired(1))
        await asyncio.sleep(0.01)
        child = child_of(asyncio.get_running_loop())
        status = await asyncio.to_thread(os.waitpid, child, 0)
        assert os.waitstatus_to_exitcode(status[1]) == 0
        assert await asyncio.gather(waiting, paired(2)) == [3, 3]
        await paired.batcher.stop()

    asyncio.run(main())
