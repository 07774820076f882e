"""Plain calls of event loops on threads that nobody waits for."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import weakref
from typing import Any

import pytest
import trustformers_serve as ts
from executors import PATIENCE, Held, double, own_threads, until
from trustformers_serve import _threads


def soon(work: Any) -> Any:
    """What a coroutine returns, which must not take for ever."""
    return asyncio.run(asyncio.wait_for(work, PATIENCE))


def call_threads() -> list[threading.Thread]:
    return [thread for thread in own_threads() if thread.name == "trustformers-call"]


def test_calls_that_wait_for_each_other_all_run_and_their_threads_end() -> None:
    together = threading.Barrier(100, timeout=PATIENCE)

    async def main() -> list[int]:
        return await asyncio.gather(*(_threads.run(together.wait) for _ in range(100)))

    assert sorted(soon(main())) == list(range(100))
    until(lambda: not call_threads())


def test_no_more_calls_run_at_once_than_the_limit_and_the_others_follow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    until(lambda: not call_threads())
    monkeypatch.setattr(_threads, "MOST", 3)
    held = Held()

    async def main() -> list[list[int]]:
        calls = [_threads.begin(held, [item]) for item in range(10)]
        await asyncio.to_thread(lambda: [held.wait_entered() for _ in range(3)])
        assert len(held.batches) == len(call_threads()) == 3
        held.let_go()
        return await asyncio.gather(*calls)

    assert soon(main()) == [double([item]) for item in range(10)]


def test_a_call_has_the_context_and_the_exceptions_of_its_caller() -> None:
    who: contextvars.ContextVar[str] = contextvars.ContextVar("who")

    async def main(name: str) -> str:
        who.set(name)
        return await _threads.run(who.get)

    assert [soon(main(name)) for name in ("a", "b")] == ["a", "b"]
    with pytest.raises(ZeroDivisionError):
        soon(_threads.run(divmod, 1, 0))
    with pytest.raises(RuntimeError, match="StopIteration"):
        soon(_threads.run(next, iter(())))


def test_what_would_end_the_loop_is_an_error_of_the_call() -> None:
    def leaving() -> None:
        raise SystemExit(3)

    with pytest.raises(ts.ExecutorError, match=r"leaving raised SystemExit\(3\)"):
        soon(_threads.run(leaving))


def test_a_call_that_is_cancelled_before_it_has_a_thread_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    until(lambda: not call_threads())
    monkeypatch.setattr(_threads, "MOST", 1)
    held, ran = Held(), list[int]()

    async def main() -> None:
        first = _threads.begin(held, [1])
        second = _threads.begin(ran.append, 2)
        third = _threads.begin(ran.append, 3)
        second.cancel()
        held.let_go()
        await asyncio.gather(first, third)

    soon(main())
    assert ran == [3]


def test_nothing_of_a_call_is_kept() -> None:
    class Item:
        pass

    async def main() -> weakref.ref[Item]:
        item = Item()
        await _threads.run(id, item)
        return weakref.ref(item)

    reference = soon(main())
    gc.collect()
    until(lambda: reference() is None)


def test_a_call_that_never_returns_keeps_neither_the_loop_nor_the_interpreter() -> None:
    code = """
import asyncio, threading
from trustformers_serve import _threads
async def main():
    _threads.begin(threading.Event().wait)
    await asyncio.sleep(0.1)
asyncio.run(main())
print("left", flush=True)
"""
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout == "left\n"


def identity(item: int) -> tuple[int, int]:
    return soon(_threads.run(int, item)), os.getpid()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_works_in_processes_made_while_its_threads_are_busy(method: str) -> None:
    held = Held()

    async def main() -> None:
        busy = _threads.begin(held, [1])
        await asyncio.to_thread(held.wait_entered)
        with multiprocessing.get_context(method).Pool(2) as pool:
            found = await asyncio.to_thread(pool.map_async(identity, range(20)).get, 60)
        assert [item for item, _ in found] == list(range(20))
        assert os.getpid() not in {process for _, process in found}
        held.let_go()
        assert await busy == [2]

    asyncio.run(main())
